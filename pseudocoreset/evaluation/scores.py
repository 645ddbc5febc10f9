"""Scores of repeats, and the formulas of published code that differ from them.

The scores themselves are in ``diagnostics/predictions/scores.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from pseudocoreset.arguments import checked
from pseudocoreset.data.coercion import as_numbers
from pseudocoreset.diagnostics.predictions.metrics import metrics_of
from pseudocoreset.diagnostics.predictions.predictive import Predictive
from pseudocoreset.diagnostics.predictions.scores import ERROR
from pseudocoreset.evaluation.result import Estimate
from pseudocoreset.validation import check_integer

__all__ = ["ece_batch", "estimates", "nll_batchmean", "scores_of"]

PUBLISHED_BATCH = 128
PUBLISHED_EDGES = 30


@checked
def nll_batchmean(log_likelihood: ArrayLike, *, batch_size: int = PUBLISHED_BATCH) -> float:
    """The NLL of the reference code of Kim et al. 2022: that of batches.

    It is the mean over batches B, weighted by their sizes, of

        -log (1 / S) sum_s exp( (1 / |B|) sum_{i in B} log p(y_i | x_i, theta_s) ).

    The mean over the batch is inside the exponent, so that this is the likelihood of a whole batch under one draw, to
    the power 1 / |B|: draws that are wrong about different examples are not forgiven. It is close to the mean NLL of
    single draws and above that of the model average; with a batch size of one it is the latter.

    Args:
        log_likelihood: (draws, n) of held-out data, in the order that they are stored in.
        batch_size: of all batches but the last, which holds what is left.

    Returns:
        Nats an example.

    Raises:
        ValueError: for an array that is not (draws, n), or a batch size below one.
    """
    values = as_numbers(log_likelihood, "log_likelihood").astype(np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"log_likelihood must be (draws, n); got shape {values.shape}")
    size = check_integer(batch_size, "batch_size")
    total = 0.0
    for first in range(0, values.shape[1], size):
        batch = values[:, first : first + size]
        total -= batch.shape[1] * (np.logaddexp.reduce(batch.mean(1)) - math.log(len(values)))
    return float(total / values.shape[1])


@checked
def ece_batch(
    probabilities: ArrayLike, y: ArrayLike, *, batch_size: int = PUBLISHED_BATCH, num_edges: int = PUBLISHED_EDGES
) -> float:
    """The calibration error of the reference code of Kim et al. 2022, summed batch by batch.

        (1 / n) sum_B sum_b | sum_{i in B, confidence in bin b} (correct_i - confidence_i) |.

    With the absolute value inside the sum over batches, chance in each of them counts as miscalibration: it is above
    the calibration error of the whole, the more the smaller the batches. Thirty edges from 0 to 1 make 29 bins.

    Args:
        probabilities: (n, C) averaged over draws, in the order that the data are stored in.
        y: (n,) labels.
        batch_size: of all batches but the last.
        num_edges: edges of bins, 0 and 1 included.

    Returns:
        A number between 0 and 1.

    Raises:
        ValueError: for arrays that do not fit each other, or sizes too small.
    """
    values, labels = as_numbers(probabilities, "probabilities").astype(np.float64), as_numbers(y, "y")
    if values.ndim != 2 or labels.shape != values.shape[:1] or not len(labels):
        raise ValueError(f"probabilities must be (n, C) and y (n,); got shapes {values.shape} and {labels.shape}")
    size, edges = check_integer(batch_size, "batch_size"), check_integer(num_edges, "num_edges", 2)
    confidence = values.max(1)
    gap = (values.argmax(1) == labels) - confidence
    bins = np.digitize(confidence, np.linspace(0.0, 1.0, edges), right=True)
    batches = np.arange(len(labels)) // size
    sums = np.bincount(batches * (edges + 1) + bins, gap)
    return float(np.abs(sums).sum() / len(labels))


def scores_of(predictive: Predictive, log_likelihood: np.ndarray | None = None) -> dict[str, float]:
    """Scores of one repeat by name, with standard errors under ``<name>_standard_error``.

    Args:
        predictive: averaged over the draws of the repeat.
        log_likelihood: (draws, n), for the formulas of published code; None leaves them out.
    """
    found = metrics_of(predictive)
    scores = {name: value for name, value in found.by_name(found.scores).items() if value is not None}
    if predictive.num_chains * predictive.num_draws == 1:
        # The member is the average.
        scores = {name: value for name, value in scores.items() if not name.startswith("nll_member")}
    if log_likelihood is not None:
        scores["nll_batchmean"] = nll_batchmean(log_likelihood)
        scores["ece_batch"] = ece_batch(predictive.probabilities, predictive.y)
    return scores


def estimates(repeats: Sequence[Mapping[str, float]], prefix: str = "") -> dict[str, Estimate]:
    """Each score over repeats; those of ``scores_of``, which all have the same names."""
    found = {}
    for name in repeats[0]:
        if name.endswith(ERROR):
            continue
        values = tuple(scores[name] for scores in repeats)
        errors = [scores[name + ERROR] for scores in repeats if name + ERROR in scores]
        found[prefix + name] = Estimate(values, float(np.mean(errors)) if errors else None)
    return found
