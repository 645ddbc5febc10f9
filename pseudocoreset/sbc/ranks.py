"""Ranks of true values among draws, and whether they are uniform: exact tests and bands, by recursion.

A rank is one of 0..L, the number of L draws below a value; under the null all L + 1 are equally likely. The number
of N ranks below r is then binomial with N and z = r / (L + 1), and over increasing r these numbers are a Markov
chain,

    C(r') - C(r)  given  C(r)   is binomial with   N - C(r)   and   (z' - z) / (1 - z),

so the probability that they all stay between two bounds is a sum of products (Säilynoja, Bürkner and Vehtari 2022).
"""

from __future__ import annotations

import math

import jax
import numpy as np

__all__ = [
    "autocorrelations",
    "chi_square_p_value",
    "draws_to_independence",
    "ecdf_band",
    "ecdf_counts",
    "ecdf_p_value",
    "ranks_of",
]

# Places at which the distribution function is looked at; more see no more, and cost more.
MAX_POINTS = 50
MAX_BINS = 20
MIN_COUNT = 10.0
SMALL_AUTOCORRELATION = 0.05  # draws whose correlation is smaller are taken to be independent


def _thresholds(num_draws: int) -> np.ndarray:
    return np.unique(np.linspace(1, num_draws, min(num_draws, MAX_POINTS)).round().astype(int))


def ecdf_counts(ranks: np.ndarray, num_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the distribution function is looked at, and how many ranks lie below.

    Args:
        ranks: (N,) integers from 0 to ``num_draws``.
        num_draws: L, draws that a rank counts.

    Returns:
        Expected shares z (k,), increasing in (0, 1), and counts (k,).
    """
    thresholds = _thresholds(num_draws)
    return thresholds / (num_draws + 1), np.searchsorted(np.sort(ranks), thresholds, side="left")


class _Binomials:
    """Distribution functions of the counts: tails (k, N + 1), and the law of staying within bounds."""

    def __init__(self, num_ranks: int, shares: np.ndarray) -> None:
        from scipy import stats

        self.num_ranks, self.shares = num_ranks, shares
        counts = np.arange(num_ranks + 1)
        self.lower = stats.binom.cdf(counts, num_ranks, shares[:, None])
        self.upper = stats.binom.sf(counts - 1, num_ranks, shares[:, None])
        self.steps = np.diff(shares) / (1 - shares[:-1])

    def bounds(self, tail: float) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest counts both of whose tails exceed ``tail``, place by place."""
        first = np.argmax(self.lower > tail, axis=1)
        last = self.num_ranks - np.argmax(self.upper[:, ::-1] > tail, axis=1)
        return first, last

    def inside(self, tail: float) -> float:
        """Probability that all counts lie within the bounds of ``tail``."""
        from scipy import stats

        first, last = self.bounds(tail)
        if np.any(first > last):
            return 0.0
        counts = np.arange(first[0], last[0] + 1)
        mass = stats.binom.pmf(counts, self.num_ranks, self.shares[0])
        for step, low, high in zip(self.steps, first[1:], last[1:], strict=True):
            following = np.arange(low, high + 1)
            moves = stats.binom.pmf(following - counts[:, None], self.num_ranks - counts[:, None], step)
            mass, counts = mass @ moves, following
        return float(mass.sum())


def ecdf_p_value(ranks: np.ndarray, num_draws: int) -> float:
    """Probability that uniform ranks depart from uniformity, somewhere, by as improbable a count as these do.

    Exact, at any level, for independent ranks.

    Args:
        ranks: (N,) integers from 0 to ``num_draws``.
        num_draws: L, draws that a rank counts.
    """
    shares, counts = ecdf_counts(ranks, num_draws)
    binomials = _Binomials(len(ranks), shares)
    rows = np.arange(len(shares))
    tail = float(min(binomials.lower[rows, counts].min(), binomials.upper[rows, counts].min()))
    # Bounds are open: a count as improbable as this one is outside, rounding or not. The difference from one has
    # no more than some thirteen digits; the probability is at least that of the tail itself.
    return min(1.0, max(1.0 - binomials.inside(tail * (1 + 1e-9)), tail))


def ecdf_band(num_ranks: int, num_draws: int, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Band that holds the whole distribution function of uniform ranks with at least a given probability.

    Args:
        num_ranks: N.
        num_draws: L.
        level: of the whole band, between 0 and 1.

    Returns:
        Expected shares z (k,), and the smallest and the largest share (k,) of ranks below.
    """
    shares = _thresholds(num_draws) / (num_draws + 1)
    binomials = _Binomials(num_ranks, shares)
    low, high = (1 - level) / (4 * len(shares)), (1 - level) / 2  # the former is sure to hold it (Bonferroni)
    for _ in range(20):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if binomials.inside(middle) >= level else (low, middle)
    first, last = binomials.bounds(low)
    return shares, first / num_ranks, last / num_ranks


def chi_square_p_value(ranks: np.ndarray, num_draws: int) -> float:
    """Pearson's chi-square test of up to 20 bins of about equal size with ten expected ranks or more.

    Args:
        ranks: (N,) integers from 0 to ``num_draws``.
        num_draws: L, draws that a rank counts.
    """
    from scipy import stats

    num_bins = int(np.clip(len(ranks) / MIN_COUNT, 2, min(MAX_BINS, num_draws + 1)))
    edges = np.linspace(0, num_draws + 1, num_bins + 1).round()
    counts = np.histogram(ranks, edges - 0.5)[0]
    expected = len(ranks) * np.diff(edges) / (num_draws + 1)
    return float(stats.chi2.sf(np.sum((counts - expected) ** 2 / expected), num_bins - 1))


def autocorrelations(values: np.ndarray) -> np.ndarray:
    """(lag, q) of values (simulation, draw, q): autocovariances in units of the variance, averaged over simulations."""
    scale = values.std(axis=1, keepdims=True)
    centred = (values - values.mean(axis=1, keepdims=True)) / np.where(scale > 0, scale, 1.0)
    length = values.shape[1]
    products = [
        np.sum(centred[:, : length - lag] * centred[:, lag:], axis=1).mean(axis=0) / length
        for lag in range(max(2, length // 2))
    ]
    return np.array(products)


def draws_to_independence(values: np.ndarray) -> int | None:
    """How far apart draws (simulation, draw, q) have to be for their correlations to stay small.

    Returns:
        A number of draws, or None if that is more than a tenth of them: deviations from the mean of a short stretch
        have a smaller correlation than those from the true mean.
    """
    num_simulations, num_draws, _ = values.shape
    if num_draws < 4:
        return 1
    largest = np.max(np.abs(autocorrelations(values)), axis=1)
    limit = SMALL_AUTOCORRELATION + 2 / math.sqrt(num_simulations * num_draws)
    return next((lag for lag in range(1, max(2, num_draws // 10 + 1)) if np.all(largest[lag::lag] < limit)), None)


def ranks_of(values: np.ndarray, truths: np.ndarray, key: jax.Array) -> np.ndarray:
    """(simulation, q): how many draws lie below the truth, and of equal ones a random number."""
    below = np.sum(values < truths[:, None], axis=1)
    equal = np.sum(values == truths[:, None], axis=1)
    share = np.asarray(jax.random.uniform(key, truths.shape), float)
    return below + np.floor(share * (equal + 1)).astype(int)
