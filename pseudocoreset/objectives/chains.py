"""Draws of the coreset posterior from NUTS chains that follow the coreset as it moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pseudocoreset.arguments import checked_class
from pseudocoreset.compute.devices import Devices
from pseudocoreset.models import Model
from pseudocoreset.proxies.laplace import Potential
from pseudocoreset.validation import check_integer, check_positive

__all__ = ["Chains"]

SPREAD_STEPS = 20  # from one point; each moves the chains by some transitions


class ChainsState(NamedTuple):
    """Positions and tuning of all chains."""

    positions: jax.Array  # (num_chains, p)
    log_step_size: jax.Array
    inverse_mass_matrix: jax.Array  # (p,)


@checked_class
@dataclass(frozen=True)
class Chains:
    """BlackJAX NUTS chains, as many as there are draws, moved a few transitions at every step of the coreset.

    Step size and mass matrix are adapted once on the starting coreset; then the step size follows the acceptance.

    Attributes:
        num_chains: chains, at least 2: the draws of a step.
        num_transitions: NUTS transitions a step.
        num_warmup: transitions of the adaptation at the start.
        target_acceptance_rate: that the step size is held at.
        max_num_doublings: of a trajectory.
    """

    num_chains: int = 32
    num_transitions: int = 1
    num_warmup: int = 300
    target_acceptance_rate: float = 0.8
    max_num_doublings: int = 6

    def __post_init__(self) -> None:
        check_integer(self.num_chains, "num_chains", minimum=2)
        check_integer(self.num_transitions, "num_transitions")
        check_integer(self.num_warmup, "num_warmup", minimum=20)
        check_integer(self.max_num_doublings, "max_num_doublings")
        check_positive(self.target_acceptance_rate, "target_acceptance_rate")

    def init(self, key: jax.Array, model: Model, potential: Potential, devices: Devices) -> ChainsState:
        """Adapt one chain, then spread all of them from its end."""
        import blackjax

        init_key, warmup_key, spread_key = jax.random.split(key, 3)
        warmup = blackjax.window_adaptation(
            blackjax.nuts,
            lambda v: -potential(v),
            target_acceptance_rate=self.target_acceptance_rate,
            max_num_doublings=self.max_num_doublings,
            adaptation_info_fn=lambda *_: None,
        )
        found, _ = warmup.run(warmup_key, model.flatten(model.init(init_key)), num_steps=self.num_warmup)
        tuned = found.parameters
        positions = jnp.broadcast_to(found.state.position, (self.num_chains, model.num_params))
        state = ChainsState(positions, jnp.log(tuned["step_size"]), tuned["inverse_mass_matrix"])

        @jax.jit
        def spread(state: ChainsState) -> ChainsState:
            keys = jax.random.split(spread_key, SPREAD_STEPS)
            return jax.lax.scan(lambda s, k: (self.advance(k, s, potential, devices)[0], None), state, keys)[0]

        return spread(state)

    def advance(
        self, key: jax.Array, state: ChainsState, potential: Potential, devices: Devices
    ) -> tuple[ChainsState, dict[str, Any]]:
        """All chains some transitions further, under the coreset as it is now.

        Args:
            key: one typed key.
            state: of all chains.
            potential: a pytree, as ``coreset_potential`` makes it.
            devices: that share the chains.
        """
        import blackjax

        kernel = blackjax.nuts.build_kernel()

        def chain(
            item: tuple[jax.Array, jax.Array], potential: Potential, log_step_size: jax.Array, inverse_mass_matrix: Any
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            def logdensity(v: jax.Array) -> jax.Array:
                return -potential(v)

            def step(current: Any, step_key: jax.Array) -> tuple[Any, Any]:
                moved, info = kernel(
                    step_key,
                    current,
                    logdensity,
                    jnp.exp(log_step_size),
                    inverse_mass_matrix,
                    max_num_doublings=self.max_num_doublings,
                )
                return moved, (info.acceptance_rate, info.is_divergent)

            k, position = item
            start = blackjax.nuts.init(position, logdensity)
            end, (acceptance, divergent) = jax.lax.scan(step, start, jax.random.split(k, self.num_transitions))
            return end.position, jnp.mean(acceptance), jnp.mean(divergent)

        items = jax.random.split(key, self.num_chains), state.positions
        shared = potential, state.log_step_size, state.inverse_mass_matrix
        positions, acceptance, divergent = devices.taking("all").map(chain, items, *shared)
        rate = jnp.mean(acceptance)
        log_step_size = state.log_step_size + 0.1 * (rate - self.target_acceptance_rate)
        info = {"acceptance_rate": rate, "divergent": jnp.mean(divergent)}
        return state._replace(positions=positions, log_step_size=log_step_size), info

    def describe(self) -> dict[str, Any]:
        """Name and settings."""
        return {
            "proxy": "chains",
            "num_chains": self.num_chains,
            "num_transitions": self.num_transitions,
            "num_warmup": self.num_warmup,
        }
