"""Divergences between the Gaussians of the same moments as the draws."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike

from pseudocoreset.arguments import checked
from pseudocoreset.diagnostics.distances.samples import samples

__all__ = ["GaussianDivergences", "gaussian_divergences"]


class GaussianDivergences(NamedTuple):
    """Between the Gaussians of the same mean and covariance as the draws, in nats; mean differences in deviations.

    Attributes:
        forward: KL(x || y).
        reverse: KL(y || x).
        mean_difference: root mean square over dimensions of (mean_y - mean_x) / deviation of x.
        variance_ratio: geometric mean over dimensions of the variance of y over that of x.
    """

    forward: float
    reverse: float
    mean_difference: float
    variance_ratio: float


@checked
def gaussian_divergences(x: ArrayLike, y: ArrayLike) -> GaussianDivergences:
    """Moments and KL divergences of Gaussian fits, for models of few parameters.

    Args:
        x: draws (s, d) or (chain, draw, d) of the reference, more than d + 1 of them.
        y: draws (t, d) or (chain, draw, d), likewise.

    Raises:
        ValueError: for fewer draws. ``numpy.linalg.LinAlgError``, a ValueError, where columns do not move or determine
            one another: the covariance has no inverse then.
    """
    one, other = samples(x, y)
    x, y = one.draws, other.draws
    d = x.shape[1]
    for name, draws in (("x", x), ("y", y)):
        if len(draws) <= d + 1:
            raise ValueError(
                f"{name} must have more than {d + 1} draws for a covariance of {d} x {d}; got {len(draws)}"
            )
    means = x.mean(0), y.mean(0)
    covariances = [_covariance(draws, name) for name, draws in (("x", x), ("y", y))]

    def kl(a: int, b: int) -> float:
        factor = scipy.linalg.cho_factor(covariances[b], lower=True)
        gap = means[b] - means[a]
        determinants = 2 * np.log(np.diag(factor[0])).sum() - np.linalg.slogdet(covariances[a])[1]
        trace = np.trace(scipy.linalg.cho_solve(factor, covariances[a]))
        return float(0.5 * (trace - d + gap @ scipy.linalg.cho_solve(factor, gap) + determinants))

    variances = [np.diag(covariance) for covariance in covariances]
    return GaussianDivergences(
        forward=kl(0, 1),
        reverse=kl(1, 0),
        mean_difference=float(np.sqrt(np.mean((means[1] - means[0]) ** 2 / variances[0]))),
        variance_ratio=float(np.exp(np.mean(np.log(variances[1] / variances[0])))),
    )


def _covariance(draws: np.ndarray, name: str) -> np.ndarray:
    """The covariance (d, d) of draws (s, d), if it has an inverse whatever the units of the columns."""
    d = draws.shape[1]
    covariance = np.cov(draws, rowvar=False).reshape(d, d)
    deviations = np.sqrt(np.diag(covariance))
    still = np.flatnonzero(deviations <= d * np.finfo(float).eps * np.abs(draws).max(axis=0))
    if len(still):
        raise np.linalg.LinAlgError(
            f"{name}: its draws do not move in columns {still.tolist()}; leave these out on both sides"
        )
    smallest = np.linalg.eigvalsh(covariance / np.outer(deviations, deviations))[0]
    if smallest <= 100 * d * np.finfo(float).eps:
        raise np.linalg.LinAlgError(
            f"{name}: some columns of its draws determine the others, as with probabilities that sum to one; leave one "
            "of these out on both sides"
        )
    return covariance
