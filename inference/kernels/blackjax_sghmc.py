"""Stochastic gradient HMC of BlackJAX 1.7.1, for comparison only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax

from pseudocoreset.inference.adaptation.lazy import load_blackjax
from pseudocoreset.inference.adaptation.scales import friction_or_default, momentum_step_size
from pseudocoreset.inference.engine.kernel import TRACED, Density, Kernel, Stats, Tuning, per_chain
from pseudocoreset.inference.engine.plan import Plan, Run
from pseudocoreset.inference.kernels.registry import register
from pseudocoreset.models import Params
from pseudocoreset.rows import Rows
from pseudocoreset.validation import check_integer, check_positive

__all__ = ["BlackjaxSGHMC"]


@register
@dataclass(frozen=True, kw_only=True)
class BlackjaxSGHMC(Kernel):
    """BlackJAX's stochastic gradient HMC. **Its draws have the wrong variance**; it is here for comparison only.

    Unless friction times trajectory length is large: on N(0, 1) with step 0.05, ten integration steps and friction 1
    the variance is 1.09 times the target's at temperature 1, 8.4 times at 0.1 and 81 times at 0.01. Momentum has unit
    variance at every temperature, and one minibatch serves a whole trajectory.

    Attributes:
        friction: positive; by default -log(0.9) / step_size.
        num_integration_steps: of a trajectory, at least 1.

    Raises:
        TypeError, ValueError: for values outside these ranges.
    """

    friction: float | None = field(default=None, metadata=TRACED)
    num_integration_steps: int = 10

    name = "blackjax_sghmc"
    uses_minibatches = True

    def __post_init__(self) -> None:
        self.settle(num_integration_steps=check_integer(self.num_integration_steps, "num_integration_steps"))
        if self.friction is not None:
            self.settle(friction=check_positive(self.friction, "friction"))

    def default_step_size(self, plan: Plan, positions: Params, total_weight: float) -> float:
        """That of SGHMC."""
        return momentum_step_size(plan, positions, total_weight)

    def tuning(self, run: Run, positions: Params, step_size: float | None) -> Tuning:
        """The friction."""
        return per_chain({"friction": friction_or_default(self.friction, step_size)}, positions)

    def init(self, key: jax.Array, position: Params, tuning: Tuning, density: Density) -> Params:
        """The parameters themselves."""
        del key, tuning, density
        return position

    def position(self, state: Params) -> Params:
        """The parameters themselves."""
        return state

    def step(self, key: jax.Array, state: Params, tuning: Tuning, density: Density, rows: Rows) -> tuple[Params, Stats]:
        """One trajectory on one minibatch."""
        new = load_blackjax().sghmc.build_kernel(tuning["friction"])(
            key,
            state,
            density.gradient,
            rows,
            tuning["step_size"],
            self.num_integration_steps,
            tuning["temperature"],
        )
        return new, {"step_size": tuning["step_size"]}

    def reported(self, tuning: Tuning) -> dict[str, Any]:
        """The friction that was used."""
        return {**super().reported(tuning), "friction": float(tuning["friction"][0])}
