"""Model averages: what a posterior predicts on held-out inputs, averaged over chains and draws.

Sums are in float64 and in the log domain, so a confident draw cannot underflow the average.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from pseudocoreset.data.coercion import as_numbers
from pseudocoreset.inference.posterior.likelihoods import log_probability_blocks, mean_blocks, observed
from pseudocoreset.inference.posterior.model import held_out, model_of

if TYPE_CHECKING:
    from pseudocoreset.inference import Posterior

__all__ = ["Predictive", "check_labels", "predict", "predict_from_probabilities", "uniform_predictive"]


@dataclass(frozen=True, eq=False)
class Predictive:
    """A predictive distribution at n held-out inputs, averaged over draws, with the targets it is scored on.

    Attributes:
        y: ``(n, ...)`` targets.
        log_likelihood: ``(n,)`` log (1 / S) sum_s p(y_i | x_i, theta_s), float64.
        member_log_likelihood: ``(n,)`` (1 / S) sum_s log p(y_i | x_i, theta_s), float64.
        log_probabilities: ``(n, C)`` log of the averaged class probabilities, or None without finite support.
        mean: ``(n, d)`` average mean of what the model observes, targets of a regression say; None for classes.
        variance: ``(n, d)`` variance of the predicted mean over draws, or None.
        observed: ``(n, d)`` what ``mean`` is to be near, or None; see ``likelihoods.observed``.
        num_chains: Chains averaged.
        num_draws: Draws of each chain.
    """

    y: np.ndarray
    log_likelihood: np.ndarray
    member_log_likelihood: np.ndarray
    log_probabilities: np.ndarray | None = None
    mean: np.ndarray | None = None
    variance: np.ndarray | None = None
    observed: np.ndarray | None = None
    num_chains: int = 1
    num_draws: int = 1

    @property
    def probabilities(self) -> np.ndarray:
        """``(n, C)`` averaged class probabilities.

        Raises:
            ValueError: The model has no finite support.
        """
        if self.log_probabilities is None:
            raise ValueError("probabilities exist only for a model whose target is a class")
        return np.exp(self.log_probabilities)


def check_labels(y: ArrayLike, num_data: int, num_classes: int) -> np.ndarray:
    """``y`` as ``(num_data,)`` integers below ``num_classes``.

    Raises:
        TypeError: Not numbers.
        ValueError: Wrong shape, or a label that is no class (named with its index).
    """
    labels = as_numbers(y, "y", words=True)
    if labels.dtype.kind not in "iubf":
        raise TypeError(f"y must hold integer class labels; got dtype {labels.dtype}")
    if labels.shape != (num_data,):
        raise ValueError(f"y must have shape ({num_data},) to match the predictions; got {labels.shape}")
    wrong = np.flatnonzero(~((labels >= 0) & (labels < num_classes) & (labels == np.round(labels))))
    if wrong.size:
        raise ValueError(f"y[{wrong[0]}] = {labels[wrong[0]]} is no class; labels are integers 0 to {num_classes - 1}")
    return labels.astype(np.int64)


def predict_from_probabilities(
    values: np.ndarray, y: ArrayLike, *, log: bool = False, name: str = "probabilities"
) -> Predictive:
    """The model average of given probabilities.

    Args:
        values: ``(n, C)`` or ``(chain, draw, n, C)``; probabilities, or their logarithms when ``log``.
        y: ``(n,)`` integer labels.
        log: ``values`` are logarithms.
        name: how errors call them.

    Returns:
        ``Predictive``.

    Raises:
        ValueError: Wrong rank, or a row that is not a distribution.
    """
    if values.ndim not in (2, 4):
        raise ValueError(f"{name} must be (n, C) or (chain, draw, n, C), got shape {values.shape}")
    if 0 in values.shape:
        raise ValueError(f"{name} are empty: shape {values.shape}")
    stack = values.astype(np.float64).reshape((-1, *values.shape[-2:]))
    if not log and not (stack >= 0).all():
        raise ValueError(f"{name} must be non-negative; for log-probabilities pass log=True")
    with np.errstate(divide="ignore"):
        logs = stack if log else np.log(stack)
    sums = np.exp(logs).sum(-1)
    # half-precision softmax rounds to about 1e-3
    if not np.all(np.abs(sums - 1) < 1e-2):
        raise ValueError(f"each row of {name} must sum to one; sums run from {sums.min()} to {sums.max()}")
    labels = check_labels(y, *values.shape[-2:])
    num_chains, num_draws = values.shape[:2] if values.ndim == 4 else (1, 1)
    return _average(iter([logs]), labels, num_chains, num_draws)


def uniform_predictive(y: ArrayLike, num_classes: int) -> Predictive:
    """The prediction that knows nothing: probability 1 / C for each class.

    Args:
        y: ``(n,)`` integer labels.
        num_classes: C.

    Returns:
        ``Predictive``.
    """
    size = np.asarray(y).shape[0]
    return predict_from_probabilities(np.full((size, num_classes), 1 / num_classes), y)


def predict(
    posterior: Posterior,
    y: ArrayLike | None = None,
    *,
    chains: slice = slice(None),
    draws: slice = slice(None),
) -> Predictive:
    """The model average of a posterior at the inputs it was evaluated on.

    Args:
        posterior: Draws with ``function_values``.
        y: Targets; default those of ``posterior.predict_on``.
        chains: Which chains to average.
        draws: Which draws of each to average.

    Returns:
        ``Predictive``.

    Raises:
        ValueError: No held-out evaluation in ``posterior``, or no targets.
    """
    split = held_out(posterior)
    y = split.y if y is None else y
    num_classes = model_of(posterior).num_classes
    if num_classes is None:
        return _predict_real(posterior, np.asarray(y), chains, draws)
    labels = check_labels(y, split.num_data, num_classes)
    num_chains = len(range(posterior.num_chains)[chains])
    num_draws = len(range(posterior.num_draws)[draws])
    blocks = log_probability_blocks(posterior, chains=chains, draws=draws)
    return _average(blocks, labels, num_chains, num_draws)


def _log_sum_exp(values: np.ndarray) -> np.ndarray:
    """Log of the sum of exponentials over the leading axis."""
    peak = values.max(0)
    shift = np.where(np.isfinite(peak), peak, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(values - shift).sum(0)) + shift


def _average(blocks: Iterator[np.ndarray], labels: np.ndarray, num_chains: int, num_draws: int) -> Predictive:
    """Accumulate log (1 / S) sum_s p_s and (1 / S) sum_s log p_s[label] over blocks of draws."""
    total: np.ndarray | None = None
    member = np.zeros(len(labels))
    rows = np.arange(len(labels))
    for block in blocks:
        logs = block.astype(np.float64)
        part = _log_sum_exp(logs)
        total = part if total is None else np.logaddexp(total, part)
        member += logs[:, rows, labels].sum(0)
    if total is None:
        raise ValueError("there are no draws to average")
    count = num_chains * num_draws
    log_probabilities = total - math.log(count)
    return Predictive(
        y=labels,
        log_likelihood=log_probabilities[rows, labels],
        member_log_likelihood=member / count,
        log_probabilities=log_probabilities,
        num_chains=num_chains,
        num_draws=num_draws,
    )


def _predict_real(posterior: Posterior, y: np.ndarray, chains: slice, draws: slice) -> Predictive:
    """Mean and variance of the predicted mean; likelihoods come from the posterior itself."""
    if posterior.log_likelihood is None:
        raise ValueError("the posterior has no log-likelihood of held-out targets; sample with predict_on=...")
    if not np.array_equal(held_out(posterior).y, y):
        raise ValueError(
            "y differs from the targets that the posterior's log-likelihood was evaluated on; "
            "use posterior.evaluate(split) with the split that holds y"
        )
    logs = posterior.log_likelihood[chains, draws].astype(np.float64)
    num_chains, num_draws = logs.shape[:2]
    flat = logs.reshape(-1, logs.shape[-1])
    count = len(flat)
    first: Any = 0.0
    second: Any = 0.0
    for block in mean_blocks(posterior, chains=chains, draws=draws):
        values = block.astype(np.float64)
        first = first + values.sum(0)
        second = second + (values**2).sum(0)
    mean = first / count
    values_there = observed(posterior)
    return Predictive(
        y=y,
        log_likelihood=_log_sum_exp(flat) - math.log(count),
        member_log_likelihood=flat.mean(0),
        mean=mean,
        variance=np.maximum(second / count - mean**2, 0.0),
        observed=None if values_there is None else values_there.astype(np.float64).reshape(mean.shape),
        num_chains=num_chains,
        num_draws=num_draws,
    )
