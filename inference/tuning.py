"""Step sizes and friction where the user gives none, and the arrays of tuning that kernels take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.inference.chains import Plan, prior_curvature
from pseudocoreset.inference.kernels import Tuning
from pseudocoreset.models import Params

__all__ = ["default_step_size", "initial_tuning", "reported_options"]

# The momentum keeps this factor a step: the customary momentum of stochastic gradient descent.
MOMENTUM_DECAY = 0.9
# Step (squared, for SGHMC) times the curvature of the log-likelihood, in units of that of one datum.
LEARNING_RATE = 0.01
# The most that step (squared) times the precision of a prior may be. SGHMC has no bias on a Gaussian
# below 4; SGLD inflates a variance by 1 / (1 - half of it).
SGHMC_PRIOR_LIMIT = 1.0
SGLD_PRIOR_LIMIT = 0.1


def default_step_size(plan: Plan, positions: Params, total_weight: float) -> float:
    """Step size of a stochastic gradient kernel, free of the scale of the data.

    The curvature of a log-likelihood grows like the total weight W. SGLD's step has the unit of a variance,
    so 0.01 / W; SGHMC's the unit of a standard deviation, so sqrt(0.01 / W), and its square is what
    optimisers call the learning rate on the summed loss. Where the prior of a network is narrower than the
    data call for (a coreset of few points) the prior sets the scale.
    """
    learning_rate = LEARNING_RATE / max(total_weight, 1.0)
    curvature = float(prior_curvature(plan, positions)) if plan.model.is_network else 0.0
    if plan.kernel == "sgld":
        return min(learning_rate, SGLD_PRIOR_LIMIT / max(curvature, 1e-30))
    return math.sqrt(min(learning_rate, SGHMC_PRIOR_LIMIT / max(curvature, 1e-30)))


def initial_tuning(
    plan: Plan,
    positions: Params,
    temperature: float,
    step_size: float | None,
    friction: float | None,
    metric: np.ndarray | None,
) -> Tuning:
    """Tuning of every chain; what is missing is left to adaptation."""
    values: dict[str, Any] = {"temperature": temperature}
    if step_size is not None:
        values["step_size"] = step_size
    if "friction" in plan.spec.options:
        assert step_size is not None
        values["friction"] = friction if friction is not None else -math.log(MOMENTUM_DECAY) / step_size
    if metric is not None:
        values["inverse_mass_matrix"] = metric
    elif step_size is not None and not plan.spec.uses_minibatches:
        values["inverse_mass_matrix"] = np.ones(plan.model.num_params)
    leaves = jax.tree.leaves(positions)
    # A wider type than that of the parameters would change theirs from step to step.
    num_chains, dtype = leaves[0].shape[0], jnp.result_type(*leaves)
    return {
        name: jnp.broadcast_to(jnp.asarray(value, dtype), (num_chains, *np.shape(value)))
        for name, value in values.items()
    }


def reported_options(options: Mapping[str, Any], tuning: Tuning) -> dict[str, Any]:
    """Kernel options in JSON; the mass matrix, which can be large, by its kind."""
    report = {name: value for name, value in options.items() if name != "inverse_mass_matrix"}
    if "friction" in report:
        report["friction"] = float(tuning["friction"][0])
    if "inverse_mass_matrix" in options:
        report["inverse_mass_matrix"] = "adapted" if options["inverse_mass_matrix"] is None else "given"
    return report
