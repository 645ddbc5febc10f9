"""Scores and curvatures of rows as columns of numbers that a weighted sum is to match."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pseudocoreset.subsets.curvature.density import Density
from pseudocoreset.subsets.curvature.mode import FullPosterior

__all__ = ["Features", "features_for"]

# What is left over, squared, is a divergence in nats to second order: |score|^2 / 2 + |curvature|^2 / 4.
OF_SCORE, OF_CURVATURE = np.sqrt(0.5), 0.5
OF_MASS = 1e-2  # of the sum of the weights over n, which the posterior does not depend on
DENSE, MOST = 800, 2000  # numbers of a row that are matched: of all pairs of parameters; at most
PATTERN_ROWS = 2000  # that show which pairs of parameters meet in a row
NOTHING = 1e-14  # of the curvature over its diagonal


@dataclass(frozen=True, eq=False)
class Features:
    """What is matched of every row: its score, some numbers of its curvature, and that it is there.

    Attributes:
        density: of the rows.
        posterior: of all data.
        directions: (d, d), columns in which score and curvature are told.
        pairs: places (2, k) of the numbers of the curvature that are matched, the first not above the second.
        is_exact: whether all of the curvature follows from them.
    """

    density: Density
    posterior: FullPosterior
    directions: np.ndarray
    pairs: np.ndarray
    is_exact: bool

    @property
    def size(self) -> int:
        """Numbers of a row D."""
        return self.density.num_params + self.pairs.shape[1] + 1

    def target(self) -> np.ndarray:
        """The sum over all rows, (D,)."""
        of_all = self.posterior.likelihood
        score = of_all.gradient @ self.directions
        curvature = self.directions.T @ of_all.curvature @ self.directions
        return self._joined(score[None], curvature[None], 1.0)[0]

    def columns(self, indices: np.ndarray) -> np.ndarray:
        """Those of some rows, (D, b)."""
        at = self.posterior.mode
        scores = np.concatenate(list(self.density.scores(at, indices))) @ self.directions
        found, first = np.empty((self.size, len(indices))), 0
        for curvatures in self.density.curvatures(at, indices, self.directions):
            last = first + len(curvatures)
            found[:, first:last] = self._joined(scores[first:last], curvatures, 1 / self.density.num_data).T
            first = last
        return found

    def _joined(self, scores: np.ndarray, curvatures: np.ndarray, mass: float) -> np.ndarray:
        one, two = self.pairs
        # The length of what is kept of a symmetric matrix is its own: what is off the diagonal counts twice.
        kept = curvatures[:, one, two] * np.where(one == two, OF_CURVATURE, np.sqrt(2) * OF_CURVATURE)
        return np.concatenate([OF_SCORE * scores, kept, np.full((len(scores), 1), OF_MASS * mass)], axis=1)


def features_for(density: Density, posterior: FullPosterior) -> Features:
    """The features that tell most within ``MOST`` numbers.

    All pairs of directions of the posterior, if they are few. Else the pairs of parameters that meet in some row: in a
    hierarchy a row has one group, and most pairs meet in none. Else the directions that the data determine best.
    """
    d, whitened = density.num_params, posterior.factor
    dense = d + d * (d + 1) // 2 + 1
    if dense <= DENSE:
        return Features(density, posterior, whitened, np.stack(np.triu_indices(d)), True)
    scales, pairs = _pattern(density, posterior)
    if d + pairs.shape[1] + 1 <= min(MOST, 2 * dense // 3):
        return Features(density, posterior, np.diag(scales), pairs, True)
    if dense <= MOST:
        return Features(density, posterior, whitened, np.stack(np.triu_indices(d)), True)
    # Directions that the prior alone determines have no curvature of the data to match: they come last.
    shares, vectors = np.linalg.eigh(whitened.T @ posterior.likelihood.curvature @ whitened)
    directions = whitened @ vectors[:, np.argsort(-np.abs(shares))]
    leading = max(int((np.sqrt(8.0 * max(MOST - 2 * d - 1, 0) + 1) - 1) / 2), 1)
    one, two = np.triu_indices(d)
    kept = (one == two) | (two < leading)
    return Features(density, posterior, directions, np.stack([one[kept], two[kept]]), False)


def _pattern(density: Density, posterior: FullPosterior) -> tuple[np.ndarray, np.ndarray]:
    """Scales (d,) of the parameters, and the pairs of them that meet in the curvature of some row."""
    curvature = posterior.likelihood.curvature
    scales = 1 / np.sqrt(np.diagonal(curvature + posterior.prior.curvature))
    meets = np.abs(scales[:, None] * curvature * scales) > NOTHING
    # Where the sum over all rows is zero that of a few need not be.
    indices = density.some_rows(PATTERN_ROWS)
    for found in density.curvatures(posterior.mode, indices, np.diag(scales)):
        meets |= np.any(found != 0, axis=0)
    one, two = np.nonzero(np.triu(meets))
    return scales, np.stack([one, two])
