"""Checks of draws against a law, as p-values, and the one failure rate that all of them share.

A check makes many comparisons and returns one p-value, corrected for their number (Bonferroni), so that

    assert check(draws, ...) > FAILURE_RATE

fails for right draws with probability at most ``FAILURE_RATE``, whatever the check compares. Keys are fixed, so a
test that passes goes on passing; the rate is that of a new key, machine or version. The same functions are
shown to reject wrong draws, ``< FAILURE_RATE``, in ``test_mistakes.py``.

A test that cannot fail shows nothing. Each has the power, the probability of failing, of at least ``POWER`` against
every one of ``MISTAKES``: draws that are a fifth too narrow, a quarter too wide, or 0.3 standard deviations off, in
one coordinate alone. ``weakest_power`` measures it on the draws of the test itself, ``simulations_needed`` says how
many ranks of simulation-based calibration it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from scipy import linalg, stats

__all__ = [
    "FAILURE_RATE",
    "MISTAKES",
    "POWER",
    "Mistake",
    "chain_means",
    "chain_moments",
    "combined",
    "exchangeability",
    "gaussian_law",
    "marginal_laws",
    "power",
    "rank_law",
    "rank_power",
    "simulations_needed",
    "threshold",
    "weakest_power",
]

# Of one test whose kernel is right. A suite of a thousand such tests fails by chance once in a thousand keys.
FAILURE_RATE = 1e-6
POWER = 0.95


class Mistake(NamedTuple):
    """Draws of another standard deviation, in units of the right one, and another mean."""

    scale: float = 1.0
    shift: float = 0.0

    def made(self, draws: np.ndarray, mean: np.ndarray, deviation: np.ndarray, coordinate: int) -> np.ndarray:
        """Right draws (..., d) with the mistake in one coordinate."""
        wrong = np.array(draws, float)
        centred = wrong[..., coordinate] - mean[coordinate]
        wrong[..., coordinate] = mean[coordinate] + self.scale * centred + self.shift * deviation[coordinate]
        return wrong


MISTAKES = {"narrow": Mistake(scale=0.8), "wide": Mistake(scale=1.25), "shifted": Mistake(shift=0.3)}


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


def power(p_value: float) -> float:
    """Of a check that gave this p-value for mistaken draws: how probable such draws are to fail it.

    From the distance of the score, which varies by about one from draws to draws, to that which fails.
    """
    tiny = np.finfo(float).tiny
    return float(stats.norm.sf(stats.norm.isf(FAILURE_RATE / 2) - stats.norm.isf(max(p_value, tiny) / 2)))


def weakest_power(
    check: Callable[[np.ndarray], float],
    draws: np.ndarray,
    mean: np.ndarray,
    deviation: np.ndarray,
    mistakes: Iterable[str] = tuple(MISTAKES),
) -> float:
    """The least power of ``check(draws) > FAILURE_RATE`` against ``MISTAKES``, on the draws of the test itself.

    Args:
        check: from draws to a p-value.
        draws: (..., d), right ones.
        mean: (d,) of their law.
        deviation: (d,) of their law.
        mistakes: names of those that the check is meant to find.
    """
    mean, deviation = (np.broadcast_to(values, draws.shape[-1:]) for values in (mean, deviation))
    return min(
        power(check(MISTAKES[name].made(draws, mean, deviation, coordinate)))
        for name in mistakes
        for coordinate in range(draws.shape[-1])
    )


def normal_moments(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P-values of the means and of the mean squares of standard normal scores, over the last axis; exact."""
    num_scores = scores.shape[-1]
    means = np.sqrt(num_scores) * scores.mean(axis=-1)
    squares = np.sum(scores**2, axis=-1)
    return (
        two_sided(stats.norm.cdf(means), stats.norm.sf(means)),
        two_sided(stats.chi2.cdf(squares, num_scores), stats.chi2.sf(squares, num_scores)),
    )


def normal_scores(ranks: np.ndarray, num_draws: int) -> np.ndarray:
    """Ranks from 0 to ``num_draws`` as numbers that are standard normal if the ranks are uniform."""
    within = np.random.default_rng(0).uniform(size=ranks.shape)
    return stats.norm.ppf((ranks + within) / (num_draws + 1))


def rank_law(ranks: np.ndarray, num_draws: int) -> float:
    """Are ranks (simulation, quantity) from 0 to ``num_draws`` uniform? By the mean and square of normal scores.

    With 700 simulations of 49 draws they find every one of ``MISTAKES`` in 95 % of cases, the distribution function
    of the ranks at the same failure rate a narrow posterior in 37 % and a wide one in 7 %.
    """
    return combined(np.concatenate(normal_moments(normal_scores(ranks, num_draws).T)))


def rank_power(
    num_simulations: int, num_draws: int, num_quantities: int, mistake: Mistake, num_trials: int = 1000
) -> float:
    """How often ``rank_law`` finds a mistake in one of several quantities, where posteriors are normal."""
    random = np.random.default_rng(1)
    truths = random.normal(size=(num_trials, num_simulations))  # in units of the right posterior
    ranks = random.binomial(num_draws, stats.norm.cdf((truths - mistake.shift) / mistake.scale))
    smallest = np.minimum(*normal_moments(normal_scores(ranks, num_draws)))
    return float(np.mean(2 * num_quantities * smallest < FAILURE_RATE))


def simulations_needed(num_draws: int, num_quantities: int, step: int = 50) -> int:
    """The fewest simulations, a multiple of ``step``, of which ``rank_law`` has the power against all mistakes."""
    count = step
    while min(rank_power(count, num_draws, num_quantities, mistake) for mistake in MISTAKES.values()) < POWER:
        count += step
    return count


def gaussian_law(draws: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """Are independent draws (n, d) from N(mean, covariance)? All comparisons are exact for any n.

    In whitened coordinates: means are normal; squares summed over draws, of each coordinate and of the sums and
    differences of each pair (for the correlations), are chi-square; Kolmogorov-Smirnov for the shape.
    """
    dimension = draws.shape[1]
    factor = linalg.cholesky(np.atleast_2d(covariance), lower=True)
    white = linalg.solve_triangular(factor, (np.asarray(draws, float) - mean).T, lower=True)
    first, second = np.triu_indices(dimension, 1)
    pairs = np.concatenate([white[first] + white[second], white[first] - white[second]]) / np.sqrt(2)
    means, squares = normal_moments(np.concatenate([white, pairs]))
    shapes = (stats.kstest(coordinate, "norm").pvalue for coordinate in white)
    return combined([*means[:dimension], *squares, *shapes])


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


def chain_moments(draws: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """Are means and second moments of draws (chain, draw, d) as expected? Student's t over independent chains."""
    centred = np.asarray(draws, float) - mean
    first, second = np.triu_indices(centred.shape[-1])
    products = centred[..., first] * centred[..., second]
    return combined([chain_means(centred, 0.0), chain_means(products, np.atleast_2d(covariance)[first, second])])


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
