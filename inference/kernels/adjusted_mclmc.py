"""Microcanonical Langevin Monte Carlo of BlackJAX, on the exact log density, with a Metropolis step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from pseudocoreset.inference.adaptation.lazy import load_blackjax
from pseudocoreset.inference.adaptation.mass import check_acceptance_rate
from pseudocoreset.inference.adaptation.microcanonical import Microcanonical, found_tuning, start_parameters
from pseudocoreset.inference.engine.kernel import TRACED, Density, Stats, Tuning, per_chain, tempered
from pseudocoreset.inference.engine.plan import Run
from pseudocoreset.inference.kernels.registry import register
from pseudocoreset.models import Params
from pseudocoreset.rows import Rows

__all__ = ["AdjustedMCLMC"]


@register
@dataclass(frozen=True, kw_only=True)
class AdjustedMCLMC(Microcanonical):
    """Microcanonical Langevin Monte Carlo that accepts or rejects; its draws are exact.

    Trajectories have a random number of steps, and a new direction each. Step size and metric are adapted in the
    warmup unless they are given. It reports ``acceptance_rate``, ``diverging`` and ``n_steps``.

    Attributes:
        inverse_mass_matrix: a positive diagonal (d,), about the variances of the posterior, of the parameters in the
            order of their sites' names; None adapts it, or takes ones where ``step_size`` is given.
        diagonal_preconditioning: whether to adapt it.
        target_acceptance_rate: mean acceptance probability that the adaptation of the step size aims at, in (0, 1).
        mean_integration_steps: of a trajectory, above 1.1.

    Raises:
        TypeError, ValueError: for values outside these ranges.
    """

    target_acceptance_rate: float = 0.9
    mean_integration_steps: float = field(default=2.0, metadata=TRACED)

    name = "adjusted_mclmc"
    divergence_remedy = "higher target_acceptance_rate"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_acceptance_rate(self.target_acceptance_rate)
        self.settle(mean_integration_steps=float(self.mean_integration_steps))
        if not 1.1 < self.mean_integration_steps < float("inf"):
            raise ValueError(
                f"mean_integration_steps must be above 1.1, which the tuning needs; got {self.mean_integration_steps}"
            )

    def tuning(self, run: Run, positions: Params, step_size: float | None) -> Tuning:
        """The mean number of steps, and the mass matrix where it is not adapted."""
        values = {"mean_integration_steps": self.mean_integration_steps}
        return super().tuning(run, positions, step_size) | per_chain(values, positions)

    def init(self, key: jax.Array, position: Params, tuning: Tuning, density: Density) -> Any:
        """Position, log density and gradient."""
        del key
        return load_blackjax().adjusted_mclmc.init(position, tempered(tuning, density))

    def step(self, key: jax.Array, state: Any, tuning: Tuning, density: Density, rows: Rows) -> tuple[Any, Stats]:
        """One trajectory, accepted or not."""
        del rows
        new, info = _transition()(
            key,
            state,
            tempered(tuning, density),
            tuning["step_size"],
            tuning["inverse_mass_matrix"],
            (tuning["mean_integration_steps"],),
        )
        return new, {
            "lp": new.logdensity * tuning["temperature"],
            "acceptance_rate": info.acceptance_rate,
            "diverging": info.is_divergent,
            "n_steps": jnp.asarray(info.num_integration_steps, jnp.int32),
            "step_size": tuning["step_size"],
        }

    def adapt(
        self, key: jax.Array, position: Params, tuning: Tuning, density: Density, num_steps: int
    ) -> tuple[Any, Tuning]:
        """BlackJAX's tuning of step size and diagonal metric, for trajectories of the mean length that will be used."""
        blackjax = load_blackjax()
        init_key, key = jax.random.split(key)
        state, found, _ = blackjax.adjusted_mclmc_find_L_and_step_size(
            mclmc_kernel=_transition(),
            logdensity_fn=tempered(tuning, density),
            num_steps=num_steps,
            state=self.init(init_key, position, tuning, density),
            rng_key=key,
            target=self.target_acceptance_rate,
            # The first share is run through twice.
            frac_tune1=1 / 3,
            frac_tune2=1 / 3,
            diagonal_preconditioning=self.finds_metric(tuning),
            params=start_parameters(position, tuning, 0.2),
            target_num_integration_steps=tuning["mean_integration_steps"],
        )
        return state, found_tuning(tuning, found)


def _transition() -> Callable[..., tuple[Any, Any]]:
    """BlackJAX's kernel with a number of steps uniform between one and what gives the mean asked for."""
    blackjax = load_blackjax()
    kernel = blackjax.adjusted_mclmc.build_kernel()
    draw_count = blackjax.mcmc.adjusted_mclmc_dynamic.make_random_trajectory_length_fn(True)

    def step(
        rng_key: jax.Array,
        state: Any,
        logdensity_fn: Callable[[Params], jax.Array],
        step_size: jax.Array,
        inverse_mass_matrix: jax.Array,
        integration_steps_params: tuple[jax.Array],
    ) -> tuple[Any, Any]:
        count_key, rng_key = jax.random.split(rng_key)
        count = draw_count(count_key, *integration_steps_params)
        return kernel(rng_key, state, logdensity_fn, step_size, (count,), inverse_mass_matrix)

    return step
