"""Preconditioners and step sizes of SGHMC and SGLD from the curvature of the posterior at its mode.

Where parameters have scales far apart, as with columns of a table in their raw units, no one step size serves them all.
With H = L^-T L^-1 the negative Hessian of the log density at a mode, the chain of z in theta = L z has curvature one
in every direction there, whatever the units of the columns and however they are correlated. Two numbers remain, both
measured at points about as far from the mode as the posterior reaches:

    kappa    curvature along the way from the mode, relative to that at the mode
    sigma^2  variance of the gradient estimate in units of L, the largest of any direction

SGHMC with momentum decay c is stable where h^2 kappa < 4, and noise of gradients heats it by h^2 sigma^2 / (1 - c^2);
SGLD of step e inflates variances by the factor 1 / (1 - e kappa / 2), and noise adds e sigma^2 / 2.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from pseudocoreset.inference.chains import Plan, over_chains
from pseudocoreset.inference.data import control_variate_estimator
from pseudocoreset.inference.kernels import Density, Tuning
from pseudocoreset.inference.sghmc import Factor
from pseudocoreset.models import Params

__all__ = ["MAX_PARAMS", "MOMENTUM_DECAY", "tune_by_curvature"]

# Up to so many parameters a dense Hessian costs less than the chains.
MAX_PARAMS = 300
# The momentum keeps this factor per step: the customary momentum of stochastic gradient descent.
MOMENTUM_DECAY = 0.9
# Step of SGHMC times the root of the curvature: a twentieth of a period, where errors of a posterior that is not
# Gaussian are of the order of a hundredth.
SGHMC_STEP = 0.3
# Step of SGLD times the curvature: variances are 5 % too large.
SGLD_STEP = 0.1
# The most that noise of gradient estimates may add to a variance.
HEAT = 0.05
MAX_NEWTON_STEPS = 100
# Newton decrement, in units of the log density, below which a point is near enough to the mode ...
DECREMENT = 1e-3
# ... and below which it still serves as centre and source of the curvature.
WORST_DECREMENT = 0.1
SHRINKAGE = (1.0, 0.3, 0.1, 0.03, 0.01, 0.001)
NUM_PROBES, NUM_BATCHES = 8, 4
# Rows times directions that are differentiated at once.
TANGENT_ELEMENTS = 2**22


class _Newton(NamedTuple):
    position: jax.Array
    value: jax.Array
    damping: jax.Array
    decrement: jax.Array
    steps: jax.Array


class _Flat(NamedTuple):
    """The log density of all data as a function of one vector: value, gradient, Hessian."""

    value: Any
    gradient: Any
    hessian: Any


def _flattened(plan: Plan, density: Density, unravel: Any) -> _Flat:
    def value(vector: jax.Array) -> jax.Array:
        return density.log_density(unravel(vector), density.data)

    def gradient(vector: jax.Array) -> jax.Array:
        return ravel_pytree(density.gradient(unravel(vector), density.data))[0]

    def hessian(vector: jax.Array) -> jax.Array:
        rows = min(plan.num_data, plan.chunk_size or plan.num_data)

        def column(direction: jax.Array) -> jax.Array:
            return jax.jvp(gradient, (vector,), (direction,))[1]

        directions = jnp.eye(len(vector), dtype=vector.dtype)
        found = jax.lax.map(column, directions, batch_size=min(len(vector), max(1, TANGENT_ELEMENTS // rows)))
        return 0.5 * (found + found.T)

    return _Flat(value, gradient, hessian)


def _unit_diagonal(precision: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scales s, eigenvalues and eigenvectors of s P s, whose diagonal is one: columns of any unit are alike in it."""
    diagonal = jnp.abs(jnp.diagonal(precision))
    scales = 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))
    values, vectors = jnp.linalg.eigh(scales[:, None] * precision * scales)
    return scales, values, vectors


