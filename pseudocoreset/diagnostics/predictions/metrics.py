"""How good predictions are: accuracy, NLL, Brier score, calibration error, RMSE, with standard errors.

Every score is a mean over the whole data set of a per-example quantity of the *model average*
p(y | x) = (1 / S) sum_s p(y | x, theta_s) over all S draws of all chains, except the calibration error, which
is binned once over the whole data set. So none of them depends on order or on how the data were batched.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike

from pseudocoreset.arguments import checked
from pseudocoreset.data.coercion import as_numbers
from pseudocoreset.diagnostics.predictions.predictive import (
    Predictive,
    check_labels,
    predict,
    predict_from_probabilities,
)
from pseudocoreset.formatting import json_values
from pseudocoreset.inference.posterior.model import accepts_model

if TYPE_CHECKING:
    from pseudocoreset.inference import Posterior

__all__ = [
    "Metrics",
    "contributions",
    "expected_calibration_error",
    "metrics_of",
    "predictive_metrics",
    "reliability",
    "standard_error",
    "standard_errors",
]


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Scores of one predictive distribution on held-out data; ``None`` where a score has no meaning.

    Each standard error is over the choice of held-out examples, the draws being what they are. Those of ``ece`` and
    ``rmse`` are of their linearisations; where predictions are calibrated, ``ece`` is mostly its own bias and the
    standard error says nothing about that.

    Attributes:
        num_data: Number of held-out examples.
        num_draws: Number of posterior draws averaged, all chains together.
        nll: Mean over examples of -log of the model average; nats. Lower is better.
        nll_standard_error: Standard error of ``nll`` over the choice of held-out examples.
        nll_member: Mean NLL of a single draw; never below ``nll``. What averaging buys is ``nll_member -
            nll``.
        accuracy: Fraction whose most probable class is the label; a tie between k classes counts 1 / k.
        accuracy_standard_error: Standard error of ``accuracy`` over the choice of held-out examples.
        brier: Mean squared distance between the probabilities and the one-hot label; between 0 and 2.
        ece: Expected calibration error over equal-width bins of the largest probability.
        entropy: Mean entropy of the model average; nats.
        rmse: Root mean squared error of the mean prediction of what the program observes: its targets, a transform of
            them, or the inputs of a model of those. None for classes, or where what it observes depends on parameters.
        nll_member_standard_error: Standard error of ``nll_member``.
        brier_standard_error: Standard error of ``brier``.
        ece_standard_error: Standard error of ``ece``.
        entropy_standard_error: Standard error of ``entropy``.
        rmse_standard_error: Standard error of ``rmse``.
    """

    num_data: int
    num_draws: int
    nll: float
    nll_standard_error: float
    nll_member: float
    accuracy: float | None = None
    accuracy_standard_error: float | None = None
    brier: float | None = None
    ece: float | None = None
    entropy: float | None = None
    rmse: float | None = None
    nll_member_standard_error: float | None = None
    brier_standard_error: float | None = None
    ece_standard_error: float | None = None
    entropy_standard_error: float | None = None
    rmse_standard_error: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The scores by name, ready for JSON: a number that is not finite becomes "inf" or "nan"."""
        return json_values(dataclasses.asdict(self))


def reliability(
    probabilities: ArrayLike, y: ArrayLike, *, num_bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count, accuracy and mean confidence in each equal-width bin of confidence (Guo et al. 2017, section 2).

    Confidence is the largest probability. Bin b of B holds confidences in (b / B, (b + 1) / B].

    Args:
        probabilities: ``(n, C)``, rows sum to one.
        y: ``(n,)`` integer labels.
        num_bins: Number of bins, at least 1.

    Returns:
        ``(counts, accuracies, confidences)``, each ``(num_bins,)``; the last two are NaN in an empty bin.

    Raises:
        ValueError: ``num_bins`` below 1.
    """
    probabilities = as_numbers(probabilities, "probabilities").astype(np.float64)
    if probabilities.ndim != 2 or 0 in probabilities.shape:
        raise ValueError(f"probabilities must be (n, C); got shape {probabilities.shape}")
    confidence = probabilities.max(-1)
    correct = _correctness(probabilities, check_labels(y, *probabilities.shape))
    bins = _bins_of(confidence, num_bins)
    counts = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        accuracies = np.bincount(bins, correct, num_bins) / counts
        confidences = np.bincount(bins, confidence, num_bins) / counts
    return counts, accuracies, confidences


@checked
def expected_calibration_error(probabilities: ArrayLike, y: ArrayLike, *, num_bins: int = 15) -> float:
    """ECE = sum_b (n_b / n) |accuracy_b - confidence_b|, with the sums over the whole data set.

    Args:
        probabilities: ``(n, C)``, rows sum to one.
        y: ``(n,)`` integer labels.
        num_bins: Number of equal-width bins of confidence.

    Returns:
        A number between 0 and 1. It is biased upwards by about sqrt(num_bins / n) for small n.
    """
    counts, accuracies, confidences = reliability(probabilities, y, num_bins=num_bins)
    gaps = np.where(counts > 0, np.abs(accuracies - confidences), 0.0)
    return float(gaps @ counts / counts.sum())


