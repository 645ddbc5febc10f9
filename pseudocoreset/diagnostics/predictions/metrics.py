"""How good predictions are: the scores of ``scores.py`` with standard errors, and reliability by confidence.

Every score is a mean over the whole data set of a number per example, except the calibration error, which is binned
once over the whole data set. So none of them depends on order or on how the data were batched.
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
from pseudocoreset.diagnostics.predictions.scores import SCORES, NamedScores, bins_of, contributions, correctness
from pseudocoreset.formatting import json_values
from pseudocoreset.inference.posterior.model import accepts_model

if TYPE_CHECKING:
    from pseudocoreset.inference import Posterior

__all__ = [
    "Metrics",
    "expected_calibration_error",
    "metrics_of",
    "predictive_metrics",
    "reliability",
    "standard_error",
    "standard_errors",
]


@dataclasses.dataclass(frozen=True)
class Metrics(NamedScores):
    """Scores of one predictive distribution on held-out data: ``found.nll``, ``found.nll_standard_error``.

    Each standard error is over the choice of held-out examples, the draws being what they are. Those of ``ece`` and
    ``rmse`` are of their linearisations; where predictions are calibrated, ``ece`` is mostly its own bias and the
    standard error says nothing about that.

    Attributes:
        num_data: Number of held-out examples.
        num_draws: Number of posterior draws averaged, all chains together.
        scores: Scores by name, those that have a meaning; the others are None as attributes.
        errors: Their standard errors over the choice of held-out examples.
    """

    num_data: int
    num_draws: int
    scores: dict[str, float]
    errors: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """The scores by name, ready for JSON: a number that is not finite becomes "inf" or "nan"."""
        found: dict[str, Any] = {"num_data": self.num_data, "num_draws": self.num_draws}
        return json_values(found | self.by_name(SCORES))


if Metrics.__doc__ is not None:  # nothing is said under python -OO
    Metrics.__doc__ += "".join(f"    {name}: {score.description}\n    " for name, score in SCORES.items())


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
    correct = correctness(probabilities, check_labels(y, *probabilities.shape))
    bins = bins_of(confidence, num_bins)
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
    errors = {name: standard_error(row) for name, row in values.items()}
    if "accuracy" in values:
        # sqrt(a (1 - a) / n) where nothing is tied
        errors["accuracy"] = float(values["accuracy"].std() / math.sqrt(values["accuracy"].size))
    return Metrics(
        num_data=predictive.log_likelihood.size,
        num_draws=predictive.num_chains * predictive.num_draws,
        scores={name: float(row.mean()) for name, row in values.items()},
        errors=errors,
    )


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
