"""How far points are from all data: to second order at the mode, and beyond it at draws."""

from __future__ import annotations

import numpy as np

from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.subsets.curvature.density import Density, second_order_of, values_of
from pseudocoreset.subsets.curvature.mode import FullPosterior

__all__ = ["draws_of", "mismatch", "spread"]

NUM_DRAWS = 64


def mismatch(density: Density, posterior: FullPosterior, coreset: Pseudocoreset) -> float:
    """Nats to second order: |L^-1 g|^2 / 2 + |L^-1 D L^-T|^2 / 4, g and D the differences of score and curvature."""
    own = second_order_of(density, posterior.mode, _points(coreset))
    score = posterior.factor.T @ (own.gradient - posterior.likelihood.gradient)
    curvature = posterior.factor.T @ (own.curvature - posterior.likelihood.curvature) @ posterior.factor
    return float(np.sum(score**2) / 2 + np.sum(curvature**2) / 4)


def draws_of(posterior: FullPosterior, count: int = NUM_DRAWS) -> np.ndarray:
    """Draws (s, d) of the Laplace approximation, always the same."""
    noise = np.random.default_rng(0).normal(size=(count, len(posterior.mode)))
    return posterior.mode + noise @ posterior.factor.T


def spread(density: Density, posterior: FullPosterior, coreset: Pseudocoreset) -> float:
    """Standard deviation, over draws of the Laplace approximation, of the difference of the log-likelihoods in nats."""
    draws = draws_of(posterior)
    own = values_of(density, draws, _points(coreset))
    return float(np.std(own - density.values(draws)))


def _points(coreset: Pseudocoreset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    targets = np.asarray(coreset.targets)
    targets = targets if targets.dtype.kind in "iu" else targets.astype(np.float64)
    return np.asarray(coreset.packed, np.float64), targets, np.asarray(coreset.weights, np.float64)
