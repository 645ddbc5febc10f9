"""Distances between two samples of draws: sliced Wasserstein, energy distance, maximum mean discrepancy, Gaussian fits.

Each takes draws as rows. None of them is zero between two samples of one law: hold them against the distance of two
halves of one sample.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike

from pseudocoreset.diagnostics.formatting import json_values
from pseudocoreset.validation import check_integer, check_key, check_positive

__all__ = [
    "Distances",
    "GaussianDivergences",
    "distances",
    "energy_distance",
    "gaussian_divergences",
    "maximum_mean_discrepancy",
    "sliced_wasserstein",
]

CHUNK = 2**22  # pairwise distances held at once
NUM_PROJECTIONS = 200


def sliced_wasserstein(
    x: ArrayLike, y: ArrayLike, *, key: jax.Array, num_projections: int = NUM_PROJECTIONS, order: int = 2
) -> float:
    """Sliced Wasserstein distance (Bonneel et al. 2015).

    (mean over directions v of W_p(<v, x>, <v, y>)^p)^(1/p), v uniform on the sphere; exact in one dimension.

    Args:
        x: draws (s, d).
        y: draws (t, d).
        key: one typed key, for the directions.
        num_projections: directions; one is enough in one dimension.
        order: p, 1 or 2.

    Raises:
        ValueError: for shapes that do not go together, or another order.
    """
    x, y = _checked(x, y)
    check_key(key)
    check_integer(num_projections, "num_projections")
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2; got {order}")
    directions = _directions(key, x.shape[1], num_projections)
    return _projected_wasserstein(x @ directions, y @ directions, order)


def _directions(key: jax.Array, dimension: int, count: int) -> np.ndarray:
    directions = np.asarray(jax.random.normal(key, (dimension, 1 if dimension == 1 else count)), np.float64)
    return directions / np.linalg.norm(directions, axis=0)


def _projected_wasserstein(one: np.ndarray, other: np.ndarray, order: int) -> float:
    """From draws along each direction, (s, directions) and (t, directions)."""
    s, t = len(one), len(other)
    one, other = np.sort(one, axis=0), np.sort(other, axis=0)
    # Both quantile functions are steps: between two neighbouring ends the integrand is constant.
    ends = np.union1d(np.arange(1, s + 1) * t, np.arange(1, t + 1) * s)  # in units of 1 / (s t), exact
    widths = np.diff(ends, prepend=0) / (s * t)
    left, right = (ends - 1) // t, (ends - 1) // s
    powers = np.abs(one[left] - other[right]) ** order
    return float(np.mean(widths @ powers) ** (1 / order))


def energy_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Energy distance (Szekely and Rizzo 2013), 2 E|X - Y| - E|X - X'| - E|Y - Y'|, in the units of the draws.

    Args:
        x: draws (s, d), two at least.
        y: draws (t, d), two at least.

    Returns:
        The unbiased estimate, which may be a little below zero where the laws are close.
    """
    x, y = _checked(x, y, least=2)
    return _energy(*_PairMeans(x, y, np.sqrt)())


def maximum_mean_discrepancy(x: ArrayLike, y: ArrayLike, *, bandwidth: float | None = None) -> float:
    """Squared maximum mean discrepancy (Gretton et al. 2012) with the kernel exp(-|x - y|^2 / (2 h^2)).

    Args:
        x: draws (s, d), two at least.
        y: draws (t, d), two at least.
        bandwidth: h; by default the median distance of two draws of ``x``. Compare figures of one bandwidth only.

    Returns:
        The unbiased estimate, which may be a little below zero where the laws are close.
    """
    x, y = _checked(x, y, least=2)
    h = median_distance(x) if bandwidth is None else check_positive(bandwidth, "bandwidth")
    return _discrepancy(*_PairMeans(x, y, _kernel(h))())


