"""Laplace approximations: a Gaussian at the mode with the curvature there, dense or diagonal."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.models import Gaussian, Model, Params
from pseudocoreset.newton import Expansion, find_best_mode, find_mode, inverse_factor
from pseudocoreset.rows import Rows

__all__ = [
    "DENSE_LIMIT",
    "NUM_STARTS",
    "Potential",
    "best_mode",
    "coreset_potential",
    "data_potential",
    "diagonal_laplace",
    "laplace",
    "starts_of_search",
]

DENSE_LIMIT = 2000  # parameters; a dense Hessian in float32 is then 16 MB
DATA_CHUNK = 4096
NUM_STARTS = 4  # of the search for a mode of the full data, zero among them

# (vector of parameters) -> negative log posterior density, up to a constant.
Potential = Callable[[jax.Array], jax.Array]


def coreset_potential(model: Model, batch: Rows) -> Potential:
    """-log prior(theta) - sum_j w_j log p(y_j | u_j, theta): a pytree of the batch."""

    def potential(batch: Rows, vector: jax.Array) -> jax.Array:
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


def _expansion(potential: Potential, vector: jax.Array) -> Expansion:
    """Of minus the potential."""
    value, gradient = jax.value_and_grad(potential)(vector)
    return Expansion(-value, -gradient, jax.hessian(potential)(vector))


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
    found = find_best_mode(lambda vector: _expansion(potential, vector), starts, is_exact=True)
    return found.position, found.is_found


def starts_of_search(model: Model, key: jax.Array) -> jax.Array:
    """Where searches for a mode of a model's posterior start, (s, p): zero, and initial parameters."""
    others = [model.flatten(model.init(k)) for k in jax.random.split(key, NUM_STARTS - 1)]
    return jnp.stack([jnp.zeros_like(others[0]), *others])


def laplace(potential: Callable[..., jax.Array], start: jax.Array, *arguments: Any) -> Gaussian:
    """Gaussian at the mode of ``potential(vector, *arguments)`` with the inverse Hessian as covariance.

    Differentiable in ``arguments``: the derivative of the mode is that of one Newton step from it (implicit function
    theorem), the derivative of the covariance goes through the Hessian. Not a number where Newton's method finds no
    mode from the start.
    """
    stopped = jax.lax.stop_gradient(arguments)

    def expand(vector: jax.Array) -> Expansion:
        return _expansion(lambda v: potential(v, *stopped), vector)

    found = jax.lax.stop_gradient(find_mode(expand, start, shrinkage=(1.0,), is_exact=True))
    factor, _ = jax.lax.stop_gradient(inverse_factor(found.expansion.precision))
    mean = found.position - factor @ (factor.T @ jax.grad(potential)(found.position, *arguments))
    hessian = jax.hessian(potential)(mean, *arguments)
    fixed = jax.lax.stop_gradient(hessian)
    factor, is_definite = jax.lax.stop_gradient(inverse_factor(fixed))
    inverse = factor @ factor.T
    # Its derivative is that of an inverse; its value is free of the units of the parameters.
    covariance = inverse - inverse @ (hessian - fixed) @ inverse
    covariance = jnp.where(found.is_found & is_definite, (covariance + covariance.T) / 2, jnp.nan)
    return Gaussian.from_covariance(mean, covariance)


def diagonal_laplace(model: Model, params: Params, batch: Rows, scale: float | jax.Array = 1.0) -> Gaussian:
    """Gaussian at ``params`` with the diagonal of the generalised Gauss-Newton matrix as precision.

    precision_i = prior_i + scale * sum_j w_j [ sum_k (d f_j / d theta_i . s_jk)^2 + h_ji ], S_j S_j^T the Hessian of
    -log p(y_j | f, theta) in the function values, and h_ji its second derivative in theta_i at fixed f: that of a
    parameter of the likelihood, a noise scale say. Exact for the diagonal, one example at a time.

    Args:
        model: a model with function values and independent Gaussian priors.
        params: where.
        batch: the data.
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