def _mode(flat: _Flat, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mode by Newton's method from ``start``, and the last decrement.

    Eigenvalues of the curvature count by their absolute values, so that every step goes up; a step that does not, as
    one too long, is damped.
    """
    eps = jnp.finfo(start.dtype).eps

    def goes_on(state: _Newton) -> jax.Array:
        return (state.decrement > DECREMENT) & (state.steps < MAX_NEWTON_STEPS) & (state.damping < 1e12)

    def step(state: _Newton) -> _Newton:
        gradient = flat.gradient(state.position)
        scales, values, vectors = _unit_diagonal(-flat.hessian(state.position))
        sizes = jnp.maximum(jnp.abs(values), 10 * eps * jnp.max(jnp.abs(values)))
        slope = vectors.T @ (scales * gradient)
        move = scales * (vectors @ (slope / (sizes + state.damping)))
        position = state.position + move
        value = flat.value(position)
        is_better = value >= state.value - 10 * eps * (1 + jnp.abs(state.value))  # false for what is not finite
        smaller = jnp.where(state.damping > 1e-4, state.damping / 10, 0.0)
        # The decrement is that of the undamped step, at the point it starts from; a mode is a maximum.
        decrement = jnp.where(jnp.min(values) > 0, jnp.sum(slope**2 / sizes), jnp.inf)
        return _Newton(
            jnp.where(is_better, position, state.position),
            jnp.where(is_better, value, state.value),
            jnp.where(is_better, smaller, jnp.maximum(10 * state.damping, 1e-3)),
            decrement,
            state.steps + 1,
        )

    dtype = start.dtype
    # On raw scales a start of order one can be far outside, or overflow: the best of it and points nearer to zero.
    starts = jnp.asarray(SHRINKAGE, dtype)[:, None] * start
    heights = jnp.nan_to_num(jax.lax.map(flat.value, starts), nan=-jnp.inf, posinf=-jnp.inf)
    start, height = starts[jnp.argmax(heights)], jnp.max(heights)
    begin = _Newton(start, height, jnp.zeros((), dtype), jnp.asarray(jnp.inf, dtype), jnp.zeros((), jnp.int32))
    end = jax.lax.while_loop(goes_on, step, begin)
    return end.position, end.decrement


def _factor(precision: jax.Array) -> tuple[jax.Array, jax.Array]:
    """L with L L^T the inverse of a precision, and whether that is positive definite beyond rounding."""
    scales, values, vectors = _unit_diagonal(precision)
    least = jnp.finfo(values.dtype).eps * len(values)
    is_positive = jnp.all(jnp.isfinite(values)) & (jnp.min(values) > least) & jnp.all(jnp.diagonal(precision) > 0)
    sizes = jnp.where(is_positive, jnp.maximum(values, least), 1.0)
    return scales[:, None] * vectors / jnp.sqrt(sizes), is_positive


def _kappa_and_noise(
    plan: Plan, density: Density, flat: _Flat, unravel: Any, centre: jax.Array, factor: jax.Array, tuning: Tuning
) -> tuple[jax.Array, jax.Array]:
    """Both numbers of the module's docstring at draws of the Laplace approximation."""
    # Numbers of a setting, not of a draw: they are the same whatever the user's key.
    probe_key, batch_key = jax.random.split(jax.random.key(0))
    normals = jnp.sqrt(tuning["temperature"]) * jax.random.normal(probe_key, (NUM_PROBES, len(centre)), centre.dtype)
    points = centre + normals @ factor.T
    at_centre = flat.gradient(centre)
    changes = jax.lax.map(lambda point: factor.T @ (flat.gradient(point) - at_centre), points)
    ratios = jnp.linalg.norm(changes, axis=1) / jnp.linalg.norm(normals, axis=1)
    kappa = jnp.maximum(jnp.max(jnp.where(jnp.isfinite(ratios), ratios, 1.0)), 1.0)
    if plan.batch_size is None:
        return kappa, jnp.zeros_like(kappa)
    estimator = density.gradient
    if "centre" in tuning:
        estimator = control_variate_estimator(estimator, tuning["centre"], tuning["centre_gradient"])

    def estimate(item: tuple[jax.Array, jax.Array]) -> jax.Array:
        point, key = item
        return factor.T @ ravel_pytree(estimator(unravel(point), density.minibatch(key)))[0]

    keys = jax.random.split(batch_key, NUM_PROBES * NUM_BATCHES)
    estimates = jax.lax.map(estimate, (jnp.repeat(points, NUM_BATCHES, axis=0), keys))
    variances = jnp.var(estimates.reshape(NUM_PROBES, NUM_BATCHES, -1), axis=1, ddof=1)
    means = jnp.mean(jnp.where(jnp.isfinite(variances), variances, 0.0), axis=0)
    return kappa, jnp.max(means)


def _step_size(plan: Plan, kappa: jax.Array, noise: jax.Array, tuning: Tuning, friction: float | None) -> jax.Array:
    noise = jnp.maximum(noise / tuning["temperature"], 1e-30)
    if plan.kernel == "sgld":
        return jnp.minimum(SGLD_STEP / kappa, 2 * HEAT / noise)
    if friction is None:
        return jnp.minimum(SGHMC_STEP / jnp.sqrt(kappa), jnp.sqrt(HEAT * (1 - MOMENTUM_DECAY**2) / noise))
    return jnp.minimum(SGHMC_STEP / jnp.sqrt(kappa), 2 * HEAT * friction / noise)  # 1 - c^2 is at most 2 friction h


@functools.partial(jax.jit, static_argnames=("plan", "has_control", "has_step", "friction"))
def tune_by_curvature(
    plan: Plan,
    positions: Params,
    tuning: Tuning,
    data: Any,
    *,
    has_control: bool,
    has_step: bool,
    friction: float | None,
) -> tuple[Params, Tuning, jax.Array]:
    """Where chains start and their tuning, from the curvature at the mode that each comes to from its position.

    Args:
        plan: of the chains.
        positions: of every chain.
        tuning: of every chain, with the step size that serves where there is no mode.
        data: all data.
        has_control: whether gradients of minibatches are corrected by those at a centre: one in ``tuning``, or the
            mode.
        has_step: whether the step size was given, in units of the preconditioner.
        friction: as given.

    Returns:
        The modes, the tuning, and for every chain whether there was a mode; without one a chain keeps its position,
        a preconditioner of ones and its step size.
    """

    def chain(item: Any, density: Density) -> tuple[Params, Tuning, jax.Array]:
        position, tuned = item
        start, unravel = ravel_pytree(position)
        flat = _flattened(plan, density, unravel)
        centre, decrement = _mode(flat, start)
        factor, is_positive = _factor(-flat.hessian(centre))
        found = is_positive & (decrement < WORST_DECREMENT)
        centre = jnp.where(found, centre, start)
        factor = jnp.where(found, factor, jnp.eye(len(start), dtype=factor.dtype))
        tuned = {**tuned, "preconditioner": Factor(factor)}
        if has_control:
            tuned.setdefault("centre", unravel(centre))
            tuned["centre_gradient"] = density.gradient(tuned["centre"], density.data)
        if not has_step:
            kappa, noise = _kappa_and_noise(plan, density, flat, unravel, centre, factor, tuned)
            size = _step_size(plan, kappa, noise, tuned, friction)
            tuned["step_size"] = jnp.where(found, size, tuned["step_size"]).astype(start.dtype)
            if "friction" in tuned and friction is None:
                tuned["friction"] = -math.log(MOMENTUM_DECAY) / tuned["step_size"]
        return unravel(centre), tuned, found

    return over_chains(plan, chain, (positions, tuning), data)
