"""From the draws of a coreset posterior to the full one by importance weights, and whether they can be trusted."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.arguments import checked
from pseudocoreset.data.doors import check_preprocessing
from pseudocoreset.formatting import json_values, number, with_error
from pseudocoreset.inference.data import default_chunk_size, log_density_estimator
from pseudocoreset.inference.posterior.model import accepts_model, check_is_of, model_of
from pseudocoreset.inference.validation import resolve_data
from pseudocoreset.rows import Rows

if TYPE_CHECKING:
    from pseudocoreset.inference import Posterior

__all__ = ["Reweighting", "largest_tail_index", "pareto_smoothed", "reweight"]

LEAST_DRAWS = 25  # whose tail, a fifth of them, has the five that a fit takes


@dataclasses.dataclass(frozen=True, eq=False)
class Reweighting:
    """Pareto-smoothed importance weights of draws (Vehtari et al. 2024).

    Attributes:
        log_weights: (chain, draw), of the smoothed weights, which sum to one; -inf for a draw without weight, never
            NaN. Where ``pareto_k`` is infinite they are not smoothed.
        pareto_k: Tail index of the raw weights. Up to ``threshold`` averages under the weights can be trusted; from 1
            on the two posteriors hardly overlap where the draws are. Infinite where the weights are so far apart that
            their tail has no fit, or a ratio is no number.
        threshold: min(1 - 1 / log10(S), 0.7) for S draws.
        effective_draws: 1 / sum of squared weights; 0 where no draw has a weight.
        spread: Standard deviation over draws of the log ratios, in nats: below 1 the two posteriors are close, at
            tens or hundreds they are far apart, whatever ``pareto_k`` is. Infinite where a ratio is not finite.
    """

    log_weights: np.ndarray
    pareto_k: float
    threshold: float
    effective_draws: float
    spread: float = math.nan

    @property
    def pareto_k_standard_error(self) -> float:
        """Of the tail index, (1 + k) / sqrt(M): that of maximum likelihood from the M largest weights (Smith 1987).

        M = min(S / 5, 3 sqrt(S)) of S draws. NaN where the formula does not hold: for equal weights, k below -1/2, or
        k that is not finite.
        """
        if not -0.5 < self.pareto_k < math.inf or np.all(self.log_weights == self.log_weights.flat[0]):
            return math.nan
        return (1 + self.pareto_k) / math.sqrt(_tail_size(self.log_weights.size))

    @property
    def is_reliable(self) -> bool:
        """Whether averages under the weights can be trusted."""
        return self.pareto_k <= self.threshold

    @checked
    def mean(self, values: np.ndarray) -> np.ndarray:
        """Average of (chain, draw, ...) values under the weights; NaN where no draw has a weight."""
        weights = np.exp(self.log_weights)
        return np.tensordot(weights if weights.any() else np.full_like(weights, np.nan), values, 2)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the weights, ready for JSON."""
        names = ("pareto_k", "pareto_k_standard_error", "threshold", "effective_draws", "spread", "is_reliable")
        return json_values({name: getattr(self, name) for name in names})

    def __str__(self) -> str:
        can = "can" if self.is_reliable else "cannot"
        return (
            f"Importance weights of {self.log_weights.size} draws {can} be trusted: Pareto k "
            f"{with_error(self.pareto_k, self.pareto_k_standard_error)}, up to {number(self.threshold)} may be; "
            f"{number(self.effective_draws, 1)} effective draws; the log ratios spread by "
            f"{number(self.spread, 1)} nats"
        )

    __repr__ = __str__