def median_distance(x: ArrayLike, most: int = 1000) -> float:
    """Median distance of two draws, of at most ``most`` of them at even spacing; 1 where they are all the same."""
    draws = np.asarray(x, np.float64)
    draws = draws[np.linspace(0, len(draws) - 1, min(len(draws), most)).astype(int)]
    squares = _squared_distances(draws, draws)[np.triu_indices(len(draws), 1)]
    return float(np.sqrt(np.median(squares))) or 1.0


@dataclasses.dataclass(frozen=True)
class Distances:
    """Distances of one sample of draws from another, comparable between dimensions.

    Attributes:
        sliced_wasserstein: Of order two, times the root of the dimension: a shift of every coordinate by one is one.
        energy: Energy distance of the draws over the root of the dimension.
        mmd: Squared maximum mean discrepancy, the bandwidth the median distance of two draws of the reference.
        sliced_wasserstein_standard_error: Over the draws, by leaving out one group of them at a time.
        energy_standard_error: Likewise.
        mmd_standard_error: Likewise.
    """

    sliced_wasserstein: float
    energy: float
    mmd: float
    sliced_wasserstein_standard_error: float | None = None
    energy_standard_error: float | None = None
    mmd_standard_error: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The values by name, ready for JSON."""
        return json_values(dataclasses.asdict(self))


def distances(
    reference: ArrayLike,
    other: ArrayLike,
    *,
    key: jax.Array,
    bandwidth: float | None = None,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
) -> Distances:
    """All distances of two samples.

    Args:
        reference: draws (s, d), two at least.
        other: draws (t, d), two at least.
        key: one typed key, for the directions of the sliced Wasserstein distance.
        bandwidth: of the kernel, on the draws over sqrt(d); by default that of ``reference``.
        groups: integers (s,) and (t,) from zero, such as the chain of each draw: standard errors are from leaving
            out one group at a time (the jackknife), of either sample. Draws of different groups must be independent.
    """
    x, y = _checked(reference, other, least=2)
    root = float(np.sqrt(x.shape[1]))
    x, y = x / root, y / root
    h = median_distance(x) if bandwidth is None else check_positive(bandwidth, "bandwidth")
    check_key(key)
    labels = (np.zeros(len(x), int), np.zeros(len(y), int)) if groups is None else groups
    directions = _directions(key, x.shape[1], NUM_PROJECTIONS)
    along_x, along_y = x @ directions, y @ directions
    roots, kernels = _PairMeans(x, y, np.sqrt, *labels), _PairMeans(x, y, _kernel(h), *labels)

    def values(keep_x: np.ndarray, keep_y: np.ndarray) -> np.ndarray:
        kept = along_x[keep_x[labels[0]]], along_y[keep_y[labels[1]]]
        # E <v, delta>^2 = |delta|^2 / d over directions v.
        sliced = root * _projected_wasserstein(*kept, order=2)
        return np.array([sliced, _energy(*roots(keep_x, keep_y)), _discrepancy(*kernels(keep_x, keep_y))])

    whole = np.ones(labels[0].max() + 1, bool), np.ones(labels[1].max() + 1, bool)
    errors = jackknife(values, labels)
    return Distances(*values(*whole).tolist(), *([] if errors is None else errors.tolist()))


def jackknife(
    values: Callable[[np.ndarray, np.ndarray], np.ndarray], groups: tuple[np.ndarray, np.ndarray]
) -> np.ndarray | None:
    """Standard errors of a function of two samples by leaving out one group of draws at a time, of either.

    Args:
        values: of the groups kept of each sample, (number of groups,) bool.
        groups: integers from zero, the group of each draw.

    Returns:
        Standard errors; None where a sample has one group, or fewer than two draws would be left of it.
    """
    counts = [np.bincount(labels) for labels in groups]
    if any(len(count) < 2 or count.sum() - count.max() < 2 for count in counts):
        return None
    everything = [np.ones(len(count), bool) for count in counts]
    variance: Any = 0.0
    for side, count in enumerate(counts):
        number = len(count)
        left_out = []
        for group in range(number):
            keep = list(everything)
            keep[side] = np.arange(number) != group
            left_out.append(values(*keep))
        variance = variance + (number - 1) * np.var(left_out, axis=0)
    return np.sqrt(variance)


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


def gaussian_divergences(x: ArrayLike, y: ArrayLike) -> GaussianDivergences:
    """Moments and KL divergences of Gaussian fits, for models of few parameters.

    Args:
        x: draws (s, d) of the reference, more than d + 1 of them.
        y: draws (t, d), likewise.

    Raises:
        ValueError: for fewer draws, whose covariance is singular.
    """
    x, y = _checked(x, y)
    d = x.shape[1]
    for name, draws in (("x", x), ("y", y)):
        if len(draws) <= d + 1:
            raise ValueError(
                f"{name} must have more than {d + 1} draws for a covariance of {d} x {d}; got {len(draws)}"
            )
    means = x.mean(0), y.mean(0)
    covariances = [np.cov(draws, rowvar=False).reshape(d, d) for draws in (x, y)]

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


def _checked(x: ArrayLike, y: ArrayLike, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    one, other = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise ValueError(f"x and y must be draws (s, d) and (t, d); got shapes {one.shape} and {other.shape}")
    if min(len(one), len(other)) < least:
        raise ValueError(f"x and y must have at least {least} draws; got {len(one)} and {len(other)}")
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise ValueError("x and y must be finite")
    return one, other


class _PairMeans:
    """Means over pairs of x and y, and over pairs of two different rows of x and of y; of all groups, or of some."""

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        of_squares: Callable[[np.ndarray], np.ndarray],
        x_groups: np.ndarray | None = None,
        y_groups: np.ndarray | None = None,
    ) -> None:
        members = [
            np.ones((len(rows), 1)) if groups is None else np.eye(groups.max() + 1)[groups]
            for rows, groups in ((x, x_groups), (y, y_groups))
        ]
        same = float(of_squares(np.zeros(1))[0])  # what a row has with itself
        self.counts = [member.sum(0) for member in members]
        self.cross = _group_sums(x, y, of_squares, members[0], members[1])
        self.within = [
            _group_sums(rows, rows, of_squares, member, member) - same * np.diag(count)
            for rows, member, count in ((x, members[0], self.counts[0]), (y, members[1], self.counts[1]))
        ]

    def __call__(
        self, keep_x: np.ndarray | None = None, keep_y: np.ndarray | None = None
    ) -> tuple[float, float, float]:
        kept = [
            np.ones(len(count)) if keep is None else keep.astype(float)
            for count, keep in zip(self.counts, (keep_x, keep_y), strict=True)
        ]
        s, t = (float(count @ keep) for count, keep in zip(self.counts, kept, strict=True))
        within_x, within_y = (keep @ sums @ keep for sums, keep in zip(self.within, kept, strict=True))
        cross = kept[0] @ self.cross @ kept[1]
        return float(cross) / (s * t), float(within_x) / (s * (s - 1)), float(within_y) / (t * (t - 1))


def _energy(cross: float, within_x: float, within_y: float) -> float:
    return float(2 * cross - within_x - within_y)


def _discrepancy(cross: float, within_x: float, within_y: float) -> float:
    return float(within_x + within_y - 2 * cross)


def _kernel(h: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda squares: np.exp(-0.5 * squares / h**2)


def _group_sums(
    a: np.ndarray, b: np.ndarray, of_squares: Callable[[np.ndarray], np.ndarray], in_a: np.ndarray, in_b: np.ndarray
) -> np.ndarray:
    """Sums over pairs of a row of each, by group of a and group of b; memberships are one-hot."""
    rows = max(1, CHUNK // len(b))
    parts = (slice(i, i + rows) for i in range(0, len(a), rows))
    return sum(in_a[part].T @ of_squares(_squared_distances(a[part], b)) @ in_b for part in parts)


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # About the mean, so that little is lost to cancellation.
    centre = b.mean(0)
    a, b = a - centre, b - centre
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.maximum(squares, 0.0)
