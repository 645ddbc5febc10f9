"""What the noise of sampling alone makes of a comparison: two runs of one law, with as many draws as are at hand.

Draws are cut into parts of a chain that are long against its autocorrelation time, so that averages over parts are
nearly independent. Their spread is the noise of the average over all draws; random combinations of their deviations
give pairs of averages that differ by noise alone, and every score of such pairs has its quantile.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from pseudocoreset.diagnostics.distances.agreement import Agreement, agreement_of
from pseudocoreset.diagnostics.distances.between import Distances, PairedSamples
from pseudocoreset.diagnostics.distances.samples import autocorrelation_time
from pseudocoreset.diagnostics.predictions.predictive import Predictive, predict
from pseudocoreset.formatting import json_values

if TYPE_CHECKING:
    from pseudocoreset.inference import Posterior

__all__ = ["LEVEL", "Noise", "Parts", "distance_noise", "largest", "parts_of", "prediction_noise"]

LEVEL = 0.98  # share of pairs of one law that stay below the noise
NUM_PAIRS = 400
MIN_PARTS, MAX_PARTS = 4, 24
LENGTH = 5  # of a part, in autocorrelation times
MAX_INPUTS = 2000  # held-out inputs whose predictions are simulated
LEAST_SHARE = 0.01  # of a probability that noise leaves


@dataclasses.dataclass(frozen=True)
class Noise:
    """What 98 of 100 pairs of runs of one law stay below (top1: above), with as many draws as these two posteriors.

    Attributes:
        agreement: Of their predictions.
        elpd: Of the absolute difference of their expected log predictive densities.
        distances: Of their function values.
    """

    agreement: Agreement
    elpd: float
    distances: Distances | None = None

    def as_dict(self) -> dict[str, Any]:
        """The values by name, ready for JSON."""
        return json_values(dataclasses.asdict(self))


class Parts(NamedTuple):
    """How the draws of a posterior are cut into parts that are nearly independent.

    ``inflation`` is what the variance between parts is to be multiplied by, since neighbours in a chain still depend
    on each other a little; ``effective`` the number of independent draws that all are worth.
    """

    labels: np.ndarray  # (chain * draw,) the part of each draw
    slices: tuple[tuple[slice, slice], ...]  # chains and draws of each part
    inflation: float
    effective: float

    @property
    def size(self) -> int:
        """Number of parts."""
        return len(self.slices)


def parts_of(functions: np.ndarray) -> Parts:
    """Parts of chains, four to 24 of them where there are as many draws, each of five autocorrelation times or more.

    Chains of fewer than that are one part each; fewer than four such chains are cut all the same.

    Args:
        functions: ``(chain, draw, k)`` function values, whose autocorrelation counts.
    """
    chains, draws = functions.shape[:2]
    time = autocorrelation_time(functions)
    each = min(int(draws / (LENGTH * time)), MAX_PARTS // chains)
    each = min(max(each, -(-MIN_PARTS // chains), 1), draws)
    within = np.arange(draws) * each // draws
    edges = np.searchsorted(within, np.arange(each + 1))
    slices = tuple((slice(c, c + 1), slice(edges[i], edges[i + 1])) for c in range(chains) for i in range(each))
    # The variance of means of parts of length b is that of independent ones, less the share time / (2 b).
    share = min(time * each / (2 * draws), 0.75) if each > 1 and time > 1 else 0.0
    labels = (np.arange(chains)[:, None] * each + within).ravel()
    return Parts(labels, slices, 1 / (1 - share), chains * draws / time)


def prediction_noise(
    posteriors: tuple[Posterior, Posterior], parts: tuple[Parts, Parts], key: jax.Array
) -> Noise | None:
    """The noise of predictions of a reference and another posterior; None where one has fewer than four draws.

    Args:
        posteriors: The reference, whose predictions are taken for the truth, and the other.
        parts: Of either.
        key: A typed key.
    """
    if min(part.size for part in parts) < MIN_PARTS:
        return None
    averages = [
        [_some_inputs(predict(posterior, chains=c, draws=d)) for c, d in part.slices]
        for posterior, part in zip(posteriors, parts, strict=True)
    ]
    centre = _Centre(averages[0])
    total = len(posteriors[0].predict_on.y) if posteriors[0].predict_on is not None else 0
    factors = [_combinations(k, part) for k, part in zip(jax.random.split(key), parts, strict=True)]
    found: list[Agreement] = []
    elpd = []
    deviations = [centre.deviations(rows) for rows in averages]
    for pair in zip(*factors, strict=True):
        left, right = (centre.moved(rows, factor) for rows, factor in zip(deviations, pair, strict=True))
        found.append(agreement_of(left, right))
        with np.errstate(invalid="ignore"):
            elpd.append(abs(float(np.sum(right.log_likelihood - left.log_likelihood))))
    scale = total / len(averages[0][0].log_likelihood)
    return Noise(_quantiles(found), scale * float(np.quantile(np.nan_to_num(elpd), LEVEL)))


def _combinations(key: jax.Array, parts: Parts) -> np.ndarray:
    """Factors (pair, part) of the deviations of parts from their mean that give noise of the mean of all.

    Their scale is drawn as for Student's t, since the spread of few parts is known badly.
    """
    count = parts.size
    normal_key, scale_key = jax.random.split(key)
    normal = np.asarray(jax.random.normal(normal_key, (NUM_PAIRS, count)), np.float64)
    square = np.asarray(jax.random.chisquare(scale_key, count - 1, (NUM_PAIRS, 1)), np.float64) / (count - 1)
    return normal * np.sqrt(parts.inflation / (count * (count - 1) * np.maximum(square, 1e-6)))


def _some_inputs(predictive: Predictive) -> Predictive:
    count = len(predictive.log_likelihood)
    if count <= MAX_INPUTS:
        return predictive
    chosen = np.linspace(0, count - 1, MAX_INPUTS).round().astype(int)
    names = ("y", "log_likelihood", "member_log_likelihood", "log_probabilities", "mean", "variance")
    taken: dict[str, Any] = {n: None if (a := getattr(predictive, n)) is None else a[chosen] for n in names}
    return dataclasses.replace(predictive, **taken, observed=None)


class _Centre:
    """The average prediction of parts, and predictions that noise moves away from it."""

    def __init__(self, averages: Sequence[Predictive]) -> None:
        self.like = averages[0]
        self.log_likelihood = _log_mean([row.log_likelihood for row in averages])
        self.log_probabilities: Any = None
        self.mean: Any = None
        self.variance: Any = None
        if self.like.log_probabilities is not None:
            self.log_probabilities = _log_mean([row.log_probabilities for row in averages])
        elif self.like.mean is not None:
            self.mean = np.mean(np.stack([_known(row.mean) for row in averages]), axis=0)
            self.variance = np.mean([self._about_mean(row) for row in averages], axis=0)

    def _about_mean(self, row: Predictive) -> np.ndarray:
        return _known(row.variance) + (_known(row.mean) - self.mean) ** 2

    def deviations(self, averages: Sequence[Predictive]) -> dict[str, np.ndarray]:
        """Deviations (part, ...) of what parts predict from their mean."""
        own = _log_mean([row.log_likelihood for row in averages])
        found = {"likelihood": np.stack([_ratio(row.log_likelihood, own) - 1 for row in averages])}
        if self.log_probabilities is not None:
            found["probabilities"] = np.stack([row.probabilities for row in averages])
        elif self.mean is not None:
            found["mean"] = np.stack([_known(row.mean) for row in averages])
            found["variance"] = np.stack([self._about_mean(row) for row in averages])
        return {name: rows - rows.mean(0) for name, rows in found.items()}

    def moved(self, deviations: dict[str, np.ndarray], factors: np.ndarray) -> Predictive:
        """The average moved by a combination of deviations."""
        noise = {name: np.tensordot(factors, rows, 1) for name, rows in deviations.items()}
        log_likelihood = self.log_likelihood + np.log(np.maximum(1 + noise["likelihood"], LEAST_SHARE))
        changes: dict[str, Any] = {}
        if self.log_probabilities is not None:
            average = np.exp(self.log_probabilities)
            moved = np.maximum(average + noise["probabilities"], LEAST_SHARE * average)
            with np.errstate(divide="ignore"):
                changes["log_probabilities"] = np.log(moved / moved.sum(-1, keepdims=True))
        elif self.mean is not None and self.variance is not None:
            variance = self.variance + noise["variance"] - noise["mean"] ** 2
            changes |= {"mean": self.mean + noise["mean"]}
            changes |= {"variance": np.maximum(variance, LEAST_SHARE * self.variance)}
        return dataclasses.replace(self.like, log_likelihood=log_likelihood, **changes)


def _known(values: np.ndarray | None) -> np.ndarray:
    assert values is not None
    return values


def _log_mean(rows: Sequence[Any]) -> np.ndarray:
    return np.logaddexp.reduce(rows, axis=0) - math.log(len(rows))


def _ratio(log_part: np.ndarray, log_average: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # both zero
        return np.nan_to_num(np.exp(log_part - log_average), nan=1.0)


def _quantiles(found: Sequence[Agreement]) -> Agreement:
    values: dict[str, float] = {}
    for name in ("top1", "total_variation", "kl", "mean_difference"):
        if getattr(found[0], name) is not None:
            rows = np.nan_to_num([getattr(row, name) for row in found], posinf=np.finfo(float).max)
            values[name] = float(np.quantile(rows, 1 - LEVEL if name == "top1" else LEVEL))
    return Agreement(**values)


def distance_noise(pairs: PairedSamples, parts: tuple[Parts, Parts], key: jax.Array) -> Distances | None:
    """The noise of the distances of function values, by the wild bootstrap of Chwialkowski et al. (2014).

    The squared discrepancies are quadratic forms in the deviations of parts; random factors on the parts give their
    law under noise. The sliced Wasserstein distance, which is no such form, is that of halves of the parts of the
    reference (the largest of ten), times the root of the ratio of 1 / s + 1 / t, for effective numbers of draws s, t.

    Args:
        pairs: The reference and the other sample, whose groups are their parts.
        parts: Of either.
        key: A typed key.

    Returns:
        The noise; None where a sample has fewer than four draws.
    """
    if min(part.size for part in parts) < MIN_PARTS:
        return None
    factor_key, half_key = jax.random.split(key)
    factors = [_combinations(k, part) for k, part in zip(jax.random.split(factor_key), parts, strict=True)]
    energy = np.quantile(-pairs.roots.quadratic(*factors), LEVEL)
    mmd = np.quantile(pairs.kernels.quadratic(*factors), LEVEL)
    halves = []
    for k in jax.random.split(half_key, 10):
        order = np.asarray(jax.random.permutation(k, parts[0].size))
        is_first = np.isin(np.arange(parts[0].size), order[: parts[0].size // 2])
        halves.append(pairs.within_reference(is_first, ~is_first))
    half = parts[0].effective / 2
    scale = math.sqrt((1 / parts[0].effective + 1 / parts[1].effective) / (2 / half))
    return Distances(scale * max(halves), float(energy), float(mmd))


def largest(noises: Sequence[Any]) -> Any:
    """The largest value of every field (of top1 the smallest); None of none."""
    if not noises:
        return None
    found = {}
    for field in dataclasses.fields(noises[0]):
        values = [getattr(row, field.name) for row in noises if getattr(row, field.name) is not None]
        found[field.name] = (min if field.name == "top1" else max)(values) if values else None
    return type(noises[0])(**found)
