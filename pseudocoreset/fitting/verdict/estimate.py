"""Both divergences between two posteriors from draws, by importance sampling, with standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from pseudocoreset.diagnostics.distances.reweighting import pareto_smoothed
from pseudocoreset.fitting.verdict.draws import PointDraws
from pseudocoreset.fitting.verdict.level import Nats

__all__ = ["Divergences", "Stratum", "divergences"]


@dataclass(frozen=True, eq=False)
class Stratum:
    """Draws of one density, and three log densities at them.

    Attributes:
        points: of the posterior of the points, without its normaliser.
        full: of the full posterior, without its normaliser.
        proposal: of the proposal about the mode of the full posterior, normalised.
        without: (blocks, s), of the full posterior, each without one block of rows.
        efficiency: independent draws that one draw is worth.
    """

    points: np.ndarray
    full: np.ndarray
    proposal: np.ndarray
    without: np.ndarray
    efficiency: float = 1.0


@dataclass(frozen=True)
class Divergences:
    """What draws say of two posteriors.

    Attributes:
        to_full: KL(points || full).
        from_full: KL(full || points).
        full_tail: tail index of the weights of the draws of the full posterior.
    """

    to_full: Nats
    from_full: Nats
    full_tail: float


@dataclass(frozen=True, eq=False)
class _Both:
    """Draws of both strata together, under the mixture p = a c / Z_c + (1 - a) q that they are drawn from.

    c is the density of the points and q the proposal about the mode of the full posterior. With w_c, w_f the
    weights c / p and f / p, of mean one,

        KL(c || f) = mean(w_c (log c - log f)) + log Z_f / Z_c,
        KL(f || c) = mean(w_f (log f - log c)) - log Z_f / Z_c.

    Where c is near f the errors of weights cancel, and what is left is of second order in their difference.
    """

    points: np.ndarray
    full: np.ndarray
    proposal: np.ndarray
    log_norm: float
    sizes: tuple[int, int]
    efficiencies: tuple[float, float]

    def weights(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Logarithms of w_c and w_f, and log Z_f / Z_c."""
        share = self.sizes[0] / sum(self.sizes)
        mixture = np.logaddexp(
            math.log(share) + self.points - self.log_norm,
            math.log1p(-share) + self.proposal,
        )
        of_points, of_full = self.points - mixture, self.full - mixture
        norms = [float(np.logaddexp.reduce(each)) - math.log(len(each)) for each in (of_points, of_full)]
        return of_points - norms[0], of_full - norms[1], norms[1] - norms[0]

    def estimate(self) -> tuple[np.ndarray, np.ndarray]:
        """Both divergences (2,), and the influence of every draw on each (2, s)."""
        of_points, of_full, log_ratio = self.weights()
        weights, others = np.exp(of_points), np.exp(of_full)
        difference = self.full - self.points
        here = np.where(weights > 0, difference, 0.0)
        there = np.where(others > 0, difference, 0.0)
        means = -np.mean(weights * here), np.mean(others * there)
        found = np.array([means[0] + log_ratio, means[1] - log_ratio])
        influences = np.stack(
            [
                weights * (-here - means[0]) + others - weights,
                others * (there - means[1]) - others + weights,
            ]
        )
        return found, influences

    def variance(self, influences: np.ndarray) -> np.ndarray:
        """Of the two estimates, (2,), from draws of two strata."""
        first, second = np.split(influences, [self.sizes[0]], axis=1)
        total = sum(self.sizes)
        return np.asarray(
            sum(
                part.shape[1] * np.var(part, axis=1, ddof=1) / efficiency / total**2
                for part, efficiency in zip((first, second), self.efficiencies, strict=True)
            )
        )


def divergences(points: Stratum, full: Stratum, drawn: PointDraws) -> Divergences:
    """Both divergences.

    Args:
        points: draws of the posterior of the points.
        full: draws of the proposal about the mode of the full posterior.
        drawn: the draws of the points, for their normaliser.
    """
    both = _Both(
        np.concatenate([points.points, full.points]),
        _known(np.concatenate([points.full, full.full])),
        np.concatenate([points.proposal, full.proposal]),
        drawn.log_norm,
        (len(points.points), len(full.points)),
        (points.efficiency, full.efficiency),
    )
    with np.errstate(over="ignore", invalid="ignore"):
        found, influences = both.estimate()
        variance = both.variance(influences)
        moved = replace(both, log_norm=drawn.log_norm + drawn.log_norm_error).estimate()[0]
        variance = variance + (moved - found) ** 2
        without = np.concatenate([points.without, full.without], axis=1)
        if len(without):
            parts = np.stack([replace(both, full=_known(each)).estimate()[0] for each in without])
            variance = variance + (len(parts) - 1) * np.var(parts, axis=0)
    # Infinite where the full posterior rules draws of the points out.
    nats = [Nats(float(v), math.sqrt(s) if s >= 0 else math.nan) for v, s in zip(found, variance, strict=True)]
    return Divergences(nats[0], nats[1], pareto_smoothed(both.weights()[1])[1])


def _known(log_density: np.ndarray) -> np.ndarray:
    """Without density where it is no number."""
    return np.where(np.isnan(log_density), -np.inf, log_density)
