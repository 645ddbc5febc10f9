"""The scores of predictions, one function each; ``docs/add-a-score.md`` adds one.

A score is a mean over held-out examples of a number per example. All numbers are of the *model average*
p(y | x) = (1 / S) sum_s p(y | x, theta_s) over all S draws of all chains. ``register`` puts a score into ``SCORES``.
``predictive_metrics``, ``compare_posteriors``, ``evaluate`` and the tables that they print take the scores from there.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from pseudocoreset.diagnostics.predictions.predictive import Predictive

__all__ = [
    "ERROR",
    "SCORES",
    "Contributions",
    "NamedScores",
    "Score",
    "bins_of",
    "contributions",
    "correctness",
    "register",
    "top_classes",
]

# (predictive, num_bins) -> (n,), or None where the score has no meaning.
Contributions = Callable[[Predictive, int], np.ndarray | None]
ERROR = "_standard_error"  # how the name of a score's standard error ends


class Score(NamedTuple):
    """An entry of ``SCORES``.

    title
        Head of its column in tables.
    contributions
        ``(predictive, num_bins) -> (n,)``: what each held-out example adds. The mean of the array is the score, and its
        standard deviation over sqrt(n) the standard error. None where the score has no meaning.
    is_compared
        Whether it is also in the table of differences from the reference, and in that of several networks.
    """

    title: str
    contributions: Contributions
    is_compared: bool

    @property
    def description(self) -> str:
        """The docstring of the function, in one line."""
        return " ".join((inspect.getdoc(self.contributions) or "").split())


SCORES: dict[str, Score] = {}
# Attributes of objects that hold scores.
RESERVED = ("as_dict", "by_name", "elpd", "errors", "num_data", "num_draws", "scores")


def register(*, title: str, is_compared: bool = True) -> Callable[[Contributions], Contributions]:
    """Make a function a score, by the name of the function; see ``Score`` for what it returns.

    Args:
        title: head of its column in tables.
        is_compared: whether it is also in the table of differences from the reference, and in that of several networks.

    Raises:
        ValueError: for a name that is taken.
    """

    def entered(function: Contributions) -> Contributions:
        name = getattr(function, "__name__", "")
        if name in SCORES or name.endswith(ERROR) or name in RESERVED:
            raise ValueError(f"the name {name!r} is taken; the scores are {', '.join(SCORES)}")
        SCORES[name] = Score(title, function, is_compared)
        return function

    return entered


class NamedScores:
    """Scores and their standard errors by name: ``found.nll``, ``found.nll_standard_error``.

    A score is None where it has no meaning.
    """

    scores: Mapping[str, float]
    errors: Mapping[str, float]

    def __getattr__(self, name: str) -> Any:
        score = name.removesuffix(ERROR)
        if score not in SCORES:
            raise AttributeError(f"{type(self).__name__} has no {name!r}; the scores are {', '.join(SCORES)}")
        return (self.scores if score == name else self.errors).get(score)

    def by_name(self, names: Iterable[str]) -> dict[str, float | None]:
        """Each score and its standard error, None where it has no meaning."""
        return {f"{name}{end}": getattr(self, f"{name}{end}") for name in names for end in ("", ERROR)}


def contributions(predictive: Predictive, *, num_bins: int = 15) -> dict[str, np.ndarray]:
    """What each held-out example adds to each score that has a meaning for these predictions.

    Rows of two predictions at the same examples may be subtracted, which gives paired differences.

    Args:
        predictive: predictions with ``y`` and ``log_likelihood``.
        num_bins: bins of the calibration error, at least 1.

    Returns:
        ``(n,)`` arrays by the names of ``SCORES``.

    Raises:
        ValueError: for a score that is no array ``(n,)``.
    """
    found = {}
    for name, score in SCORES.items():
        values = score.contributions(predictive, num_bins)
        if values is None:
            continue
        if np.shape(values) != predictive.log_likelihood.shape:
            raise ValueError(
                f"the score {name!r} must give a number for each held-out example, shape "
                f"{predictive.log_likelihood.shape}, or None; got shape {np.shape(values)}"
            )
        found[name] = np.asarray(values, dtype=np.float64)
    return found


def top_classes(probabilities: np.ndarray) -> np.ndarray:
    """``(n, C)`` mask of the most probable classes: one a row, more where they tie."""
    return probabilities == probabilities.max(-1, keepdims=True)


def correctness(probabilities: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``(n,)``: 1 / k where the label is among the k most probable classes, else 0."""
    top = top_classes(probabilities)
    return top[np.arange(len(y)), y] / top.sum(-1)


def bins_of(confidence: np.ndarray, num_bins: int) -> np.ndarray:
    """The bin of each confidence: bin b of B holds (b / B, (b + 1) / B]."""
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    return np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)


@register(title="accuracy")
def accuracy(predictive: Predictive, num_bins: int) -> np.ndarray | None:
    """Fraction whose most probable class is the label; a tie between k classes counts 1 / k. Classes only."""
    return None if predictive.log_probabilities is None else correctness(predictive.probabilities, predictive.y)


@register(title="RMSE")
def rmse(predictive: Predictive, num_bins: int) -> np.ndarray | None:
    """Root mean squared error of the mean prediction of what the program observes.

    That is its targets, a transform of them, or the inputs of a model of those. None for classes, or where what it
    observes depends on parameters. Lower is better.
    """
    if predictive.log_probabilities is not None or predictive.mean is None or predictive.observed is None:
        return None
    squares = ((predictive.mean - predictive.observed) ** 2).mean(-1)
    root = math.sqrt(float(squares.mean()))
    # d sqrt(m) = dm / (2 sqrt(m))
    return squares if root == 0 else root + (squares - root**2) / (2 * root)


@register(title="NLL")
def nll(predictive: Predictive, num_bins: int) -> np.ndarray:
    """Mean over examples of -log of the model average; nats. Lower is better."""
    return -predictive.log_likelihood


@register(title="NLL of one draw", is_compared=False)
def nll_member(predictive: Predictive, num_bins: int) -> np.ndarray:
    """Mean NLL of a single draw; never below ``nll``. What averaging buys is ``nll_member - nll``."""
    return -predictive.member_log_likelihood


@register(title="Brier")
def brier(predictive: Predictive, num_bins: int) -> np.ndarray | None:
    """Mean squared distance between the probabilities and the one-hot label; between 0 and 2. Lower is better."""
    if predictive.log_probabilities is None:
        return None
    probabilities = predictive.probabilities
    return ((probabilities - np.eye(probabilities.shape[-1])[predictive.y]) ** 2).sum(-1)


@register(title="ECE")
def ece(predictive: Predictive, num_bins: int) -> np.ndarray | None:
    """Expected calibration error over equal-width bins of the largest probability. Lower is better."""
    if predictive.log_probabilities is None:
        return None
    probabilities = predictive.probabilities
    confidence = probabilities.max(-1)
    bins = bins_of(confidence, num_bins)
    gaps = correctness(probabilities, predictive.y) - confidence
    # To first order: the sign of a bin's sum is taken as known.
    return np.sign(np.bincount(bins, gaps, num_bins))[bins] * gaps


@register(title="entropy", is_compared=False)
def entropy(predictive: Predictive, num_bins: int) -> np.ndarray | None:
    """Mean entropy of the model average; nats. Classes only."""
    if predictive.log_probabilities is None:
        return None
    probabilities = predictive.probabilities
    # p log p -> 0 as p -> 0
    return -(probabilities * np.where(probabilities > 0, predictive.log_probabilities, 0.0)).sum(-1)
