"""Laplace approximations: a Gaussian at the mode with the curvature there, dense or diagonal."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from pseudocoreset.device import DeviceData
from pseudocoreset.models import Gaussian, Model, Params
from pseudocoreset.proxies.training import Batch

__all__ = [
    "DENSE_LIMIT",
    "Potential",
    "best_mode",
    "coreset_potential",
    "data_potential",
    "diagonal_laplace",
    "laplace",
    "mode",
]

DENSE_LIMIT = 2000  # parameters; a dense Hessian in float32 is then 16 MB
MAX_NEWTON_STEPS = 100
DATA_CHUNK = 4096

# (vector of parameters) -> negative log posterior density, up to a constant.
Potential = Callable[[jax.Array], jax.Array]


def coreset_potential(model: Model, batch: Batch) -> Potential:
    """-log prior(theta) - sum_j w_j log p(y_j | u_j, theta): a pytree of the batch."""

    def potential(batch: Batch, vector: jax.Array) -> jax.Array:
        x, y, weights = batch
        params = model.unflatten(vector)
        return -model.log_prior(params) - jnp.sum(weights * model.log_likelihood(params, x, y))

    return Partial(potential, batch)


def data_potential(model: Model, data: DeviceData) -> Potential:
    """The same of the full data, summed in chunks whose intermediate values are recomputed."""
    n = data.num_data
    size = min(DATA_CHUNK, n)
    starts = jnp.arange(math.ceil(n / size)) * size

    def potential(vector: jax.Array) -> jax.Array:
        params = model.unflatten(vector)

        @jax.checkpoint
        def chunk(params: Params, start: jax.Array) -> jax.Array:
            index = start + jnp.arange(size)
            x, y = data.batch(jnp.minimum(index, n - 1))
            return jnp.sum(jnp.where(index < n, model.log_likelihood(params, x, y), 0.0))

        def add(total: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
            return total + chunk(params, start), None

        total, _ = jax.lax.scan(add, jnp.zeros((), vector.dtype), starts)
        return -model.log_prior(params) - total

    return potential


class _Newton(NamedTuple):
    position: jax.Array
    value: jax.Array
    damping: jax.Array
    decrement: jax.Array
    steps: jax.Array


def mode(potential: Potential, start: jax.Array) -> jax.Array:
    """Minimise a potential by Newton's method, damped (Levenberg) where a whole step would not go down.

    One step is exact for a Gaussian posterior. Stops when the Newton decrement is below the rounding of the
    potential, or after 100 steps.
    """
    tolerance = 10 * jnp.finfo(start.dtype).eps

    def unfinished(state: _Newton) -> jax.Array:
        scale = 1.0 + jnp.abs(state.value)
        return (state.decrement > tolerance * scale) & (state.steps < MAX_NEWTON_STEPS) & (state.damping < 1e12)

    def step(state: _Newton) -> _Newton:
        gradient = jax.grad(potential)(state.position)
        hessian = jax.hessian(potential)(state.position)
        size = jnp.mean(jnp.abs(jnp.diagonal(hessian)))
        factor = jnp.linalg.cholesky(hessian + state.damping * size * jnp.eye(len(gradient), dtype=hessian.dtype))
        direction = jax.scipy.linalg.cho_solve((factor, True), gradient)
        position = state.position - direction
        value = potential(position)
        slack = tolerance * (1.0 + jnp.abs(state.value))
        better = value <= state.value + slack  # false for what is not finite
        smaller = jnp.where(state.damping > 1e-6, state.damping / 10, 0.0)
        return _Newton(
            jnp.where(better, position, state.position),
            jnp.where(better, value, state.value),
            jnp.where(better, smaller, jnp.maximum(10 * state.damping, 1e-4)),
            jnp.where(better, jnp.abs(gradient @ direction), jnp.inf),
            state.steps + 1,
        )

    inf = jnp.asarray(jnp.inf, start.dtype)
    zero = jnp.zeros((), start.dtype)
    begin = _Newton(start, potential(start), zero, inf, jnp.asarray(0))
    return jax.lax.while_loop(unfinished, step, begin).position


def best_mode(potential: Potential, starts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The lowest of the modes that Newton's method comes to from several starts, and whether there is one.

    A mode has a positive definite Hessian. A saddle has not: at zero a product of two parameters has a gradient of zero
    and no maximum.

    Args:
        potential: to minimise.
        starts: (s, p).

    Returns:
        The mode (p,), and a boolean; without a mode the lowest point that was found.
    """

    def of_start(start: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        found = mode(potential, start)
        return found, potential(found), is_positive_definite(jax.hessian(potential)(found))

    found, values, are_modes = jax.lax.map(of_start, starts)
    rank = jnp.where(jnp.isfinite(values), values, jnp.inf)
    best = jnp.argmin(jnp.where(jnp.any(are_modes), jnp.where(are_modes, rank, jnp.inf), rank))
    return found[best], are_modes[best]


def is_positive_definite(matrix: jax.Array) -> jax.Array:
    """Whether a symmetric matrix has a Cholesky factor that rounding has not made up."""
    size = jnp.sqrt(jnp.abs(jnp.diagonal(matrix)))
    size = jnp.where(size > 0, size, 1.0)
    factor = jnp.linalg.cholesky(matrix / size / size[:, None])
    # Of a matrix with ones on its diagonal; an eigenvalue of zero leaves a pivot of the order of this.
    least = jnp.sqrt(len(matrix) * jnp.finfo(matrix.dtype).eps)
    return jnp.all(jnp.isfinite(factor)) & jnp.all(jnp.diagonal(factor) > least)


def laplace(potential: Callable[..., jax.Array], start: jax.Array, *arguments: Any) -> Gaussian:
    """Gaussian at the mode of ``potential(vector, *arguments)`` with the inverse Hessian as covariance.

    Differentiable in ``arguments``: the derivative of the mode is that of one Newton step from it (implicit function
    theorem), the derivative of the covariance goes through the Hessian.
    """
    stopped = jax.lax.stop_gradient(arguments)
    found = jax.lax.stop_gradient(mode(lambda vector: potential(vector, *stopped), start))
    at_mode = jax.lax.stop_gradient(jax.hessian(potential)(found, *stopped))
    mean = found - jnp.linalg.solve(at_mode, jax.grad(potential)(found, *arguments))
    covariance = jnp.linalg.inv(jax.hessian(potential)(mean, *arguments))
    return Gaussian.from_covariance(mean, (covariance + covariance.T) / 2)


def diagonal_laplace(model: Model, params: Params, batch: Batch, scale: float | jax.Array = 1.0) -> Gaussian:
    """Gaussian at ``params`` with the diagonal of the generalised Gauss-Newton matrix as precision.

    precision_i = prior_i + scale * sum_j w_j [ sum_k (d f_j / d theta_i . s_jk)^2 + h_ji ], S_j S_j^T the Hessian of
    -log p(y_j | f, theta) in the function values, and h_ji its second derivative in theta_i at fixed f: that of a
    parameter of the likelihood, a noise scale say. Exact for the diagonal, one example at a time.

    Args:
        model: a model with function values and independent Gaussian priors.
        params: where.
        batch: inputs, targets, weights.
        scale: n / B for a batch that stands for n data.
    """
    x, y, weights = batch
    direct = _likelihood_sites(model)

    def second_derivatives(f: jax.Array, x_one: jax.Array, y_one: jax.Array) -> Params:
        """Of the loss of one datum in the parameters of its likelihood, at fixed f."""
        flat, unravel = ravel_pytree({name: params[name] for name in direct})

        def loss(vector: jax.Array) -> jax.Array:
            return -model.function_log_likelihood({**params, **unravel(vector)}, f[None], x_one, y_one)[0]

        return unravel(jnp.diagonal(jax.hessian(loss)(flat)))

    def add(total: Params, item: Any) -> tuple[Params, None]:
        x_one, y_one, weight = (leaf[None] for leaf in item)
        values, pull = jax.vjp(lambda p: model.apply(p, x_one)[0], params)

        def loss(f: jax.Array) -> jax.Array:
            return -model.function_log_likelihood(params, f[None], x_one, y_one)[0]

        eigenvalues, vectors = jnp.linalg.eigh(jax.hessian(loss)(values))
        columns = (vectors * jnp.sqrt(jnp.maximum(eigenvalues, 0.0))).T
        (pulled,) = jax.vmap(pull)(columns)
        total = jax.tree.map(lambda t, g: t + weight[0] * jnp.sum(g**2, axis=0), total, pulled)
        if direct:
            own = second_derivatives(values, x_one, y_one)
            total = total | {name: total[name] + weight[0] * own[name] for name in direct}
        return total, None

    zeros = jax.tree.map(jnp.zeros_like, params)
    curvature, _ = jax.lax.scan(add, zeros, (x, y, weights))
    ones = jax.tree.map(jnp.ones_like, params)
    _, prior = jax.jvp(jax.grad(model.log_prior), (params,), (ones,))
    precision = jax.tree.map(lambda p, c: jnp.maximum(-p, 0.0) + scale * jnp.maximum(c, 0.0), prior, curvature)
    return Gaussian(model.flatten(params), 1.0 / jnp.sqrt(model.flatten(precision)))


@functools.lru_cache(maxsize=64)
def _likelihood_sites(model: Model) -> tuple[str, ...]:
    """The sites that the likelihood of a datum depends on at fixed function values."""
    with jax.ensure_compile_time_eval():
        keys = jax.random.split(jax.random.key(0), 3)
        x, y = (jnp.ones((3, *one.shape), one.dtype) for one in model.datum_structs)
        f = jax.random.normal(keys[1], (3, model.num_outputs or 1))

        def total(params: Params) -> jax.Array:
            return jnp.sum(model.function_log_likelihood(params, f, x, y))

        slope = jax.jit(jax.grad(total))(model.init(keys[0]))
        return tuple(name for name, leaf in slope.items() if bool(jnp.any(leaf != 0)))