@accepts_model
@checked
def predictive_metrics(
    posterior_or_probabilities: Posterior | ArrayLike,
    y: ArrayLike | None = None,
    *,
    log: bool = False,
    num_bins: int = 15,
) -> Metrics:
    """Score the model average of a posterior, or of given probabilities, on held-out labels.

    NLL is -(1 / n) sum_i log (1 / S) sum_s p(y_i | x_i, theta_s): the average over draws is inside the
    logarithm and taken example by example. (The mean over a batch inside the exponent, as in some published
    code, tends to ``nll_member`` instead.)

    Args:
        posterior_or_probabilities: A ``Posterior`` with function values (made with ``predict_on``, or by
            ``posterior.evaluate``), or probabilities ``(n, C)`` or ``(chain, draw, n, C)``.
        y: ``(n,)`` labels (integers below C), or targets for a regression. Default: those of
            ``posterior.predict_on``.
        log: The given array holds log-probabilities. Prefer it: probabilities that have underflowed to zero
            make the NLL infinite.
        num_bins: Bins of the calibration error.

    Returns:
        ``Metrics``.

    Raises:
        ValueError: A posterior that does not know its model, a missing ``y``, labels out of range, or rows that are
            not distributions.
        TypeError: Labels that are not integers.
    """
    if hasattr(posterior_or_probabilities, "function_values"):
        return metrics_of(predict(cast("Posterior", posterior_or_probabilities), y), num_bins=num_bins)
    if y is None:
        raise ValueError("y is needed to score probabilities: predictive_metrics(probabilities, y)")
    predictive = predict_from_probabilities(
        as_numbers(posterior_or_probabilities, "posterior_or_probabilities"), y, log=log
    )
    return metrics_of(predictive, num_bins=num_bins)


def metrics_of(predictive: Predictive, *, num_bins: int = 15) -> Metrics:
    """Score a ``Predictive`` against the targets that it carries.

    Args:
        predictive: Predictions with ``y`` and ``log_likelihood``.
        num_bins: Bins of the calibration error.

    Returns:
        ``Metrics``.
    """
    values = contributions(predictive, num_bins=num_bins)
    scores: dict[str, Any] = {
        "num_data": predictive.log_likelihood.size,
        "num_draws": predictive.num_chains * predictive.num_draws,
    }
    for name, row in values.items():
        scores |= {name: float(row.mean()), f"{name}_standard_error": standard_error(row)}
    if "accuracy" in values:
        # sqrt(a (1 - a) / n) where nothing is tied
        scores["accuracy_standard_error"] = float(values["accuracy"].std() / math.sqrt(values["accuracy"].size))
    return Metrics(**scores)


def contributions(predictive: Predictive, *, num_bins: int = 15) -> dict[str, np.ndarray]:
    """What each held-out example adds to each score.

    The mean of a row is the score, and its standard deviation over sqrt(n) the standard error: exactly for averages,
    and to first order for the calibration error, sum_b |mean of (correct - confidence) in b|, and the root mean squared
    error. Rows of two predictions at the same examples may be subtracted, which gives paired differences.

    Args:
        predictive: Predictions with ``y`` and ``log_likelihood``.
        num_bins: Bins of the calibration error.

    Returns:
        ``(n,)`` arrays by the names of ``Metrics``.
    """
    values = {"nll": -predictive.log_likelihood, "nll_member": -predictive.member_log_likelihood}
    if predictive.log_probabilities is not None:
        probabilities = predictive.probabilities
        y = check_labels(predictive.y, *probabilities.shape)
        correct, confidence = _correctness(probabilities, y), probabilities.max(-1)
        bins = _bins_of(confidence, num_bins)
        # p log p -> 0 as p -> 0
        terms = probabilities * np.where(probabilities > 0, predictive.log_probabilities, 0.0)
        values |= {
            "accuracy": correct,
            "brier": ((probabilities - np.eye(probabilities.shape[-1])[y]) ** 2).sum(-1),
            "ece": np.sign(np.bincount(bins, correct - confidence, num_bins))[bins] * (correct - confidence),
            "entropy": -terms.sum(-1),
        }
    elif predictive.mean is not None and predictive.observed is not None:
        squares = ((predictive.mean - predictive.observed) ** 2).mean(-1)
        root = math.sqrt(float(squares.mean()))
        # d sqrt(m) = dm / (2 sqrt(m))
        values["rmse"] = squares if root == 0 else root + (squares - root**2) / (2 * root)
    return values


def top_classes(probabilities: np.ndarray) -> np.ndarray:
    """``(n, C)`` mask of the most probable classes: one a row, more where they tie."""
    return probabilities == probabilities.max(-1, keepdims=True)


def _correctness(probabilities: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``(n,)``: 1 / k where the label is among the k most probable classes, else 0."""
    top = top_classes(probabilities)
    return top[np.arange(len(y)), y] / top.sum(-1)


def _bins_of(confidence: np.ndarray, num_bins: int) -> np.ndarray:
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    return np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean; NaN of a single value."""
    return float(standard_errors(values))


def standard_errors(values: np.ndarray) -> np.ndarray:
    """Standard errors of means over the last axis; NaN of single values."""
    count = values.shape[-1]
    if count < 2:
        return np.full(values.shape[:-1], np.nan)
    with np.errstate(invalid="ignore"):  # an infinite value has no spread
        return np.asarray(values.std(-1, ddof=1) / math.sqrt(count))
