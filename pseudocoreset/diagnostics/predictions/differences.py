"""Scores of posteriors against those of a reference on the same held-out examples, and the expected log density.

The sum over held-out examples of the log of the model average, log (1 / S) sum_s p(y_i | x_i, theta_s), estimates the
expected log pointwise predictive density (elpd) of as many new data directly: the examples took no part in sampling.
Leave-one-out importance sampling (PSIS-LOO) is for examples that did, and is not used here.

Two posteriors are scored on the same examples, so that the error of their difference comes from the differences example
by example: mostly it is far smaller than the errors of the two scores would make one think.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from pseudocoreset.arguments import checked
from pseudocoreset.diagnostics.predictions.metrics import standard_error
from pseudocoreset.diagnostics.predictions.predictive import Predictive
from pseudocoreset.diagnostics.predictions.scores import SCORES, NamedScores, contributions
from pseudocoreset.formatting import json_values

__all__ = ["ScoreDifference", "compared_scores", "held_out_elpd", "score_difference"]


@dataclasses.dataclass(frozen=True)
class ScoreDifference(NamedScores):
    """Scores of one posterior less those of the reference, with paired standard errors over held-out examples.

    ``found.brier`` and ``found.brier_standard_error`` are of the Brier score, and so on by the names of the scores.

    Attributes:
        elpd: Difference of the sums of log predictive densities over the held-out examples; above zero is better.
        elpd_standard_error: sqrt(n) times the standard deviation of the differences of single examples.
        scores: Differences of the other scores by name, those that have a meaning for both.
        errors: Their standard errors.
    """

    elpd: float
    elpd_standard_error: float
    scores: dict[str, float]
    errors: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """The values by name, ready for JSON."""
        sums = {"elpd": self.elpd, "elpd_standard_error": self.elpd_standard_error}
        return json_values(sums | self.by_name(compared_scores()))


def compared_scores() -> list[str]:
    """Names of the scores of a ``ScoreDifference``; its ``elpd`` is that of the NLL."""
    return [name for name, score in SCORES.items() if score.is_compared and name != "nll"]


def score_difference(reference: Predictive, other: Predictive, *, num_bins: int = 15) -> ScoreDifference:
    """Paired differences of the scores of two predictions at the same held-out examples.

    Args:
        reference: What is subtracted.
        other: What it is subtracted from.
        num_bins: Bins of the calibration error.
    """
    left, right = (contributions(predictive, num_bins=num_bins) for predictive in (reference, other))
    count = other.log_likelihood.size
    with np.errstate(invalid="ignore"):  # both infinite
        gaps = {name: right[name] - left[name] for name in compared_scores() if name in left and name in right}
        gap = left["nll"] - right["nll"]
        return ScoreDifference(
            elpd=float(gap.sum()),
            elpd_standard_error=count * standard_error(gap),
            scores={name: float(row.mean()) for name, row in gaps.items()},
            errors={name: standard_error(row) for name, row in gaps.items()},
        )


@checked
def held_out_elpd(predictions: Mapping[str, Predictive]) -> Any:
    """Expected log predictive densities as the ``pandas.DataFrame`` of ``arviz_stats.compare``, best first.

    The columns are ArviZ's: ``elpd``, its standard error ``se``, ``elpd_diff`` from the best and its paired standard
    error ``dse``, and ``weight``, the share of each in the mixture of all that predicts these examples best (stacking,
    Yao et al. 2018). ``p`` is NaN: nothing was fitted to these examples. ``arviz_plots.plot_compare`` draws it.

    Args:
        predictions: Model averages by name, at the same examples.

    Raises:
        ValueError: A density of zero, whose logarithm has no sum.
    """
    import arviz_stats
    import xarray
    from arviz_stats.utils import ELPDData

    if not predictions:
        raise ValueError("predictions is empty; give those of at least one posterior")
    infinite = [name for name, row in predictions.items() if not np.isfinite(row.log_likelihood).all()]
    if infinite:
        raise ValueError(
            f"{', '.join(map(repr, infinite))} gives held-out examples a probability of zero; no finite elpd"
        )
    # Differences and weights stay when an example's densities are all multiplied by one number; unscaled, they may
    # underflow.
    best = np.max([row.log_likelihood for row in predictions.values()], axis=0)
    # Before arviz-stats 1.3 the record is told its kind; since then its class is its kind, none for this one.
    has_kind = any(field.name == "kind" for field in dataclasses.fields(ELPDData))
    kind: dict[str, Any] = {"kind": "held_out"} if has_kind else {}
    records = {
        name: ELPDData(
            **kind,
            elpd=float(row.log_likelihood.sum()),
            se=math.sqrt(row.log_likelihood.size) * float(row.log_likelihood.std()),
            p=math.nan,
            n_samples=row.num_chains * row.num_draws,
            n_data_points=row.log_likelihood.size,
            scale="log",
            warning=False,
            good_k=math.nan,
            elpd_i=xarray.DataArray(row.log_likelihood - best, dims="input"),
        )
        for name, row in predictions.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of arviz-stats 0.8 to pandas 3.1
        # Newer versions round for the eye, unless told.
        exactly = {"round_to": "none"} if "round_to" in inspect.signature(arviz_stats.compare).parameters else {}
        return arviz_stats.compare(records, **exactly)
