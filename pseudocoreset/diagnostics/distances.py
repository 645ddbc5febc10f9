"""Distances between two samples of draws: sliced Wasserstein, energy distance, maximum mean discrepancy, Gaussian fits.

Each takes draws as rows, or chains of draws. None of them is zero between two samples of one law: hold them against
what two samples of one law give (``noise.distance_noise``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike

from pseudocoreset.arguments import checked
from pseudocoreset.data.coercion import as_numbers
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


@checked
def sliced_wasserstein(
    x: ArrayLike, y: ArrayLike, *, key: jax.Array, num_projections: int = NUM_PROJECTIONS, order: int = 2
) -> float:
    """Sliced Wasserstein distance (Bonneel et al. 2015).

    (mean over directions v of W_p(<v, x>, <v, y>)^p)^(1/p), v uniform on the sphere; exact in one dimension.

    Args:
        x: draws (s, d) or (chain, draw, d).
        y: draws (t, d) or (chain, draw, d).
        key: one typed key, for the directions.
        num_projections: directions; one is enough in one dimension.
        order: p, 1 or 2.

    Raises:
        ValueError: for shapes that do not go together, or another order.
    """
    one, other = _samples(x, y)
    check_key(key)
    check_integer(num_projections, "num_projections")
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2; got {order}")
    directions = _directions(key, one.draws.shape[1], num_projections)
    return _projected_wasserstein(one.draws @ directions, other.draws @ directions, order)


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


@checked
def energy_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Energy distance (Szekely and Rizzo 2013), 2 E|X - Y| - E|X - X'| - E|Y - Y'|, in the units of the draws.

    X and X' must be independent. Of several chains only draws of different chains are paired; of one chain, in the
    order of its draws, those that are three autocorrelation times apart.

    Args:
        x: draws (s, d) of one chain, or (chain, draw, d); two at least.
        y: draws (t, d) or (chain, draw, d), likewise.

    Returns:
        The unbiased estimate, which may be a little below zero where the laws are close. Of a single chain of fewer
        than six autocorrelation times it is biased upwards.
    """
    one, other = _samples(x, y, least=2)
    return _energy(*_PairMeans(one, other, np.sqrt)())


