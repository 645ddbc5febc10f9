"""Checks of draws against a law, as p-values, and the one failure rate that all of them share.

A check makes many comparisons and returns one p-value, corrected for their number (Bonferroni), so that

    assert check(draws, ...) > FAILURE_RATE

fails for right draws with probability at most ``FAILURE_RATE``, whatever the check compares. Keys are fixed, so a
test that passes goes on passing; the rate is that of a new key, machine or version. The same functions are
shown to reject wrong draws, ``< FAILURE_RATE``, in ``test_mistakes.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from scipy import linalg, stats

__all__ = [
    "FAILURE_RATE",
    "chain_means",
    "combined",
    "exchangeability",
    "gaussian_law",
    "marginal_laws",
    "threshold",
]

# Of one test whose kernel is right. A suite of a thousand such tests fails by chance once in a thousand keys.
FAILURE_RATE = 1e-6


def combined(p_values: Iterable[float]) -> float:
    """The p-value of the smallest of several (Bonferroni)."""
    values = np.atleast_1d(np.asarray(list(p_values), float))
    assert values.size
    assert np.all((values >= 0) & (values <= 1)), values
    return float(min(1.0, values.size * values.min()))


def threshold(num_comparisons: int = 1, degrees: float = np.inf) -> float:
    """What the largest of so many absolute scores stays below, but for ``FAILURE_RATE``.

    Args:
        num_comparisons: scores of mean zero and standard error one.
        degrees: degrees of freedom that the standard errors were estimated with, known if infinite.
    """
    return float(stats.t.isf(FAILURE_RATE / (2 * num_comparisons), degrees))


def two_sided(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Two-sided p-values of the probabilities of the two tails."""
    return np.minimum(1.0, 2 * np.minimum(lower, upper))


def gaussian_law(draws: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """Are independent draws (n, d) from N(mean, covariance)? All comparisons are exact for any n.

    In whitened coordinates: means are normal; squares summed over draws, of each coordinate and of the sums and
    differences of each pair (for the correlations), are chi-square; Kolmogorov-Smirnov for the shape.
    """
    num_draws, dimension = draws.shape
    factor = linalg.cholesky(np.atleast_2d(covariance), lower=True)
    white = linalg.solve_triangular(factor, (np.asarray(draws, float) - mean).T, lower=True)
    first, second = np.triu_indices(dimension, 1)
    pairs = np.concatenate([white[first] + white[second], white[first] - white[second]]) / np.sqrt(2)
    means = np.sqrt(num_draws) * white.mean(axis=1)
    squares = np.sum(np.concatenate([white, pairs]) ** 2, axis=1)
    return combined(
        [
            *two_sided(stats.norm.cdf(means), stats.norm.sf(means)),
            *two_sided(stats.chi2.cdf(squares, num_draws), stats.chi2.sf(squares, num_draws)),
            *(stats.kstest(coordinate, "norm").pvalue for coordinate in white),
        ]
    )


def marginal_laws(draws: np.ndarray, cdfs: Iterable[Callable[[np.ndarray], np.ndarray]]) -> float:
    """Do the columns of independent draws (n, d) have these distribution functions? Kolmogorov-Smirnov."""
    columns = np.asarray(draws, float).T
    return combined(stats.kstest(column, cdf).pvalue for column, cdf in zip(columns, cdfs, strict=True))


def chain_means(values: np.ndarray, expected: np.ndarray | float) -> float:
    """Are the means of values (chain, draw, ...) as expected? Student's t over independent chains."""
    of_chains = np.asarray(values, float).mean(axis=1)
    difference = of_chains.mean(axis=0) - expected
    error = of_chains.std(axis=0, ddof=1) / np.sqrt(len(of_chains))
    assert np.all(error > 0), "chains that do not differ have no standard error"
    tail = stats.t.sf(np.abs(difference) / error, len(of_chains) - 1)
    return combined(np.ravel(2 * tail))


def exchangeability(first: np.ndarray, second: np.ndarray) -> float:
    """Is (first, second) as probable as (second, first)? The two are (n, d), rows independent.

    What detailed balance says of two successive positions of a stationary chain. Antisymmetric functions of the
    two have mean zero: differences of odd and even powers, and mixed moments.
    """
    scale = np.concatenate([first, second]).std(axis=0)
    centre = np.concatenate([first, second]).mean(axis=0)
    a, b = (first - centre) / scale, (second - centre) / scale
    functions = [a - b, a**2 - b**2, a**2 * b - b**2 * a, np.tanh(a) * b**2 - np.tanh(b) * a**2, np.cos(a) - np.cos(b)]
    functions += [a[:, :1] * b[:, 1:] - b[:, :1] * a[:, 1:]] if a.shape[1] > 1 else []
    return chain_means(np.concatenate(functions, axis=1)[:, None], 0.0)