@accepts_model
@checked
def reweight(posterior: Posterior, *, source: Any, target: Any) -> Reweighting:
    """Weights that turn draws given one set of data into draws given another.

    The weight of a draw is exp(log p(target | theta) - log p(source | theta)); priors cancel. For models of few
    parameters: with many, nearly all weight falls on one draw, and ``pareto_k`` says so.

    Args:
        posterior: Draws at temperature one that kept their weights (``keep="weights"``).
        source: What was sampled: a coreset, a ``Dataset``, ``(x, y)`` or ``(x, y, weights)``.
        target: What is wanted, mostly the full data.

    Raises:
        ValueError: The weights were not kept, the model is not known, the temperature was not one, or there are fewer
            than 25 draws.
    """
    if posterior.unconstrained is None:
        raise ValueError("posterior did not keep its weights; sample with keep='weights'")
    temperature = posterior.metadata.get("temperature", 1.0)
    if temperature != 1.0:
        raise ValueError(f"posterior was sampled at temperature {temperature}; importance weights need temperature 1")
    count = posterior.num_chains * posterior.num_draws
    if count < LEAST_DRAWS:
        raise ValueError(f"posterior has {count} draws; a tail needs at least {LEAST_DRAWS}")
    flat = {name: jnp.asarray(a.reshape(count, *a.shape[2:])) for name, a in posterior.unconstrained.items()}

    sides = {
        name: resolve_data(data, takes_bytes=True, argument=name)
        for name, data in {"source": source, "target": target}.items()
    }
    check_preprocessing(
        sides["source"].summary, sides["target"].summary, "source", "target", "Give both as the model saw the source"
    )

    def log_density(name: str) -> np.ndarray:
        side = sides[name]
        bound, targets = side.bind(model_of(posterior), name)
        check_is_of(posterior, bound)
        estimate = log_density_estimator(
            bound,
            len(side.rows.inputs),
            preprocessing=side.preprocessing,
            chunk_size=default_chunk_size(bound, side.rows.inputs.shape[1:]),
        )
        whole = Rows(*map(jnp.asarray, (side.rows.inputs, targets, side.rows.weights)))
        values = jax.jit(lambda stack, batch: jax.lax.map(lambda params: estimate(params, batch), stack))(flat, whole)
        return np.asarray(values, np.float64)

    with np.errstate(invalid="ignore"):  # both infinite
        log_ratios = log_density("target") - log_density("source")
    log_weights, pareto_k = pareto_smoothed(log_ratios)
    weights = np.exp(log_weights)
    return Reweighting(
        log_weights=log_weights.reshape(posterior.num_chains, posterior.num_draws),
        pareto_k=pareto_k,
        threshold=largest_tail_index(count),
        effective_draws=float(1 / (weights**2).sum()) if weights.any() else 0.0,
        spread=float(np.std(log_ratios)) if np.isfinite(log_ratios).all() else math.inf,
    )


def largest_tail_index(count: int) -> float:
    """The tail index up to which averages of so many weighted draws can be trusted, min(1 - 1 / log10(S), 0.7)."""
    return min(1 - 1 / math.log10(count), 0.7)


def _tail_size(count: int) -> float:
    return min(count / 5, 3 * math.sqrt(count))


def pareto_smoothed(log_ratios: np.ndarray) -> tuple[np.ndarray, float]:
    """Normalised logarithms of the smoothed weights, and their tail index.

    A draw whose ratio is no number, or infinite because the source gives it no density, gets no weight, and the index
    is infinite.
    """
    from arviz_stats.base import array_stats

    is_known = log_ratios < np.inf  # false for NaN
    raw = np.where(is_known, log_ratios, -np.inf)
    if not np.isfinite(raw).any():
        return raw, math.inf
    raw = raw - np.logaddexp.reduce(raw)
    if not is_known.all():
        return raw, math.inf
    tail = np.sort(raw)[-int(_tail_size(len(raw))) :]
    if tail[0] == tail[-1]:  # the largest weights are equal: there is no tail
        return raw, 0.0
    # It takes log-likelihoods, whose inverse are the ratios of leaving one out. A tail that spreads over hundreds of
    # nats underflows in it: the result is then not a number, or an index from which the data have dropped out.
    with np.errstate(all="ignore"):
        smoothed, pareto_k = array_stats.psislw(-raw)
    has_fit = np.exp(tail - tail[-1])[len(tail) // 4] > 0
    if not (has_fit and np.isfinite(pareto_k) and not np.isnan(smoothed).any()):
        return raw, math.inf
    return np.asarray(smoothed) - np.logaddexp.reduce(smoothed), float(pareto_k)