@checked
def maximum_mean_discrepancy(x: ArrayLike, y: ArrayLike, *, bandwidth: float | None = None) -> float:
    """Squared maximum mean discrepancy (Gretton et al. 2012), kernel function exp(-|x - y|^2 / (2 h^2)).

    Args:
        x: draws (s, d) of one chain, or (chain, draw, d); two at least. Paired as in ``energy_distance``.
        y: draws (t, d) or (chain, draw, d), likewise.
        bandwidth: h; by default the median distance of two draws of ``x``. Compare figures of one bandwidth only.

    Returns:
        The unbiased estimate, which may be a little below zero where the laws are close.
    """
    one, other = _samples(x, y, least=2)
    h = median_distance(one.draws) if bandwidth is None else check_positive(bandwidth, "bandwidth")
    return _discrepancy(*_PairMeans(one, other, _kernel(h))())


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
        reference: draws (s, d) of one chain, or (chain, draw, d); two at least. Paired as in ``energy_distance``.
        other: draws (t, d) or (chain, draw, d), likewise.
        key: one typed key, for the directions of the sliced Wasserstein distance.
        bandwidth: of the kernel function, on the draws over sqrt(d); by default that of ``reference``.
        groups: integers (s,) and (t,) from zero, such as the chain of each draw, or its part of a chain: standard
            errors are from leaving out one group at a time (the jackknife), of either sample. Draws of different
            groups must be independent. Where draws come as (s, d), groups are taken for chains.
    """
    x, y = _samples(reference, other, least=2)
    if groups is not None:
        x, y = (_grouped(sample, labels) for sample, labels in zip((x, y), groups, strict=True))
    return PairedSamples(x, y, key, bandwidth)()


class Sample(NamedTuple):
    """Draws with the chain and the group of each."""

    draws: np.ndarray  # (s, d) float64
    chains: np.ndarray  # (s,) integers from zero
    groups: np.ndarray  # (s,) integers from zero, each within one chain


class PairedSamples:
    """Two samples with everything that distances of them, or of some of their groups, take.

    Args:
        x: the reference, two draws at least.
        y: the other sample.
        key: for the directions of the sliced Wasserstein distance.
        bandwidth: of the kernel function, on the draws over sqrt(d); by default that of ``x``.
    """

    def __init__(self, x: Sample, y: Sample, key: jax.Array, bandwidth: float | None = None) -> None:
        root = float(np.sqrt(x.draws.shape[1]))
        x, y = x._replace(draws=x.draws / root), y._replace(draws=y.draws / root)
        h = median_distance(x.draws) if bandwidth is None else check_positive(bandwidth, "bandwidth")
        directions = _directions(check_key(key), x.draws.shape[1], NUM_PROJECTIONS)
        self.root = root
        self.labels = x.groups, y.groups
        self.along = x.draws @ directions, y.draws @ directions
        self.roots, self.kernels = _PairMeans(x, y, np.sqrt), _PairMeans(x, y, _kernel(h))

    def __call__(self) -> Distances:
        """The distances with their standard errors."""
        whole = [np.ones(labels.max() + 1, bool) for labels in self.labels]
        errors = jackknife(self._values, self.labels)
        found = [] if errors is None else [float(error) if np.isfinite(error) else None for error in errors]
        return Distances(*self._values(*whole).tolist(), *found)

    def within_reference(self, one: np.ndarray, other: np.ndarray) -> float:
        """The sliced Wasserstein distance between some groups of the reference and others, masks of its groups."""
        along, labels = self.along[0], self.labels[0]
        return self.root * _projected_wasserstein(along[one[labels]], along[other[labels]], order=2)

    def _values(self, keep_x: np.ndarray, keep_y: np.ndarray) -> np.ndarray:
        kept = self.along[0][keep_x[self.labels[0]]], self.along[1][keep_y[self.labels[1]]]
        # E <v, delta>^2 = |delta|^2 / d over directions v.
        sliced = self.root * _projected_wasserstein(*kept, order=2)
        return np.array([sliced, _energy(*self.roots(keep_x, keep_y)), _discrepancy(*self.kernels(keep_x, keep_y))])


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


@checked
def gaussian_divergences(x: ArrayLike, y: ArrayLike) -> GaussianDivergences:
    """Moments and KL divergences of Gaussian fits, for models of few parameters.

    Args:
        x: draws (s, d) or (chain, draw, d) of the reference, more than d + 1 of them.
        y: draws (t, d) or (chain, draw, d), likewise.

    Raises:
        ValueError: for fewer draws, whose covariance is singular.
    """
    one, other = _samples(x, y)
    x, y = one.draws, other.draws
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


def _samples(x: ArrayLike, y: ArrayLike, least: int = 1) -> tuple[Sample, Sample]:
    """Draws (s, d) of one chain, or (chain, draw, d), with the labels of their chains; checked."""
    arrays = as_numbers(x, "x").astype(np.float64), as_numbers(y, "y").astype(np.float64)
    shapes = f"shapes {arrays[0].shape} and {arrays[1].shape}"
    if any(array.ndim not in (2, 3) for array in arrays) or arrays[0].shape[-1] != arrays[1].shape[-1]:
        raise ValueError(f"x and y must be draws (s, d) and (t, d), or (chain, draw, d); got {shapes}")
    counts = [int(np.prod(array.shape[:-1])) for array in arrays]
    if min(counts) < least:
        raise ValueError(f"x and y must have at least {least} draws; got {counts[0]} and {counts[1]}")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("x and y must be finite")

    def labelled(draws: np.ndarray, count: int) -> Sample:
        chains = np.repeat(np.arange(len(draws)), draws.shape[1]) if draws.ndim == 3 else np.zeros(count, int)
        return Sample(draws.reshape(count, draws.shape[-1]), chains, chains)

    return labelled(arrays[0], counts[0]), labelled(arrays[1], counts[1])


def _grouped(sample: Sample, groups: ArrayLike) -> Sample:
    labels = np.asarray(groups)
    if labels.shape != sample.chains.shape:
        raise ValueError(f"groups must be one integer a draw, ({len(sample.chains)},); got shape {labels.shape}")
    return sample._replace(groups=labels, chains=sample.chains if sample.chains.any() else labels)


def autocorrelation_time(draws: np.ndarray) -> float:
    """Draws that are worth one independent draw, at least 1, for all coordinates together.

    1 + 2 sum_k rho_k, with rho_k the autocorrelation at lag k of the sum of squares over coordinates, between chains
    included, summed as long as pairs of neighbours stay positive and decrease (Geyer 1992).

    Args:
        draws: (chain, draw, d).
    """
    chains, count, dimension = draws.shape
    if count < 4:
        return 1.0
    covariance = np.zeros(count)
    for first in range(0, dimension, 64):  # what Fourier transforms hold at once
        part = draws[..., first : first + 64]
        spectrum = np.abs(np.fft.rfft(part - part.mean(1, keepdims=True), 2 * count, axis=1)) ** 2
        covariance += np.fft.irfft(spectrum, axis=1)[:, :count].sum((0, 2))
    covariance /= chains * (count - 1)
    total = covariance[0] * (count - 1) / count
    if chains > 1:
        total += draws.mean(1).var(0, ddof=1).sum()
    if not total > 0:
        return 1.0
    correlation = 1 - (covariance[0] - covariance) / total
    pairs = correlation[0 : 2 * (count // 2) : 2] + correlation[1 : 2 * (count // 2) : 2]
    ends = np.flatnonzero(pairs <= 0)
    pairs = np.minimum.accumulate(pairs[: ends[0] if len(ends) else None])
    return float(np.clip(2 * pairs.sum() - 1, 1.0, chains * count))


class _PairMeans:
    """Means over pairs of x and y, and over independent pairs of x and of y; of all groups, or of some."""

    def __init__(self, x: Sample, y: Sample, of_squares: Callable[[np.ndarray], np.ndarray]) -> None:
        members = [np.eye(sample.groups.max() + 1)[sample.groups] for sample in (x, y)]
        self.counts = [member.sum(0) for member in members]
        self.cross = _group_sums(x.draws, y.draws, of_squares, *members)
        everything = [
            _group_sums(sample.draws, sample.draws, of_squares, member, member)
            for sample, member in zip((x, y), members, strict=True)
        ]
        self.within = [
            _independent(sample, of_squares, sums.copy()) for sample, sums in zip((x, y), everything, strict=True)
        ]
        self.between = [
            _centred(sums / np.outer(a, b))
            for sums, a, b in zip(
                (self.cross, *everything), (self.counts[0], *self.counts), (self.counts[1], *self.counts), strict=True
            )
        ]

    def __call__(
        self, keep_x: np.ndarray | None = None, keep_y: np.ndarray | None = None
    ) -> tuple[float, float, float]:
        kept = [
            np.ones(len(count)) if keep is None else keep.astype(float)
            for count, keep in zip(self.counts, (keep_x, keep_y), strict=True)
        ]
        s, t = (float(count @ keep) for count, keep in zip(self.counts, kept, strict=True))
        cross = kept[0] @ self.cross @ kept[1] / (s * t)
        with np.errstate(invalid="ignore"):  # one chain is left of several: no pairs
            within = [
                float(keep @ sums @ keep / (keep @ pairs @ keep))
                for (sums, pairs), keep in zip(self.within, kept, strict=True)
            ]
        return float(cross), within[0], within[1]

    def quadratic(self, x_factors: np.ndarray, y_factors: np.ndarray) -> np.ndarray:
        """Within x, plus within y, less twice between, of means moved by factors (r, group) times their deviations.

        Pairs count as they do in the means; what a group has with itself, whose expectation is not zero, does not.
        """
        cross, *within = self.between
        total = -2 * np.sum(x_factors @ cross * y_factors, axis=1)
        for form, (_, pairs), factors in zip(within, self.within, (x_factors, y_factors), strict=True):
            weights = pairs * (1 - np.eye(len(pairs)))
            weights *= len(pairs) * (len(pairs) - 1) / max(weights.sum(), 1.0)
            total = total + np.sum(factors @ (weights * form) * factors, axis=1)
        return total


def _centred(matrix: np.ndarray) -> np.ndarray:
    return matrix - matrix.mean(0) - matrix.mean(1, keepdims=True) + matrix.mean()


def _independent(
    sample: Sample, of_squares: Callable[[np.ndarray], np.ndarray], sums: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sums over independent pairs of draws by their groups, from those over all, and numbers of these pairs."""
    counts = np.bincount(sample.groups).astype(float)
    pairs = np.outer(counts, counts)
    chain_of = np.zeros(len(counts), int)
    chain_of[sample.groups] = sample.chains
    if len(np.unique(sample.chains)) > 1:
        differ = chain_of[:, None] != chain_of
        return sums * differ, pairs * differ
    time = autocorrelation_time(sample.draws[None])
    nearest = 1 if time < 1.5 else int(np.ceil(3 * time))  # lag of the first pair that counts
    for lag in range(min(nearest, max(1, len(sample.draws) // 2))):
        left, right = slice(None, len(sample.draws) - lag), slice(lag, None)
        values = of_squares(((sample.draws[left] - sample.draws[right]) ** 2).sum(1))
        for target, amount in ((sums, values), (pairs, np.ones_like(values))):
            np.subtract.at(target, (sample.groups[left], sample.groups[right]), amount)
            if lag:
                np.subtract.at(target, (sample.groups[right], sample.groups[left]), amount)
    return sums, pairs


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
