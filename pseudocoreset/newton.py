"""Modes of log densities of few parameters by Newton's method, whatever the units of the parameters are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["SHRINKAGE", "Expansion", "Mode", "find_best_mode", "find_mode", "inverse_factor"]

MAX_STEPS = 300  # networks of a few units take 100 to 300 in single precision
# Newton decrement, in units of the log density, below which a point is near enough to the mode ...
DECREMENT = 1e-3
# ... and below which it still serves.
WORST_DECREMENT = 0.1
NEARLY_AS_HIGH = 1.0  # nats that a mode may lie below the highest point of all searches
# Of the start: on raw scales one of order one can be far outside, or overflow.
SHRINKAGE = (1.0, 0.3, 0.1, 0.03, 0.01, 0.001)


class Expansion(NamedTuple):
    """A log density to second order around a point (d,).

    value
        Scalar.
    gradient
        (d,).
    precision
        (d, d) negative Hessian, symmetric.
    """

    value: jax.Array
    gradient: jax.Array
    precision: jax.Array


class Mode(NamedTuple):
    """Where a search ended.

    position
        (d,).
    expansion
        Of the log density there.
    is_found
        Whether the position is a maximum, to a small part of its standard deviations.
    """

    position: jax.Array
    expansion: Expansion
    is_found: jax.Array


_Spectrum = tuple[jax.Array, jax.Array, jax.Array]


class _Search(NamedTuple):
    position: jax.Array
    expansion: Expansion
    spectrum: _Spectrum  # of the precision, ``_unit_diagonal``
    damping: jax.Array
    steps: jax.Array


def _unit_diagonal(precision: jax.Array) -> _Spectrum:
    """Scales s, eigenvalues and eigenvectors of s P s, whose diagonal is one: columns of any unit are alike in it."""
    diagonal = jnp.abs(jnp.diagonal(precision))
    scales = 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))
    values, vectors = jnp.linalg.eigh(scales[:, None] * precision * scales)
    return scales, values, vectors


def _newton_step(
    gradient: jax.Array, spectrum: _Spectrum, damping: jax.Array | float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """The damped step, and the decrement of the undamped one: about twice what there is to gain, infinite at a saddle.

    Eigenvalues of the curvature count by their absolute values, so that every step goes up.
    """
    scales, values, vectors = spectrum
    eps = jnp.finfo(values.dtype).eps
    sizes = jnp.maximum(jnp.abs(values), 10 * eps * jnp.max(jnp.abs(values)))
    slope = vectors.T @ (scales * gradient)
    move = scales * (vectors @ (slope / (sizes + damping)))
    return move, jnp.where(jnp.min(values) > 0, jnp.sum(slope**2 / sizes), jnp.inf)


def find_mode(
    expand: Callable[[jax.Array], Expansion],
    start: jax.Array,
    *,
    shrinkage: Sequence[float] = SHRINKAGE,
    is_exact: bool = False,
) -> Mode:
    """The mode by Newton's method from ``start``, or from a better point on the way to zero.

    A step that does not go up, as one too long, is damped. The density is written into the compiled code once.

    Args:
        expand: the log density to second order around a point.
        start: (d,).
        shrinkage: factors of the start, the best of which is where the steps begin.
        is_exact: whether to go on to the rounding of the log density, as for derivatives of the mode.
    """
    eps, dtype = jnp.finfo(start.dtype).eps, start.dtype
    factors = jnp.asarray(shrinkage, dtype)
    tries = len(shrinkage)

    def goes_on(state: _Search) -> jax.Array:
        size = 10 * eps * (1 + jnp.abs(state.expansion.value))
        enough = jnp.minimum(size, DECREMENT) if is_exact else DECREMENT
        is_near = (state.steps > tries) & (_newton_step(state.expansion.gradient, state.spectrum)[1] < enough)
        return ~is_near & (state.steps < tries + MAX_STEPS) & (state.damping < 1e12)

    def step(state: _Search) -> _Search:
        is_start = state.steps < tries
        moved = state.position + _newton_step(state.expansion.gradient, state.spectrum, state.damping)[0]
        position = jnp.where(is_start, factors[jnp.minimum(state.steps, tries - 1)] * start, moved)
        expansion = jax.tree.map(lambda leaf: leaf.astype(dtype), expand(position))
        slack = jnp.where(is_start, 0.0, 10 * eps * (1 + jnp.abs(state.expansion.value)))
        is_better = expansion.value >= state.expansion.value - slack  # false for what is not a number
        is_better &= jnp.all(jnp.isfinite(expansion.gradient)) & jnp.all(jnp.isfinite(expansion.precision))
        smaller = jnp.where(state.damping > 1e-4, state.damping / 10, 0.0)
        larger = jnp.maximum(10 * state.damping, 1e-3)
        position, expansion, spectrum = jax.tree.map(
            lambda new, old: jnp.where(is_better, new, old),
            (position, expansion, _unit_diagonal(expansion.precision)),
            (state.position, state.expansion, state.spectrum),
        )
        return _Search(
            position,
            expansion,
            spectrum,
            jnp.where(is_start, state.damping, jnp.where(is_better, smaller, larger)),
            state.steps + 1,
        )

    size = len(start)
    nothing = Expansion(jnp.asarray(-jnp.inf, dtype), jnp.zeros(size, dtype), jnp.eye(size, dtype=dtype))
    spectrum = (jnp.ones(size, dtype), jnp.ones(size, dtype), jnp.eye(size, dtype=dtype))
    begin = _Search(start, nothing, spectrum, jnp.zeros((), dtype), jnp.zeros((), jnp.int32))
    end = jax.lax.while_loop(goes_on, step, begin)
    decrement = _newton_step(end.expansion.gradient, end.spectrum)[1]
    is_found = (decrement < WORST_DECREMENT) & inverse_factor(end.expansion.precision)[1]
    return Mode(end.position, end.expansion, is_found & jnp.isfinite(end.expansion.value))


def find_best_mode(expand: Callable[[jax.Array], Expansion], starts: jax.Array, *, is_exact: bool = False) -> Mode:
    """The highest of the modes that ``find_mode`` comes to from starts (s, d); without a mode the highest point.

    A search from one start may end in a lower mode, or in a saddle: at zero a product of two parameters has a gradient
    of zero and no maximum, and a product of three a poor mode. A mode far below a point that another search reached is
    none that a Gaussian may stand around.
    """
    found = jax.lax.map(lambda start: find_mode(expand, start, is_exact=is_exact), starts)
    heights = jnp.where(jnp.isfinite(found.expansion.value), found.expansion.value, -jnp.inf)
    highest = jnp.max(heights)
    slack = NEARLY_AS_HIGH + 1e-4 * jnp.abs(highest)  # for the rounding of a sum over the data
    is_candidate = found.is_found & (heights >= highest - slack)
    is_candidate |= ~jnp.any(is_candidate)
    best = jnp.argmax(jnp.where(is_candidate, heights, -jnp.inf))
    mode = jax.tree.map(lambda leaf: leaf[best], found)
    return mode._replace(is_found=mode.is_found & (heights[best] >= highest - slack))


def inverse_factor(precision: jax.Array) -> tuple[jax.Array, jax.Array]:
    """L with L L^T the inverse of a precision, and whether that is positive definite beyond rounding."""
    scales, values, vectors = _unit_diagonal(precision)
    least = jnp.finfo(values.dtype).eps * len(values)
    is_positive = jnp.all(jnp.isfinite(values)) & (jnp.min(values) > least) & jnp.all(jnp.diagonal(precision) > 0)
    sizes = jnp.where(is_positive, jnp.maximum(values, least), 1.0)
    return scales[:, None] * vectors / jnp.sqrt(sizes), is_positive
