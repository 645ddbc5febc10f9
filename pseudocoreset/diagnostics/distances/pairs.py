"""Means over pairs of draws of two samples, and over independent pairs within each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from pseudocoreset.compute.limits import limits
from pseudocoreset.diagnostics.distances.samples import Sample, autocorrelation_time

__all__ = ["PairMeans", "discrepancy", "energy", "gaussian_function", "median_distance"]


class PairMeans:
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
        """Means over pairs of x and y, within x and within y; masks of groups leave out the others."""
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


def energy(cross: float, within_x: float, within_y: float) -> float:
    """The energy distance from mean distances of pairs."""
    return float(2 * cross - within_x - within_y)


def discrepancy(cross: float, within_x: float, within_y: float) -> float:
    """The squared maximum mean discrepancy from means of the kernel function over pairs."""
    return float(within_x + within_y - 2 * cross)


def gaussian_function(h: float) -> Callable[[np.ndarray], np.ndarray]:
    """The Gaussian kernel function of squared distances, with bandwidth h."""
    return lambda squares: np.exp(-0.5 * squares / h**2)


def median_distance(x: ArrayLike, most: int = 1000) -> float:
    """Median distance of two draws, of at most ``most`` of them at even spacing; 1 where they are all the same."""
    draws = np.asarray(x, np.float64)
    draws = draws[np.linspace(0, len(draws) - 1, min(len(draws), most)).astype(int)]
    squares = _squared_distances(draws, draws)[np.triu_indices(len(draws), 1)]
    return float(np.sqrt(np.median(squares))) or 1.0


def _group_sums(
    a: np.ndarray, b: np.ndarray, of_squares: Callable[[np.ndarray], np.ndarray], in_a: np.ndarray, in_b: np.ndarray
) -> np.ndarray:
    """Sums over pairs of a row of each, by group of a and group of b; memberships are one-hot."""
    rows = max(1, limits().pair_elements // len(b))
    parts = (slice(i, i + rows) for i in range(0, len(a), rows))
    return sum(in_a[part].T @ of_squares(_squared_distances(a[part], b)) @ in_b for part in parts)


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # About the mean, so that little is lost to cancellation.
    centre = b.mean(0)
    a, b = a - centre, b - centre
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.maximum(squares, 0.0)
