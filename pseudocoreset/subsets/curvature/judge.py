"""How far points are from all data: to second order at the mode, and beyond it at draws."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.subsets.curvature.density import Density, points_of, second_order_of, values_of
from pseudocoreset.subsets.curvature.mode import FullPosterior

__all__ = ["Judge"]

NUM_DRAWS = 64


@dataclass(frozen=True, eq=False)
class Judge:
    """Compares points with all data.

    Attributes:
        density: of the data.
        posterior: of all data.
    """

    density: Density
    posterior: FullPosterior

    @functools.cached_property
    def draws(self) -> np.ndarray:
        """Draws (s, d) of the Laplace approximation, always the same."""
        return self.draws_of(NUM_DRAWS, 0)

    def draws_of(self, count: int, seed: int) -> np.ndarray:
        """Draws (count, d) of the Laplace approximation."""
        noise = np.random.default_rng(seed).normal(size=(count, len(self.posterior.mode)))
        return self.posterior.mode + noise @ self.posterior.factor.T

    @functools.cached_property
    def values(self) -> np.ndarray:
        """Log-likelihoods of all data at the draws, (s,)."""
        return self.density.values(self.draws)

    def mismatch(self, coreset: Pseudocoreset) -> float:
        """|L^-1 g|^2 / 2 + |L^-1 D L^-T|^2 / 4 of the differences of score and curvature; nats, where it is small."""
        of_all, factor = self.posterior.likelihood, self.posterior.factor
        own = second_order_of(self.density, self.posterior.mode, points_of(coreset))
        score = factor.T @ (own.gradient - of_all.gradient)
        curvature = factor.T @ (own.curvature - of_all.curvature) @ factor
        return float(np.sum(score**2) / 2 + np.sum(curvature**2) / 4)

    def spread(self, coreset: Pseudocoreset) -> float:
        """Standard deviation over the draws of the difference of the two log-likelihoods, in nats."""
        return float(np.std(values_of(self.density, self.draws, points_of(coreset)) - self.values))
