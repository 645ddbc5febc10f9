"""Samples of draws, with the chain and the group of each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pseudocoreset.data.coercion import as_numbers

__all__ = ["Sample", "autocorrelation_time", "grouped", "samples"]


class Sample(NamedTuple):
    """Draws with the chain and the group of each."""

    draws: np.ndarray  # (s, d) float64
    chains: np.ndarray  # (s,) integers from zero
    groups: np.ndarray  # (s,) integers from zero, each within one chain


def samples(x: ArrayLike, y: ArrayLike, least: int = 1) -> tuple[Sample, Sample]:
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


def grouped(sample: Sample, groups: ArrayLike) -> Sample:
    """The sample with other groups, which are its chains where it has one."""
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
