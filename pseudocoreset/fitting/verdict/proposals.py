"""Student-t densities about a mode, which draws for importance sampling come from."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from pseudocoreset.subsets.curvature.mode import FullPosterior

__all__ = ["Proposal"]

LEAST_DEGREES = 8.0


@dataclass(frozen=True, eq=False)
class Proposal:
    """A multivariate Student t with the mode and the curvature of a posterior.

    It has max(8, 2 d) degrees of freedom: heavier tails than a Gaussian posterior, whose importance weights then
    spread by about a third of a nat whatever d is.

    Attributes:
        mean: (d,).
        factor: (d, d), whose product with its transpose is the scale matrix.
    """

    mean: np.ndarray
    factor: np.ndarray

    @classmethod
    def about(cls, posterior: FullPosterior) -> Proposal:
        """That of a posterior to second order."""
        return cls(posterior.mode, posterior.factor)

    @property
    def degrees(self) -> float:
        """Of freedom."""
        return max(LEAST_DEGREES, 2.0 * len(self.mean))

    def draws(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Draws (count, d)."""
        normal = random.normal(size=(count, len(self.mean)))
        scale = np.sqrt(self.degrees / random.chisquare(self.degrees, size=(count, 1)))
        return self.mean + (normal * scale) @ self.factor.T

    @functools.cached_property
    def _inverse(self) -> tuple[np.ndarray, float]:
        return np.linalg.inv(self.factor), float(np.linalg.slogdet(self.factor)[1])

    def log_density(self, vectors: np.ndarray) -> np.ndarray:
        """Normalised log density at vectors (s, d): (s,)."""
        inverse, log_det = self._inverse
        d, degrees = len(self.mean), self.degrees
        # Of a vector that a trajectory lost the density is zero.
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.sum(((vectors - self.mean) @ inverse.T) ** 2, axis=1)
        norm = math.lgamma((degrees + d) / 2) - math.lgamma(degrees / 2) - d / 2 * math.log(degrees * math.pi) - log_det
        return norm - (degrees + d) / 2 * np.log1p(squares / degrees)
