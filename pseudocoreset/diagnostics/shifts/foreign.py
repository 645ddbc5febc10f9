"""What predictions do away from the data they were learned for: detection of foreign inputs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from pseudocoreset.arguments import checked
from pseudocoreset.data.coercion import as_numbers
from pseudocoreset.diagnostics.predictions.predictive import predict
from pseudocoreset.inference.posterior.model import accepts_model
from pseudocoreset.validation import check_choice

if TYPE_CHECKING:
    from pseudocoreset.inference import Posterior

__all__ = ["Detection", "detect_foreign"]


class Detection(NamedTuple):
    """How well a score tells foreign inputs from familiar ones.

    Attributes:
        auroc: Probability that a foreign input scores higher than a familiar one, ties half; 0.5 is chance.
        standard_error: Over the choice of both sets of inputs (DeLong et al. 1988).
    """

    auroc: float
    standard_error: float


@accepts_model
@checked
def detect_foreign(
    familiar: Posterior | ArrayLike,
    foreign: Posterior | ArrayLike,
    *,
    score: str = "entropy",
) -> Detection:
    """Area under the ROC curve of the uncertainty of the model average, foreign inputs against familiar ones.

    Args:
        familiar: A posterior evaluated on held-out data of its own kind, or averaged class probabilities (n, C).
        foreign: The same posterior evaluated on other data (``posterior.evaluate``), or probabilities (m, C).
        score: What is high for foreign inputs: ``"entropy"`` of the averaged probabilities, or ``"confidence"``, one
            minus the largest of them.

    Raises:
        ValueError: An unknown score, a posterior that does not know its model, or no class probabilities.
    """
    check_choice(score, "score", ("entropy", "confidence"))
    inside, outside = (
        _scores(_probabilities(values, name), score) for name, values in (("familiar", familiar), ("foreign", foreign))
    )
    # Ranks of the whole, less those within each set, count the pairs that are in order (Mann and Whitney 1947).
    together = scipy.stats.rankdata(np.r_[inside, outside])
    below = (together[len(inside) :] - scipy.stats.rankdata(outside)) / len(inside)  # share of familiar ones below
    above = 1 - (together[: len(inside)] - scipy.stats.rankdata(inside)) / len(outside)
    variance = _variance_of_mean(below) + _variance_of_mean(above)
    return Detection(float(below.mean()), math.sqrt(variance))


def _probabilities(values: Any, name: str) -> np.ndarray:
    if hasattr(values, "function_values"):
        return predict(cast("Posterior", values)).probabilities
    array = as_numbers(values, name).astype(np.float64)
    if array.ndim != 2 or 0 in array.shape or not np.allclose(array.sum(-1), 1, atol=1e-2) or (array < 0).any():
        raise ValueError(f"{name} must be a posterior or class probabilities (n, C); got shape {array.shape}")
    return array


def _scores(probabilities: np.ndarray, score: str) -> np.ndarray:
    if score == "confidence":
        return 1 - probabilities.max(-1)
    return scipy.stats.entropy(probabilities, axis=-1)


def _variance_of_mean(values: np.ndarray) -> float:
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else math.nan
