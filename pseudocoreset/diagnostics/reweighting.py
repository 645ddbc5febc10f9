"""From the draws of a coreset posterior to the full one by importance weights, and whether they can be trusted."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.data.doors import check_preprocessing, check_targets
from pseudocoreset.diagnostics.formatting import json_values

if TYPE_CHECKING:
    from pseudocoreset.inference import Posterior
    from pseudocoreset.models import Model

__all__ = ["Reweighting", "reweight"]


@dataclasses.dataclass(frozen=True, eq=False)
class Reweighting:
    """Pareto-smoothed importance weights of draws (Vehtari et al. 2024).

    Attributes:
        log_weights: (chain, draw), of the smoothed weights, which sum to one.
        pareto_k: Tail index of the raw weights. Up to ``threshold`` averages under the weights can be trusted; from 1
            on the two posteriors hardly overlap where the draws are.
        threshold: min(1 - 1 / log10(S), 0.7) for S draws.
        effective_draws: 1 / sum of squared weights.
    """

    log_weights: np.ndarray
    pareto_k: float
    threshold: float
    effective_draws: float

    @property
    def pareto_k_standard_error(self) -> float:
        """Of the tail index, (1 + k) / sqrt(M): that of maximum likelihood from the M largest weights (Smith 1987).

        M = min(S / 5, 3 sqrt(S)) of S draws. NaN for equal weights and k below -1/2, where the formula does not hold.
        """
        count = self.log_weights.size
        if self.pareto_k <= -0.5 or np.ptp(self.log_weights) == 0:
            return math.nan
        return (1 + self.pareto_k) / math.sqrt(min(count / 5, 3 * math.sqrt(count)))

    @property
    def is_reliable(self) -> bool:
        """Whether averages under the weights can be trusted."""
        return self.pareto_k <= self.threshold

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Average of (chain, draw, ...) values under the weights."""
        return np.tensordot(np.exp(self.log_weights), values, 2)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the weights, ready for JSON."""
        names = ("pareto_k", "pareto_k_standard_error", "threshold", "effective_draws", "is_reliable")
        return json_values({name: getattr(self, name) for name in names})


def reweight(posterior: Posterior, model: Model, *, source: Any, target: Any) -> Reweighting:
    """Weights that turn draws given one set of data into draws given another.

    The weight of a draw is exp(log p(target | theta) - log p(source | theta)); priors cancel. For models of few
    parameters: with many, nearly all weight falls on one draw, and ``pareto_k`` says so.

    Args:
        posterior: Draws at temperature one that kept their weights (``keep="weights"``).
        model: The model that was sampled.
        source: What was sampled: a coreset, a ``Dataset``, ``(x, y)`` or ``(x, y, weights)``.
        target: What is wanted, mostly the full data.

    Raises:
        ValueError: The weights were not kept, the temperature was not one, or there are fewer than ten draws.
    """
    from arviz_stats.base import array_stats

    # BlackJAX puts an array on the device when it is imported
    from pseudocoreset.inference.data import Minibatch, default_chunk_size, log_density_estimator
    from pseudocoreset.inference.validation import input_struct, resolve_data
    from pseudocoreset.rows import ModelInputs

    if posterior.unconstrained is None:
        raise ValueError("posterior did not keep its weights; sample with keep='weights'")
    temperature = posterior.metadata.get("temperature", 1.0)
    if temperature != 1.0:
        raise ValueError(f"posterior was sampled at temperature {temperature}; importance weights need temperature 1")
    count = posterior.num_chains * posterior.num_draws
    if count < 10:
        raise ValueError(f"posterior has {count} draws; a tail needs at least 10")
    flat = {name: jnp.asarray(a.reshape(count, *a.shape[2:])) for name, a in posterior.unconstrained.items()}

    sides = {name: resolve_data(data, takes_bytes=True) for name, data in {"source": source, "target": target}.items()}
    check_preprocessing(
        sides["source"].summary, sides["target"].summary, "source", "target", "Give both as the model saw the source"
    )

    def log_density(name: str) -> np.ndarray:
        rows = sides[name]
        struct = input_struct(rows.inputs, rows.preprocessing)
        inputs = ModelInputs(rows.inputs, rows.preprocessing, rows.layout)
        bound = model.bind(inputs, rows.hard_targets, learned_targets=rows.is_weighted)
        targets = check_targets(bound, struct, rows.targets, name)
        estimate = log_density_estimator(
            bound,
            len(rows.inputs),
            preprocessing=rows.preprocessing,
            chunk_size=default_chunk_size(bound, rows.inputs.shape[1:]),
        )
        whole = Minibatch(*map(jnp.asarray, (rows.inputs, targets, rows.weights)))
        values = jax.jit(lambda stack, batch: jax.lax.map(lambda params: estimate(params, batch), stack))(flat, whole)
        return np.asarray(values, np.float64)

    log_ratios = log_density("target") - log_density("source")
    # It takes log-likelihoods, whose inverse are the ratios of leaving one out. Equal ratios have no tail to fit.
    smoothed, pareto_k = array_stats.psislw(-log_ratios) if np.ptp(log_ratios) > 0 else (log_ratios, 0.0)
    log_weights = np.asarray(smoothed) - np.logaddexp.reduce(smoothed)
    return Reweighting(
        log_weights=log_weights.reshape(posterior.num_chains, posterior.num_draws),
        pareto_k=float(pareto_k),
        threshold=min(1 - 1 / math.log10(count), 0.7),
        effective_draws=float(1 / np.exp(2 * log_weights).sum()),
    )
