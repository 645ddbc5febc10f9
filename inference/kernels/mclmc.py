"""Microcanonical Langevin Monte Carlo of BlackJAX, on the exact gradient, without a Metropolis step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import jax
import jax.numpy as jnp

from pseudocoreset.inference.adaptation.lazy import load_blackjax
from pseudocoreset.inference.adaptation.microcanonical import Microcanonical, found_tuning, start_parameters
from pseudocoreset.inference.engine.kernel import TRACED, Density, Stats, Tuning, per_chain, tempered
from pseudocoreset.inference.engine.plan import Run
from pseudocoreset.inference.kernels.registry import register
from pseudocoreset.models import Params
from pseudocoreset.rows import Rows
from pseudocoreset.validation import check_positive

__all__ = ["MCLMC"]

# The last phase of the tuning keeps this many numbers at most (positions by steps), or is left out.
KEPT_ELEMENTS = 2**27


@register
@dataclass(frozen=True, kw_only=True)
class MCLMC(Microcanonical):
    """Microcanonical Langevin Monte Carlo (Robnik, De Luca, Silverstein and Seljak 2023).

    The momentum is a unit vector that is turned towards the gradient and perturbed at random on the way, so that it
    forgets its direction over the **decoherence length** L. **Every step is accepted: the draws have a bias** that
    falls with the step size. The tuning sets the variance of the change of energy of one step, per parameter; at its
    default the bias of second moments is usually below what a thousand independent draws can tell. A bias that matters
    shows by repeating with a tenth of it. It reports ``energy_change``, ``diverging`` and ``n_steps``.

    Attributes:
        inverse_mass_matrix: a positive diagonal (d,), about the variances of the posterior, of the parameters in the
            order of their sites' names; None adapts it, or takes ones where ``step_size`` is given.
        diagonal_preconditioning: whether to adapt it.
        decoherence_length: positive; tuned, or given with ``step_size``.
        energy_variance: variance of the change of energy of a step, per parameter, that the tuning aims at; positive.

    Raises:
        TypeError, ValueError: for values outside these ranges.
    """

    decoherence_length: float | None = field(default=None, metadata=TRACED)
    energy_variance: float = field(default=5e-4, metadata=TRACED)

    name = "mclmc"
    divergence_remedy = "lower energy_variance"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("decoherence_length", "energy_variance"):
            if getattr(self, name) is not None:
                self.settle(**{name: check_positive(getattr(self, name), name)})

    def for_run(self, run: Run) -> Self:
        """Check that step size and decoherence length are both given or both tuned."""
        if (self.decoherence_length is None) != (run.step_size is None):
            raise ValueError("give both step_size and decoherence_length, or neither, which are then tuned together")
        return super().for_run(run)

    def tuning(self, run: Run, positions: Params, step_size: float | None) -> Tuning:
        """The lengths, and the mass matrix where it is not adapted."""
        given = {name: getattr(self, name) for name in ("decoherence_length", "energy_variance")}
        values = {name: value for name, value in given.items() if value is not None}
        return super().tuning(run, positions, step_size) | per_chain(values, positions)

    def init(self, key: jax.Array, position: Params, tuning: Tuning, density: Density) -> Any:
        """Position, log density and gradient, and a direction."""
        return load_blackjax().mclmc.init(position, tempered(tuning, density), key)

    def step(self, key: jax.Array, state: Any, tuning: Tuning, density: Density, rows: Rows) -> tuple[Any, Stats]:
        """One step, always accepted."""
        del rows
        new, info = load_blackjax().mclmc.build_kernel()(
            key,
            state,
            tempered(tuning, density),
            tuning["inverse_mass_matrix"],
            tuning["decoherence_length"],
            tuning["step_size"],
        )
        return new, {
            "lp": new.logdensity * tuning["temperature"],
            "energy_change": info.energy_change,
            # A step that left the finite numbers was undone.
            "diverging": ~info.nonans,
            "n_steps": jnp.ones((), jnp.int32),
            "step_size": tuning["step_size"],
        }

    def adapt(
        self, key: jax.Array, position: Params, tuning: Tuning, density: Density, num_steps: int
    ) -> tuple[Any, Tuning]:
        """BlackJAX's tuning of step size, diagonal metric and decoherence length, a third of the steps each."""
        blackjax = load_blackjax()
        init_key, key = jax.random.split(key)
        state = self.init(init_key, position, tuning, density)
        start = start_parameters(position, tuning, 0.25)
        finds_metric = self.finds_metric(tuning)
        # A third of the second phase is added to it where there is a metric to adjust the step size to.
        share = 0.3 if finds_metric else 1 / 3
        size = start.inverse_mass_matrix.size
        state, found, _ = blackjax.mclmc_find_L_and_step_size(
            mclmc_kernel=blackjax.mclmc.build_kernel(),
            num_steps=num_steps,
            state=state,
            rng_key=key,
            logdensity_fn=tempered(tuning, density),
            frac_tune1=share,
            frac_tune2=share,
            frac_tune3=share if share * num_steps * size <= KEPT_ELEMENTS else 0.0,
            desired_energy_var=tuning["energy_variance"],
            diagonal_preconditioning=finds_metric,
            params=start,
        )
        return state, found_tuning(tuning, found, decoherence_length=found.L)

    def reported(self, tuning: Tuning) -> dict[str, Any]:
        """The decoherence length that was used."""
        return {**super().reported(tuning), "decoherence_length": float(tuning["decoherence_length"][0])}
