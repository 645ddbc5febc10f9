"""The mode of the posterior of all data, by Newton's method on sums over chunks of rows."""

from __future__ import annotations

import jax
import numpy as np

from pseudocoreset.newton import SHRINKAGE
from pseudocoreset.proxies.laplace import starts_of_search
from pseudocoreset.subsets.curvature.density import Density, SecondOrder

__all__ = ["FullPosterior", "NoCurvatureError", "full_posterior", "posterior_from"]

FIRST_ROWS = 5000  # on which the search starts, and tells modes apart
GROWTH = 20  # of the rows from one search to the next
MAX_PASSES = 60  # over all rows
MAX_STEPS = 300  # on a few
NEARLY_AS_HIGH = 1.0  # nats
DECREMENT = {True: 1e-12, False: 1e-4}  # nats to gain by another step, in float64 and in float32
WORST_DECREMENT = 1e-2  # that still serve where rounding ends the search
LEAST_EIGENVALUE = 1e-13  # of the curvature over its diagonal

NO_MODE = (
    "the posterior of the full data has no mode that Newton's method finds{where}. The method matches the curvature "
    "there. A flat prior with a separated class, a scale that goes to zero, or too few rows for the parameters leave "
    "none: take narrower priors, or a method that needs no mode, coreset = fit_bpc_rkl or fit_random"
)


class NoCurvatureError(ValueError):
    """A posterior without a mode at which it has a positive definite curvature; the text says what to do."""


class FullPosterior:
    """The posterior of all data to second order at its mode.

    Attributes:
        mode: (d,).
        likelihood: the log-likelihood of all data there.
        prior: the log prior there.
        factor: L^-T (d, d), whose columns are directions of one standard deviation: L L^T = the curvature of both.
    """

    def __init__(self, mode: np.ndarray, likelihood: SecondOrder, prior: SecondOrder) -> None:
        self.mode, self.likelihood, self.prior = mode, likelihood, prior
        factor = _inverse_factor(likelihood.curvature + prior.curvature)
        assert factor is not None
        self.factor = factor


def full_posterior(density: Density, key: jax.Array) -> FullPosterior:
    """The mode, and the curvature there.

    A search from four starts on at most 5,000 rows finds which mode is the highest; its end is where the next search
    starts, on twenty times as many rows, and so on to all.

    Raises:
        NoCurvatureError: if there is no mode, or the curvature there is singular.
    """
    n, rows = density.num_data, FIRST_ROWS
    vector = _start(density, key)
    while rows * GROWTH < n:
        rows *= GROWTH
        vector, _, _, _ = _climb(density, vector, density.some_rows(rows), MAX_PASSES)
    return posterior_from(density, vector)


def posterior_from(density: Density, start: np.ndarray) -> FullPosterior:
    """The mode that a search on all rows from ``start`` ends in, and the curvature there.

    Raises:
        NoCurvatureError: if there is no mode, or the curvature there is singular.
    """
    vector, likelihood, prior, decrement = _climb(density, start, None, MAX_PASSES)
    where = ""
    if _inverse_factor(likelihood.curvature + prior.curvature) is None:
        where = ": the curvature where it ended is singular or not positive"
    elif not decrement < WORST_DECREMENT:
        where = f": it ended where another step would still gain {decrement / 2:.3g} nats"
    if where:
        raise NoCurvatureError(f"model {density.model.name!r}: " + NO_MODE.format(where=where))
    return FullPosterior(vector, likelihood, prior)


def _start(density: Density, key: jax.Array) -> np.ndarray:
    """The best end of searches on a few rows."""
    indices = density.some_rows(FIRST_ROWS)
    ends = []
    for start in np.asarray(starts_of_search(density.model, key), np.float64):
        shrunk = _shrunk(density, start, indices)
        if shrunk is not None:
            ends.append(_climb(density, shrunk, indices, MAX_STEPS))
    if not ends:
        raise NoCurvatureError(
            f"model {density.model.name!r}: the log density of the data is not finite at any start of the search for "
            "the mode. Bring columns to a like scale, or take narrower priors"
        )
    heights = np.array([end[1].value + end[2].value for end in ends])
    # One whose search has ended, if it is nearly as high as any.
    is_ended = np.array([end[3] < WORST_DECREMENT for end in ends]) & (heights > heights.max() - NEARLY_AS_HIGH)
    return ends[int(np.argmax(np.where(is_ended | ~is_ended.any(), heights, -np.inf)))][0]


def _shrunk(density: Density, start: np.ndarray, indices: np.ndarray) -> np.ndarray | None:
    """The best point on the way from a start to zero: on raw scales a start of order one may be far outside."""
    points = np.stack([factor * start for factor in (SHRINKAGE if np.any(start) else (1.0,))])
    scale = density.num_data / len(indices)
    priors = np.array([density.prior(point).value for point in points])
    heights = priors + scale * density.values(points, indices)
    heights = np.where(np.isfinite(heights), heights, -np.inf)
    return None if np.isneginf(heights).all() else points[int(np.argmax(heights))]


def _climb(
    density: Density, vector: np.ndarray, indices: np.ndarray | None, most: int
) -> tuple[np.ndarray, SecondOrder, SecondOrder, float]:
    """Damped Newton steps on some rows; where they end, the two densities there, and the decrement."""

    def expand(where: np.ndarray) -> tuple[SecondOrder, SecondOrder]:
        likelihood = density.likelihood(where, indices)
        scale = 1.0 if indices is None else density.num_data / len(indices)
        return likelihood.times(scale), density.prior(where)

    parts = expand(vector)
    damping = 0.0
    for _ in range(most):
        both = parts[0].plus(parts[1])
        step, decrement = _newton_step(both, damping)
        if decrement < DECREMENT[density.is_double] or damping > 1e12:
            break
        tried = expand(vector + step)
        new = tried[0].plus(tried[1])
        slack = 1e-12 * (1 + abs(both.value))
        is_better = new.value >= both.value - slack and all(np.all(np.isfinite(part)) for part in new)
        if is_better:
            vector, parts = vector + step, tried
            damping = damping / 10 if damping > 1e-4 else 0.0
        else:
            damping = max(10 * damping, 1e-3)
    decrement = _newton_step(parts[0].plus(parts[1]), 0.0)[1]
    return vector, *parts, decrement


def _spectrum(curvature: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scales s, eigenvalues and eigenvectors of s P s, whose diagonal is one: parameters of any unit are alike."""
    diagonal = np.abs(np.diagonal(curvature))
    scales = 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    values, vectors = np.linalg.eigh(scales[:, None] * curvature * scales)
    return scales, values, vectors


def _newton_step(at: SecondOrder, damping: float) -> tuple[np.ndarray, float]:
    """The damped step, which always goes up, and the decrement of the undamped one; infinite at a saddle."""
    scales, values, vectors = _spectrum(at.curvature)
    sizes = np.maximum(np.abs(values), 1e-15 * np.max(np.abs(values)))
    slope = vectors.T @ (scales * at.gradient)
    move = scales * (vectors @ (slope / (sizes + damping)))
    return move, float(np.sum(slope**2 / sizes)) if values.min() > 0 else np.inf


def _inverse_factor(curvature: np.ndarray) -> np.ndarray | None:
    """W with W W' the inverse of the curvature; None where that is not positive definite beyond rounding."""
    if not np.all(np.isfinite(curvature)) or not np.all(np.diagonal(curvature) > 0):
        return None
    scales, values, vectors = _spectrum(curvature)
    if values.min() <= LEAST_EIGENVALUE * len(values):
        return None
    return scales[:, None] * vectors / np.sqrt(values)
