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
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from pseudocoreset.inference.adaptation.mass import Factor
from pseudocoreset.inference.adaptation.scales import friction_or_default
from pseudocoreset.inference.data import draws_with_replacement
from pseudocoreset.inference.engine.kernel import Density, Tuning
from pseudocoreset.inference.engine.plan import Plan
from pseudocoreset.models import Params
from pseudocoreset.newton import Expansion, Mode, find_mode, inverse_factor
from pseudocoreset.rows import Rows

__all__ = ["HEAT", "MAX_PARAMS", "StepRule", "tune_by_curvature"]

# Up to so many parameters a dense Hessian costs less than the chains.
MAX_PARAMS = 300
# The most that noise of gradient estimates may add to a variance.
HEAT = 0.05
NUM_PROBES = 8
StepRule = Callable[[jax.Array, jax.Array, float | None], jax.Array]
"""The step size in units of L of kappa, of sigma^2 over T, and of the friction that was given."""


def _expansion(plan: Plan, density: Density, unravel: Any, vector: jax.Array) -> Expansion:
    """The log density of all data around a point."""

    def log_density(v: jax.Array) -> jax.Array:
        return density.log_density(unravel(v), density.data)

    def column(direction: jax.Array) -> jax.Array:
        return jax.jvp(jax.grad(log_density), (vector,), (direction,))[1]

    rows, size = min(plan.num_data, plan.devices.chunk or plan.num_data), len(vector)
    value, gradient = jax.value_and_grad(log_density)(vector)
    directions = jnp.eye(size, dtype=vector.dtype)
    together = min(size, max(1, plan.devices.limits.tangent_elements // rows))
    hessian = jax.lax.map(column, directions, batch_size=together)
    # Data may be of a wider type than the parameters.
    return Expansion(value.astype(vector.dtype), gradient, -0.5 * (hessian + hessian.T))


def _probes(mode: Mode, factor: jax.Array, temperature: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws of the Laplace approximation, in units of L and not; of a few parameters their second moments are exact."""
    size, dtype = len(mode.position), mode.position.dtype
    # Numbers of a setting, not of a draw: they are the same whatever the user's key.
    normals = jax.random.normal(jax.random.key(0), (NUM_PROBES, size), dtype)
    if 2 * size <= NUM_PROBES:
        lower = jnp.linalg.cholesky(normals.T @ normals / NUM_PROBES)
        normals = jax.scipy.linalg.solve_triangular(lower, normals.T, lower=True).T
    normals = jnp.sqrt(temperature) * normals
    return normals, mode.position + normals @ factor.T


def _kappa(
    density: Density, unravel: Any, mode: Mode, factor: jax.Array, normals: jax.Array, points: jax.Array
) -> jax.Array:
    """The largest change of the gradient on the way from the mode to a probe, over the length of the way."""

    def change(point: jax.Array) -> jax.Array:
        gradient = ravel_pytree(density.gradient(unravel(point), density.data))[0]
        return factor.T @ (gradient - mode.expansion.gradient)

    ratios = jnp.linalg.norm(jax.lax.map(change, points), axis=1) / jnp.linalg.norm(normals, axis=1)
    return jnp.maximum(jnp.max(jnp.where(jnp.isfinite(ratios), ratios, 1.0)), 1.0)


def _noise(
    plan: Plan, density: Density, unravel: Any, factor: jax.Array, points: jax.Array, centre: Params | None
) -> jax.Array:
    """sigma^2 of the module's docstring: the largest eigenvalue of the covariance of gradient estimates.

    It is that of the gradients of all single rows: a few minibatches would miss the rare rows that make most of it.
    """
    if plan.batch_size is None:
        return jnp.zeros((), points.dtype)
    terms = density.terms
    assert terms is not None

    def slopes(point: jax.Array, rows: Rows) -> jax.Array:
        """Gradients of the rows in units of L (d, rows), by directions: of the rows together each costs one pass."""

        def likelihoods(vector: jax.Array) -> jax.Array:
            return terms(unravel(vector), rows)["likelihood"]

        return jax.vmap(lambda direction: jax.jvp(likelihoods, (point,), (direction,))[1])(factor.T)

    def of_rows(rows: Rows) -> Any:
        there = 0.0 if centre is None else slopes(ravel_pytree(centre)[0], rows)

        def moments(point: jax.Array) -> tuple[jax.Array, jax.Array]:
            here = slopes(point, rows) - there
            return jnp.sum(here, axis=1), here @ here.T

        return jax.lax.map(moments, points)

    n, size = plan.num_data, plan.batch_size
    devices = plan.devices.within.in_chunks_of(max(1, plan.devices.limits.tangent_elements // len(factor)))
    sums, squares = devices.sum_rows(of_rows, density.data)
    covariances = squares / n - (sums[:, :, None] / n) * (sums[:, None, :] / n)
    covariances = jnp.where(jnp.all(jnp.isfinite(covariances), axis=(1, 2), keepdims=True), covariances, 0.0)
    without_replacement = 1.0 if draws_with_replacement(n, size) else (n - size) / max(n - 1, 1)
    most = jnp.max(jnp.linalg.eigvalsh(jnp.mean(covariances, axis=0)))
    return jnp.maximum(n * (n / size) * without_replacement * most, 0.0)


@functools.partial(jax.jit, static_argnames=("plan", "rule", "has_control", "has_step", "friction"))
def tune_by_curvature(
    plan: Plan,
    positions: Params,
    tuning: Tuning,
    data: Any,
    *,
    rule: StepRule,
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
        rule: of the kernel.
        has_control: whether gradients of minibatches are corrected by those at a centre: one in ``tuning``, or the
            mode.
        has_step: whether the step size was given, in units of the preconditioner.
        friction: as given.

    Returns:
        The modes, the tuning, and for every chain whether there was a mode; without one a chain keeps its position,
        a preconditioner of ones and its step size.
    """

    def chain(item: Any, rows: Rows) -> tuple[Params, Tuning, jax.Array]:
        position, tuned = item
        density = plan.density(rows)
        start, unravel = ravel_pytree(position)
        mode = find_mode(functools.partial(_expansion, plan, density, unravel), start)
        factor, _ = inverse_factor(mode.expansion.precision)
        centre = jnp.where(mode.is_found, mode.position, start)
        factor = jnp.where(mode.is_found, factor, jnp.eye(len(start), dtype=factor.dtype))
        tuned = {**tuned, "preconditioner": Factor(factor)}
        if has_control:
            tuned.setdefault("centre", unravel(centre))
            tuned["centre_gradient"] = density.gradient(tuned["centre"], density.data)
        if not has_step:
            normals, points = _probes(mode, factor, tuned["temperature"])
            kappa = _kappa(density, unravel, mode, factor, normals, points)
            noise = _noise(plan, density, unravel, factor, points, tuned.get("centre"))
            noise = jnp.maximum(noise / tuned["temperature"], 1e-30)
            size = rule(kappa, noise, friction)
            tuned["step_size"] = jnp.where(mode.is_found, size, tuned["step_size"]).astype(start.dtype)
            if "friction" in tuned and friction is None:
                tuned["friction"] = friction_or_default(None, tuned["step_size"])
        return unravel(centre), tuned, mode.is_found

    return plan.devices.map(chain, (positions, tuning), data)
