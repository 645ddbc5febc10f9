"""How close are two posteriors: what they predict on average, and their draws as whole functions."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from pseudocoreset.diagnostics.predictions.metrics import standard_error
from pseudocoreset.diagnostics.predictions.predictive import Predictive
from pseudocoreset.diagnostics.predictions.scores import top_classes
from pseudocoreset.formatting import json_values
from pseudocoreset.inference.posterior.likelihoods import log_probability_blocks, mean_blocks
from pseudocoreset.inference.posterior.model import model_of

if TYPE_CHECKING:
    from pseudocoreset.inference import Posterior

__all__ = ["UNIFORM", "Agreement", "agreement_of", "function_draws"]

UNIFORM = "uniform"


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How close predictions q are to reference predictions p, averaged over held-out inputs.

    Standard errors are over the choice of held-out inputs. What the draws of both leave open is the ``noise`` of a
    ``Comparison``.

    Attributes:
        top1: Fraction of inputs with the same most probable class (ties: shared over all tied classes).
        total_variation: Mean of (1/2) sum_c |p_c - q_c|; between 0 and 1.
        kl: Mean of KL(p || q), nats. For a regression, of Gaussians with the mean and variance over draws of
            the predicted means.
        mean_difference: Mean of |E p - E q| in units of the standard deviation of p's predicted mean
            (regression).
        top1_standard_error: Of ``top1``.
        total_variation_standard_error: Of ``total_variation``.
        kl_standard_error: Of ``kl``.
        mean_difference_standard_error: Of ``mean_difference``.
    """

    top1: float | None = None
    total_variation: float | None = None
    kl: float | None = None
    mean_difference: float | None = None
    # Findings are equal where what was found is.
    top1_standard_error: float | None = dataclasses.field(default=None, compare=False)
    total_variation_standard_error: float | None = dataclasses.field(default=None, compare=False)
    kl_standard_error: float | None = dataclasses.field(default=None, compare=False)
    mean_difference_standard_error: float | None = dataclasses.field(default=None, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """The values by name, ready for JSON."""
        return json_values(dataclasses.asdict(self))


def agreement_of(reference: Predictive, other: Predictive) -> Agreement:
    """Agreement of two predictive distributions at the same inputs.

    Args:
        reference: p, the one that is taken for the truth.
        other: q.

    Returns:
        ``Agreement``; all zeros and ones when both are equal.
    """
    if reference.log_probabilities is not None and other.log_probabilities is not None:
        p, q = reference.probabilities, other.probabilities
        top_p, top_q = top_classes(p), top_classes(q)
        # 0 log 0 = 0
        with np.errstate(invalid="ignore"):
            terms = np.where(p > 0, p * (reference.log_probabilities - other.log_probabilities), 0.0)
        return _averaged(
            top1=(top_p & top_q).sum(-1) / (top_p | top_q).sum(-1),
            total_variation=0.5 * np.abs(p - q).sum(-1),
            kl=np.maximum(terms.sum(-1), 0.0),
        )
    if reference.mean is None or other.mean is None or reference.variance is None or other.variance is None:
        return Agreement()
    gap = np.abs(reference.mean - other.mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = reference.variance / other.variance
        kl = 0.5 * (ratio - 1 - np.log(ratio) + gap**2 / other.variance)
        scaled = gap / np.sqrt(reference.variance)
    return _averaged(kl=kl.sum(-1), mean_difference=scaled.mean(-1))


def _averaged(**values: np.ndarray) -> Agreement:
    means = {name: float(row.mean()) for name, row in values.items()}
    return Agreement(**means, **{f"{name}_standard_error": standard_error(row) for name, row in values.items()})


def function_draws(posterior: Posterior, inputs: np.ndarray) -> np.ndarray:
    """``(chain, draw, k)`` log-probabilities, centred over classes, or means of the target, at held-out inputs.

    Args:
        posterior: Draws evaluated on held-out inputs.
        inputs: Which held-out inputs.
    """
    num_classes = model_of(posterior).num_classes
    blocks = mean_blocks if num_classes is None else log_probability_blocks
    values = np.concatenate(list(blocks(posterior, inputs=inputs))).astype(np.float64)
    if num_classes is not None:
        # Probabilities of zero are far from all others, but not infinitely.
        values = np.maximum(values, np.log(np.finfo(np.float32).tiny))
        values -= values.mean(-1, keepdims=True)
    return values.reshape(posterior.num_chains, posterior.num_draws, -1)
