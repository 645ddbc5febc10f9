"""The No-U-Turn sampler of BlackJAX, on the exact log density."""

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

__all__ = ["NUTS"]


@register
@dataclass(frozen=True, kw_only=True)
class NUTS(WindowAdapted):
    """The No-U-Turn sampler (Hoffman and Gelman 2014) with multinomial draws from each trajectory; its draws are exact.

    Step size and mass matrix are adapted in the warmup, in the windows of Stan, unless they are given. A draw costs up
    to 2^max_num_doublings gradients of all data. It reports ``acceptance_rate``, ``diverging``, ``energy``,
    ``n_steps`` and ``tree_depth``.

    Attributes:
        target_acceptance_rate: mean acceptance probability that the adaptation of the step size aims at, in (0, 1).
        inverse_mass_matrix: a positive diagonal (d,) or a positive definite matrix (d, d), about the covariance of the
            posterior, of the parameters in the order of their sites' names; None adapts it, or takes ones where
            ``step_size`` is given.
        is_mass_matrix_diagonal: whether the matrix that is adapted is diagonal.
        max_num_doublings: of a trajectory, at least 1.

    Raises:
        TypeError, ValueError: for values outside these ranges.
    """

    max_num_doublings: int = 10

    name = "nuts"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.settle(max_num_doublings=check_integer(self.max_num_doublings, "max_num_doublings"))

    def of_blackjax(self) -> tuple[Any, dict[str, Any]]:
        """``blackjax.nuts``."""
        return load_blackjax().nuts, {"max_num_doublings": self.max_num_doublings}

    def step(self, key: jax.Array, state: Any, tuning: Tuning, density: Density, rows: Rows) -> tuple[Any, Stats]:
        """One trajectory, and a draw from it."""
        del rows
        new, info = load_blackjax().nuts.build_kernel()(
            key,
            state,
            tempered(tuning, density),
            tuning["step_size"],
            tuning["inverse_mass_matrix"],
            self.max_num_doublings,
        )
        return new, {
            "lp": new.logdensity * tuning["temperature"],
            "acceptance_rate": info.acceptance_rate,
            "diverging": info.is_divergent,
            "energy": info.energy,
            "n_steps": jnp.asarray(info.num_integration_steps, jnp.int32),
            "tree_depth": jnp.asarray(info.num_trajectory_expansions, jnp.int32),
            "step_size": tuning["step_size"],
        }
