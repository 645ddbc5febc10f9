"""Hamiltonian Monte Carlo of BlackJAX, on the exact log density."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from pseudocoreset.inference.adaptation.lazy import load_blackjax
from pseudocoreset.inference.adaptation.windows import WindowAdapted
from pseudocoreset.inference.engine.kernel import Density, Stats, Tuning, tempered
from pseudocoreset.inference.kernels.registry import register
from pseudocoreset.rows import Rows
from pseudocoreset.validation import check_integer

__all__ = ["HMC"]


@register
@dataclass(frozen=True, kw_only=True)
class HMC(WindowAdapted):
    """Hamiltonian Monte Carlo with a fixed number of leapfrog steps (Duane et al. 1987); its draws are exact.

    On a nearly Gaussian posterior a trajectory, step size times ``num_integration_steps``, close to a multiple of pi
    mixes slowly, which NUTS avoids. Step size and mass matrix are adapted in the warmup, in the windows of Stan,
    unless they are given. It reports ``acceptance_rate``, ``diverging``, ``energy`` and ``n_steps``.

    Attributes:
        target_acceptance_rate: mean acceptance probability that the adaptation of the step size aims at, in (0, 1).
        inverse_mass_matrix: a positive diagonal (d,) or a positive definite matrix (d, d), about the covariance of the
            posterior, of the parameters in the order of their sites' names; None adapts it, or takes ones where
            ``step_size`` is given.
        is_mass_matrix_diagonal: whether the matrix that is adapted is diagonal.
        num_integration_steps: leapfrog steps of a trajectory, at least 1.

    Raises:
        TypeError, ValueError: for values outside these ranges.
    """

    num_integration_steps: int = 10

    name = "hmc"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.settle(num_integration_steps=check_integer(self.num_integration_steps, "num_integration_steps"))

    def of_blackjax(self) -> tuple[Any, dict[str, Any]]:
        """``blackjax.hmc``."""
        return load_blackjax().hmc, {"num_integration_steps": self.num_integration_steps}

    def step(self, key: jax.Array, state: Any, tuning: Tuning, density: Density, rows: Rows) -> tuple[Any, Stats]:
        """One trajectory, accepted or not."""
        del rows
        metric = tuning["inverse_mass_matrix"]
        blackjax = load_blackjax()
        new, info = blackjax.hmc.build_kernel()(
            key, state, tempered(tuning, density), tuning["step_size"], metric, self.num_integration_steps
        )
        # BlackJAX reports the energy of the proposal; that of a rejected transition is the one it started with.
        start = -state.logdensity + blackjax.mcmc.metrics.default_metric(metric).kinetic_energy(info.momentum)
        return new, {
            "lp": new.logdensity * tuning["temperature"],
            "acceptance_rate": info.acceptance_rate,
            "diverging": info.is_divergent,
            "energy": jnp.where(info.is_accepted, info.energy, start),
            "n_steps": jnp.asarray(info.num_integration_steps, jnp.int32),
            "step_size": tuning["step_size"],
        }
