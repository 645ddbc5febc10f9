"""Real points whose scores and curvatures sum to those of all data."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pseudocoreset.subsets.curvature.features import Features
from pseudocoreset.subsets.curvature.nnls import non_negative_least_squares

__all__ = ["RealPoints", "real_points"]

FIRST_CANDIDATES, GROWTH = 1000, 4
CANDIDATES_EACH = 3  # for every number to match
MOST_ELEMENTS = 2**25  # of the columns of all candidates: 256 MB
SOLVED = 1e-9  # a residual of nothing but rounding


class RealPoints(NamedTuple):
    """Points chosen among the data.

    indices
        (m,), increasing.
    weights
        (m,), positive.
    residuals
        After each round, of more candidates each.
    num_candidates
        Of the last.
    """

    indices: np.ndarray
    weights: np.ndarray
    residuals: list[float]
    num_candidates: int


def real_points(features: Features, most: int | None, rng: np.random.Generator) -> RealPoints:
    """Points by non-negative least squares among random candidates, more of them until nothing is left.

    A sum over all data is a non-negative combination of D of them (Caratheodory), so that among all data there is a
    solution. Half of the candidates are uniform. The others are drawn in proportion to the length of their scores:
    rows of a rare category, which the solution needs, are among them.

    Args:
        features: what is to be matched.
        most: points; None for what it takes.
        rng: draws the candidates.
    """
    n, target = features.density.num_data, features.target()
    largest = max(min(n, MOST_ELEMENTS // features.size), min(n, 2 * features.size))
    count = min(largest, max(FIRST_CANDIDATES, CANDIDATES_EACH * features.size))
    lengths = None if count == n else _lengths(features)
    residuals: list[float] = []
    kept = np.zeros(0, int)
    while True:
        candidates = np.union1d(kept, _drawn(n, count, lengths, rng))
        columns = features.columns(candidates)
        found = non_negative_least_squares(columns, target, tolerance=SOLVED / 10, most=most)
        residuals.append(found.residual)
        is_inside = found.weights > 0
        kept = candidates[is_inside]
        # Of a bounded number of points more candidates make little better.
        is_bounded = most is not None and len(kept) >= most
        if found.residual <= SOLVED or count >= largest or is_bounded:
            return RealPoints(kept, found.weights[is_inside], residuals, len(candidates))
        count = min(largest, GROWTH * count)


def _lengths(features: Features) -> np.ndarray:
    """Of the score of every row, in units of the posterior."""
    scores = features.density.scores(features.posterior.mode)
    return np.concatenate([np.linalg.norm(part @ features.posterior.factor, axis=1) for part in scores])


def _drawn(n: int, count: int, lengths: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    if count >= n or lengths is None:
        return np.arange(n)
    uniform = rng.choice(n, count // 2, replace=False)
    # Gumbel's trick: the largest keys are a draw without replacement in proportion to the lengths.
    keys = np.log(np.maximum(lengths, 1e-300)) + rng.gumbel(size=n)
    keys[uniform] = -np.inf
    return np.union1d(uniform, np.argpartition(-keys, count - len(uniform))[: count - len(uniform)])
