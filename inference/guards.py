"""Sampling that went wrong says so: chains that left the finite numbers, divergences, chains that run hot."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import jax
import numpy as np

from pseudocoreset.inference.chains import Plan
from pseudocoreset.inference.kernels import Tuning
from pseudocoreset.meshes import to_host

__all__ = [
    "check_finite",
    "warn_of_augmentation",
    "warn_of_divergences",
    "warn_of_heat",
    "warn_of_large_steps",
    "warn_of_no_mode",
]

# Shorter chains say nothing about the temperature of their momenta.
MIN_REFRESHMENTS = 20
MOST_INFLATION = 1.25  # of variances, by the steps of SGLD
NUM_PARTS = 5  # of a chain, for the error of its mean


def warn_of_heat(stats: Mapping[str, np.ndarray], plan: Plan, tuning: Tuning, thinning: int) -> None:
    """Warn if the momenta of all chains, or of one, are further from their temperature than by chance."""
    if "kinetic_temperature" not in stats:
        return
    measured = stats["kinetic_temperature"]
    # A squared momentum keeps this share of its deviation a step, hence so many independent ones a chain.
    decay = math.exp(-2.0 * float(tuning["friction"][0]) * float(tuning["step_size"][0]))
    independent = measured.shape[1] * min(1.0, thinning * (1 - decay) / (1 + decay))
    if independent < MIN_REFRESHMENTS:
        return
    # Of all together and of each chain, since one among many that runs hot does not show in the mean.
    ratios = np.asarray(np.mean(measured, axis=1, dtype=np.float64)) / float(tuning["temperature"][0])
    mean, worst = float(np.mean(ratios)), int(np.argmax(np.abs(ratios - 1)))
    error = math.sqrt(2 / (plan.model.num_params * independent))
    if abs(mean - 1) > 0.2 + 5 * error / math.sqrt(len(ratios)) or abs(ratios[worst] - 1) > 0.2 + 5 * error:
        warnings.warn(
            f"the kinetic temperature of the chains is {mean:.2f} times the temperature asked for, and "
            f"{ratios[worst]:.2f} times in chain {worst}: gradient noise heats them, or they have not settled. Try a "
            "larger batch_size, a smaller step_size, or more num_warmup",
            stacklevel=3,
        )


def warn_of_large_steps(stats: Mapping[str, np.ndarray], plan: Plan, tuning: Tuning) -> None:
    """Warn if variances of SGLD chains are too large by more than a quarter, by their configurational temperature.

    Either of all together, or of one chain by four standard errors, from the means of its fifths.
    """
    measured = stats.get("configurational_temperature")
    if measured is None or measured.size < MIN_REFRESHMENTS:
        return
    measured = measured.astype(np.float64) / float(to_host(tuning["temperature"])[0])
    ratio, worst = float(np.mean(measured)), 0.0
    if measured.shape[1] >= MIN_REFRESHMENTS:
        fifths = np.stack([np.mean(part, axis=1) for part in np.array_split(measured, NUM_PARTS, axis=1)])
        errors = np.std(fifths, axis=0, ddof=1) / math.sqrt(NUM_PARTS)
        worst = float(np.max(np.mean(fifths, axis=0) - 4 * errors))
    if not (ratio <= MOST_INFLATION and worst <= MOST_INFLATION):
        most = np.max(np.mean(measured, axis=1))
        remedy = "a smaller step_size" if plan.batch_size is None else "a smaller step_size or a larger batch_size"
        warnings.warn(
            f"the configurational temperature of the chains is {ratio:.3g} times the temperature asked for, and of one "
            f"of them {most:.3g} times: by about this factor the step size (now "
            f"{np.max(to_host(tuning['step_size'])):.3g}) and the noise of gradients make variances too large, or the "
            f"chains have not settled. Try {remedy}, or more num_warmup",
            stacklevel=3,
        )


def warn_of_no_mode(tuning: Tuning, items: str = "chains") -> None:
    """Warn if chains, or simulations of one chain, found no mode whose curvature would tell a step size."""
    lost = np.flatnonzero(~to_host(tuning.get("has_mode", np.ones(1, bool))))
    if len(lost):
        warnings.warn(
            f"{_listed(items, lost)} found no mode of the posterior, as where a scale of a hierarchy goes to zero: "
            "their step size is a rule of thumb, and their draws may be far off. Take kernel='nuts', which needs no "
            "mode, write the hierarchy with standard normal effects times the scale, or give step_size and "
            "preconditioner",
            stacklevel=3,
        )


def warn_of_augmentation(plan: Plan) -> None:
    """Warn that an augmentation inside the likelihood changes the posterior."""
    if plan.augment is not None:
        warnings.warn(
            f"augment={plan.augment.strategy!r} changes the posterior: its log-likelihood is the mean over "
            "augmentations, which no model of the data has, and which favours low temperatures. Leave augment out for "
            "the posterior of the model; it is for comparison with published evaluations",
            stacklevel=3,
        )


def _listed(items: str, indices: np.ndarray) -> str:
    more = f" and {len(indices) - 10} more" if len(indices) > 10 else ""
    return f"{items} {indices[:10].tolist()}{more}"


def check_finite(finite: jax.Array, plan: Plan, tuning: Tuning, where: str) -> None:
    """Raise a ``FloatingPointError`` that names the chains for which ``finite`` (chain,) is false."""
    lost = np.flatnonzero(~to_host(finite))
    if len(lost) == 0:
        return
    remedy = f"a smaller step_size (now {np.max(to_host(tuning['step_size'])[lost]):.3g})"
    if plan.batch_size is not None:
        remedy += f", a larger batch_size (now {plan.batch_size})"
    raise FloatingPointError(
        f"kernel {plan.kernel!r} left the finite numbers in {_listed('chains', lost)} during {where}; "
        f"try {remedy}, or init_params of high density"
    )


def warn_of_divergences(stats: Mapping[str, np.ndarray], kernel: str) -> None:
    """Warn if transitions diverged."""
    diverging = stats.get("diverging")
    if diverging is not None and diverging.any():
        knob = "lower energy_variance" if kernel == "mclmc" else "higher target_acceptance_rate"
        warnings.warn(
            f"{int(diverging.sum())} of {diverging.size} {kernel} draws come from divergent transitions: "
            f"parts of the posterior may be missed. Try a {knob}, a smaller step_size, or reparameterise",
            stacklevel=3,
        )
