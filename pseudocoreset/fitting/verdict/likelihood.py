"""The log-likelihood of all data at many draws, from all rows or from some with a control variate."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pseudocoreset.subsets.curvature.density import Density, SecondOrder
from pseudocoreset.subsets.curvature.mode import FullPosterior

__all__ = ["FullValues", "full_values"]

MOST_EVALUATIONS = 5 * 10**7  # rows times draws
LEAST_ROWS = 10_000
NUM_BLOCKS = 10


class FullValues(NamedTuple):
    """Log-likelihoods of all data at draws.

    values
        (s,).
    without
        (blocks, s): the same, each without one block of the rows; empty where they come from all rows.
    num_rows
        That they come from.
    """

    values: np.ndarray
    without: np.ndarray
    num_rows: int


def full_values(
    density: Density,
    posterior: FullPosterior,
    vectors: np.ndarray,
    random: np.random.Generator,
    most: int = MOST_EVALUATIONS,
) -> FullValues:
    """Log-likelihoods of all data at draws (s, d).

    Up to ``most`` rows times draws all rows are summed, and 10,000 rows in any case. Beyond, with T the expansion to
    second order at the mode,

        L(theta)  ~  T_all(theta) + n / b * sum_{i in b rows} { l_i(theta) - T_i(theta) },

    for random rows in ten blocks: the remainder is of third order, and small about the mode.

    Args:
        density: of the data.
        posterior: to second order, from all rows.
        vectors: the draws.
        random: of the rows.
        most: rows times draws.
    """
    n, count = density.num_data, len(vectors)
    num_rows = max(LEAST_ROWS, most // count)
    if num_rows >= n:
        return FullValues(density.values(vectors), np.zeros((0, count)), n)
    size = num_rows // NUM_BLOCKS
    chosen = random.choice(n, size=size * NUM_BLOCKS, replace=False).reshape(NUM_BLOCKS, size)
    moves = vectors - posterior.mode
    parts = np.stack([_remainder(density, posterior.mode, vectors, moves, np.sort(block)) for block in chosen])
    whole = _expanded(posterior.likelihood, moves)
    total = parts.sum(0)
    values = whole + n / chosen.size * total
    without = whole + n / (chosen.size - size) * (total - parts)
    return FullValues(values, without, chosen.size)


def _remainder(
    density: Density, mode: np.ndarray, vectors: np.ndarray, moves: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    return density.values(vectors, rows) - _expanded(density.likelihood(mode, rows), moves)


def _expanded(at: SecondOrder, moves: np.ndarray) -> np.ndarray:
    """The quadratic at moves (s, d) away."""
    return at.value + moves @ at.gradient - 0.5 * np.einsum("sd,sd->s", moves @ at.curvature, moves)
