"""Have the chains converged? R-hat, effective sample size and Monte-Carlo error of predictions, not of weights.

The weights of a network have symmetries (permuted units, flipped signs), so chains may disagree about every
weight and agree about every prediction. What is checked is therefore the predicted probabilities, or means,
at held-out inputs.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from pseudocoreset.formatting import json_values
from pseudocoreset.inference.posterior.likelihoods import log_probability_blocks, mean_blocks
from pseudocoreset.inference.posterior.model import accepts_model, held_out, model_of
from pseudocoreset.rows import spread_indices
from pseudocoreset.validation import check_integer

if TYPE_CHECKING:
    from pseudocoreset.inference import Posterior

__all__ = ["Convergence", "convergence", "predicted_quantities"]


@dataclasses.dataclass(frozen=True)
class Convergence:
    """Convergence of the predictions of one posterior; ``None`` where it cannot be computed.

    Attributes:
        num_chains: Chains.
        num_draws: Draws of each chain.
        num_quantities: Predicted quantities examined.
        num_constant: Of these, how many never change (they are left out of the rest).
        rhat_max: Largest rank-normalised split R-hat (Vehtari et al. 2021); needs two chains. Below 1.01 is
            good.
        rhat_median: Median R-hat.
        ess_min: Smallest bulk effective sample size. Above 100 a chain is good.
        ess_median: Median bulk effective sample size.
        mcse_max: Largest Monte-Carlo standard error of an average prediction (a probability, or a mean): what more
            draws would still change.
        mcse_median: Median Monte-Carlo standard error.
        num_divergences: Divergent transitions, where the kernel reports them.
    """

    num_chains: int
    num_draws: int
    num_quantities: int
    num_constant: int
    rhat_max: float | None = None
    rhat_median: float | None = None
    ess_min: float | None = None
    ess_median: float | None = None
    mcse_max: float | None = None
    mcse_median: float | None = None
    num_divergences: int | None = None

    @property
    def is_good(self) -> bool | None:
        """R-hat at most 1.01 and bulk ESS at least 100 a chain everywhere; None with a single chain."""
        if self.rhat_max is None or self.ess_min is None:
            return None
        return self.rhat_max <= 1.01 and self.ess_min >= 100 * self.num_chains

    def as_dict(self) -> dict[str, Any]:
        """The values by name, ready for JSON."""
        return json_values(dataclasses.asdict(self))


@accepts_model
def convergence(posterior: Posterior, *, max_inputs: int = 200, max_quantities: int = 400) -> Convergence:
    """R-hat, bulk effective sample size and Monte-Carlo error of predictions at held-out inputs, through arviz-stats.

    Args:
        posterior: Draws evaluated on held-out inputs.
        max_inputs: Held-out inputs examined, evenly spread over the data set.
        max_quantities: Predictions examined. Where inputs times classes is more, the most probable classes of
            each input are.

    Returns:
        ``Convergence``.
    """
    import arviz_base
    import arviz_stats

    _, predicted = predicted_quantities(posterior, max_inputs=max_inputs, max_quantities=max_quantities)
    num_chains, num_draws = predicted.shape[:2]
    values = predicted.reshape(num_chains, num_draws, -1)
    num_quantities = values.shape[-1]
    moving = np.ptp(values, axis=(0, 1)) > 0
    divergent = posterior.sample_stats.get("diverging")
    found: dict[str, Any] = {
        "num_chains": num_chains,
        "num_draws": num_draws,
        "num_quantities": num_quantities,
        "num_constant": int(num_quantities - moving.sum()),
        "num_divergences": None if divergent is None else int(np.sum(divergent)),
    }
    if moving.any():
        tree = arviz_base.from_dict(
            {"posterior": {"prediction": values[:, :, moving].astype(np.float64)}}, check_conventions=False
        )
        # a quantity may be constant within every chain and differ between them
        with np.errstate(divide="ignore", invalid="ignore"):
            rhat = np.asarray(arviz_stats.rhat(tree)["prediction"])
            ess = np.asarray(arviz_stats.ess(tree)["prediction"])
            mcse = np.asarray(arviz_stats.mcse(tree)["prediction"])
        if num_chains > 1:
            found |= _summary("rhat", rhat, "max")
        found |= _summary("ess", ess, "min") | _summary("mcse", mcse, "max")
    return Convergence(**found)


def predicted_quantities(
    posterior: Posterior, *, max_inputs: int = 200, max_quantities: int = 400
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted probabilities, or means, at a few held-out inputs.

    Args:
        posterior: Draws evaluated on held-out inputs.
        max_inputs: Held-out inputs used, evenly spread over the data set.
        max_quantities: Quantities kept: the most probable classes of each input, most probable first.

    Returns:
        The indices ``(i,)`` of the inputs, and the quantities ``(chain, draw, i, k)``.

    Raises:
        ValueError: The posterior was not evaluated on held-out inputs.
    """
    check_integer(max_inputs, "max_inputs")
    check_integer(max_quantities, "max_quantities")
    inputs = spread_indices(held_out(posterior).num_data, min(max_inputs, max_quantities))
    num_classes = model_of(posterior).num_classes
    if num_classes is None:
        values = np.concatenate(list(mean_blocks(posterior, inputs=inputs)))
    else:
        values = np.exp(np.concatenate(list(log_probability_blocks(posterior, inputs=inputs))))
        # of two classes one says it all
        num_kept = min(max(1, max_quantities // len(inputs)), num_classes - 1)
        order = np.argsort(-values.mean(0), axis=-1, kind="stable")[:, :num_kept]
        values = np.take_along_axis(values, order[None], axis=-1)
    return inputs, values.reshape(posterior.num_chains, posterior.num_draws, *values.shape[1:])


def _summary(name: str, values: np.ndarray, end: str) -> dict[str, float]:
    """Worst and median value; an infinite R-hat (chains that never meet) counts, an undefined one not."""
    defined = values[~np.isnan(values)]
    if not defined.size:
        return {}
    worst = defined.max() if end == "max" else defined.min()
    return {f"{name}_{end}": float(worst), f"{name}_median": float(np.median(defined))}
