"""Distances between two samples of draws: sliced Wasserstein, energy distance, maximum mean discrepancy.

Each takes draws as rows, or chains of draws. None of them is zero between two samples of one law: hold them against
what two samples of one law give (``comparison.noise.distance_noise``).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from pseudocoreset.arguments import checked
from pseudocoreset.diagnostics.distances.groups import jackknife
from pseudocoreset.diagnostics.distances.pairs import PairMeans, discrepancy, energy, gaussian_function, median_distance
from pseudocoreset.diagnostics.distances.samples import Sample, grouped, samples
from pseudocoreset.formatting import json_values
from pseudocoreset.validation import check_integer, check_key, check_positive

__all__ = [
    "Distances",
    "PairedSamples",
    "all_distances",
    "energy_distance",
    "maximum_mean_discrepancy",
    "sliced_wasserstein",
]

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
    one, other = samples(x, y)
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
    one, other = samples(x, y, least=2)
    return energy(*PairMeans(one, other, np.sqrt)())


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
    one, other = samples(x, y, least=2)
    h = median_distance(one.draws) if bandwidth is None else check_positive(bandwidth, "bandwidth")
    return discrepancy(*PairMeans(one, other, gaussian_function(h))())


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


def all_distances(
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
    x, y = samples(reference, other, least=2)
    if groups is not None:
        x, y = (grouped(sample, labels) for sample, labels in zip((x, y), groups, strict=True))
    return PairedSamples(x, y, key, bandwidth)()


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
        self.roots, self.kernels = PairMeans(x, y, np.sqrt), PairMeans(x, y, gaussian_function(h))

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
        return np.array([sliced, energy(*self.roots(keep_x, keep_y)), discrepancy(*self.kernels(keep_x, keep_y))])
