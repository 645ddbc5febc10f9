"""Modes of log densities of few parameters by Newton's method, whatever the units of the parameters are."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["WORST_DECREMENT", "LogDensity", "find_mode", "inverse_factor"]

MAX_NEWTON_STEPS = 100
# Newton decrement, in units of the log density, below which a point is near enough to the mode ...
DECREMENT = 1e-3
# ... and below which it still serves.
WORST_DECREMENT = 0.1
# Of the start: on raw scales one of order one can be far outside, or overflow.
SHRINKAGE = (1.0, 0.3, 0.1, 0.03, 0.01, 0.001)


class _Newton(NamedTuple):
    position: jax.Array
    value: jax.Array
    damping: jax.Array
    decrement: jax.Array
    steps: jax.Array


class LogDensity(NamedTuple):
    """A log density as a function of one vector (d,).

    value
        Scalar.
    gradient
        (d,).
    hessian
        (d, d), symmetric.
    """

    value: Callable[[jax.Array], jax.Array]
    gradient: Callable[[jax.Array], jax.Array]
    hessian: Callable[[jax.Array], jax.Array]


def _unit_diagonal(precision: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scales s, eigenvalues and eigenvectors of s P s, whose diagonal is one: columns of any unit are alike in it."""
    diagonal = jnp.abs(jnp.diagonal(precision))
    scales = 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))
    values, vectors = jnp.linalg.eigh(scales[:, None] * precision * scales)
    return scales, values, vectors


def find_mode(flat: LogDensity, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mode by Newton's method from ``start`` or a better point on the way to zero, and the last decrement.

    The decrement is about twice what the log density has still to gain; a point that is no maximum has none, infinity.
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
    starts = jnp.asarray(SHRINKAGE, dtype)[:, None] * start
    heights = jnp.nan_to_num(jax.lax.map(flat.value, starts), nan=-jnp.inf, posinf=-jnp.inf)
    start, height = starts[jnp.argmax(heights)], jnp.max(heights)
    begin = _Newton(start, height, jnp.zeros((), dtype), jnp.asarray(jnp.inf, dtype), jnp.zeros((), jnp.int32))
    end = jax.lax.while_loop(goes_on, step, begin)
    return end.position, end.decrement


def inverse_factor(precision: jax.Array) -> tuple[jax.Array, jax.Array]:
    """L with L L^T the inverse of a precision, and whether that is positive definite beyond rounding."""
    scales, values, vectors = _unit_diagonal(precision)
    least = jnp.finfo(values.dtype).eps * len(values)
    is_positive = jnp.all(jnp.isfinite(values)) & (jnp.min(values) > least) & jnp.all(jnp.diagonal(precision) > 0)
    sizes = jnp.where(is_positive, jnp.maximum(values, least), 1.0)
    return scales[:, None] * vectors / jnp.sqrt(sizes), is_positive
