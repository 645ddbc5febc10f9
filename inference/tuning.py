"""Step sizes and friction where the user gives none, and the arrays of tuning that kernels take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from pseudocoreset.inference.centring import find_centres, full_gradients
from pseudocoreset.inference.chains import Plan, prior_curvature, prior_variance
from pseudocoreset.inference.curvature import MOMENTUM_DECAY
from pseudocoreset.inference.data import Minibatch
from pseudocoreset.inference.kernels import Tuning
from pseudocoreset.inference.schedules import Constant, arrange, described
from pseudocoreset.models import Params

__all__ = ["centre_gradients", "default_step_size", "initial_tuning", "reported_options"]

# Of the running mean of squared gradients, a step: customary for RMSprop.
RMSPROP_DECAY = 0.99
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


def default_trajectory_length(plan: Plan, positions: Params, metric: np.ndarray | None, temperature: float) -> float:
    """A quarter of the period of a network's prior, pi / 2 times its root mean square scale (Izmailov et al. 2021).

    At temperature T the scale is sqrt(T) times that of the prior; with a mass, it is in units of M^(-1/2).
    """
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], positions))
    scale = unravel(jnp.asarray(np.ones(plan.model.num_params) if metric is None else np.sqrt(metric)))
    length = 0.5 * math.pi * math.sqrt(temperature * float(prior_variance(plan, positions, scale)))
    if not math.isfinite(length):
        raise ValueError("the prior has no scale to go by; give trajectory_length")
    return length


def initial_tuning(
    plan: Plan,
    positions: Params,
    options: Mapping[str, Any],
    *,
    temperature: float,
    step_size: float | None,
    metric: np.ndarray | None,
    num_samples: int,
    thinning: int,
) -> Tuning:
    """Tuning of every chain; what is missing is left to adaptation."""
    values: dict[str, Any] = {"temperature": temperature}
    if step_size is not None:
        values["step_size"] = step_size
    if (schedule := arrange(options.get("schedule", Constant()), num_samples, thinning)) is not None:
        values["schedule"] = schedule
    if "friction" in options:
        assert step_size is not None
        friction = options["friction"]
        values["friction"] = friction if friction is not None else -math.log(MOMENTUM_DECAY) / step_size
    if metric is not None:
        values["inverse_mass_matrix"] = metric
    elif "inverse_mass_matrix" in options and (step_size is not None or "trajectory_length" in options):
        values["inverse_mass_matrix"] = np.ones(plan.model.num_params)
    if "trajectory_length" in options:
        length = options["trajectory_length"]
        values["trajectory_length"] = length or default_trajectory_length(plan, positions, metric, temperature)
        values["trajectory_jitter"] = options["trajectory_jitter"]
        values["max_num_steps"] = options["max_num_steps"]
    if options.get("preconditioner") == "rmsprop":
        values["rmsprop_decay"] = RMSPROP_DECAY
    elif isinstance(options.get("preconditioner"), dict):
        values["preconditioner"] = options["preconditioner"]
    for name in ("decoherence_length", "energy_variance", "mean_integration_steps"):
        if options.get(name) is not None:
            values[name] = options[name]
    leaves = jax.tree.leaves(positions)
    # A wider type than that of the parameters would change theirs from step to step.
    num_chains, dtype = leaves[0].shape[0], jnp.result_type(*leaves)

    def of_chains(value: Any) -> jax.Array:
        counts = isinstance(value, int)
        return jnp.broadcast_to(jnp.asarray(value, jnp.int32 if counts else dtype), (num_chains, *np.shape(value)))

    tuning = jax.tree.map(of_chains, values)
    if isinstance(options.get("control_variate"), dict) and plan.batch_size is not None:
        tuning["centre"] = options["control_variate"]
    return tuning


def centre_gradients(plan: Plan, positions: Params, tuning: Tuning, rows: Minibatch) -> Tuning:
    """Tuning with the full gradients at the centres of control variates, found from the positions unless given."""
    centres = tuning["centre"] if "centre" in tuning else find_centres(plan, positions, rows)
    return {**tuning, "centre": centres, "centre_gradient": full_gradients(plan, centres, rows)}


def reported_options(options: Mapping[str, Any], tuning: Tuning) -> dict[str, Any]:
    """Kernel options in JSON; the mass matrix, which can be large, by its kind."""
    report = {name: value for name, value in options.items() if name != "inverse_mass_matrix"}
    for name in ("friction", "trajectory_length", "decoherence_length"):
        if name in report:
            report[name] = float(tuning[name][0])
    for name in ("preconditioner", "control_variate"):
        if isinstance(report.get(name), dict):
            report[name] = "given"
    if "schedule" in report:
        report["schedule"] = described(report["schedule"])
    if "inverse_mass_matrix" in options:
        is_adapted = options["inverse_mass_matrix"] is None and "trajectory_length" not in options
        report["inverse_mass_matrix"] = "adapted" if is_adapted else "given"
    return report
