"""Sampling that went wrong says so: chains that left the finite numbers, divergences, chains without a mode."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import numpy as np

from pseudocoreset.compute.processes import to_host

if TYPE_CHECKING:
    from pseudocoreset.inference.engine.kernel import Kernel, Tuning
    from pseudocoreset.inference.engine.plan import Plan

__all__ = ["check_finite", "warn_of_augmentation", "warn_of_divergences", "warn_of_no_mode"]


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
        f"kernel {plan.kernel.name!r} left the finite numbers in {_listed('chains', lost)} during {where}; "
        f"try {remedy}, or init_params of high density"
    )


def warn_of_divergences(stats: Mapping[str, np.ndarray], kernel: Kernel) -> None:
    """Warn if transitions diverged."""
    diverging = stats.get("diverging")
    if diverging is not None and diverging.any():
        remedy = "" if kernel.divergence_remedy is None else f"{kernel.divergence_remedy}, a "
        warnings.warn(
            f"{int(diverging.sum())} of {diverging.size} {kernel.name} draws come from divergent transitions: "
            f"parts of the posterior may be missed. Try a {remedy}smaller step_size, or reparameterise",
            stacklevel=3,
        )
