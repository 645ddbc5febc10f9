"""Kernels on minibatch gradients: our SGHMC, and BlackJAX's SGLD and SGHMC."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pseudocoreset.inference import sghmc
from pseudocoreset.inference.data import control_variate_estimator
from pseudocoreset.inference.kernel_spec import Density, KernelSpec, Stats, Tuning, batch_and_step, position_of
from pseudocoreset.inference.lazy import load_blackjax
from pseudocoreset.inference.schedules import Constant
from pseudocoreset.models import Params

__all__ = ["BLACKJAX_SGHMC", "SGHMC", "SGLD"]


class Adapted(NamedTuple):
    """State of a chain whose preconditioner is estimated while it warms up.

    chain
        State of the kernel.
    squares
        Running mean of the squared gradient of each site.
    weight
        What ``squares`` is to be divided by.
    """

    chain: Any
    squares: dict[str, jax.Array]
    weight: jax.Array

    @property
    def position(self) -> Params:
        """The position of the chain."""
        return _position_in(self.chain)


def _position_in(state: Any) -> Params:
    return state if isinstance(state, dict) else state.position


def _with_squares(init: Callable[..., Any]) -> Callable[..., Any]:
    """``init`` of a kernel, with empty estimates where the preconditioner is to be estimated."""

    def start(key: jax.Array, position: Params, tuning: Tuning, density: Density) -> Any:
        state = init(key, position, tuning, density)
        if "rmsprop_decay" not in tuning:
            return state
        zero = jnp.zeros((), tuning["step_size"].dtype)
        return Adapted(state, {name: zero for name in position}, zero)

    return start


def _inverse_mass_of(squares: dict[str, jax.Array], weight: jax.Array) -> dict[str, jax.Array]:
    """The least root mean square gradient of a site divided by that of each; ones before any was seen."""
    scales = {name: jnp.sqrt(square / jnp.maximum(weight, 1e-30)) for name, square in squares.items()}
    least = functools.reduce(jnp.minimum, scales.values())
    is_known = (weight > 0) & (least > 0)
    return {name: jnp.where(is_known, least / jnp.where(is_known, scale, 1.0), 1.0) for name, scale in scales.items()}


def _preconditioned(move: Callable[..., tuple[Any, Stats]]) -> Callable[..., tuple[Any, Stats]]:
    """A step from a move ``(key, state, gradient, inverse_mass, tuning) -> (state, stats)``.

    **Why what is estimated is frozen.** While G = M^-1 follows the gradients it depends on theta, and Langevin dynamics
    then keep the posterior only with a further drift, Gamma_i = sum_j dG_ij / dtheta_j, that preconditioned SGLD leaves
    out. After the warmup G is a constant, Gamma is zero, and the stationary law is that of any fixed mass.
    """

    def step(
        key: jax.Array, state: Any, tuning: Tuning, density: Density, options: Mapping[str, Any]
    ) -> tuple[Any, Stats]:
        del options
        batch_key, step_key = batch_and_step(key)
        estimator = density.gradient
        if "centre" in tuning:
            estimator = control_variate_estimator(estimator, tuning["centre"], tuning["centre_gradient"])
        position = _position_in(state)
        gradient = estimator(position, density.minibatch(batch_key))
        if not isinstance(state, Adapted):
            return move(step_key, state, gradient, tuning.get("preconditioner"), tuning)
        # No weight on new gradients after the warmup; during it they count before they move anything, as in RMSprop.
        new = jnp.where(tuning["is_warmup"], 1 - tuning["rmsprop_decay"], 0.0).astype(state.weight.dtype)
        weight = (1 - new) * state.weight + new
        squares = {
            name: (1 - new) * state.squares[name] + new * jnp.mean(jnp.square(leaf)).astype(new.dtype)
            for name, leaf in gradient.items()
        }
        chain, stats = move(step_key, state.chain, gradient, _inverse_mass_of(squares, weight), tuning)
        return Adapted(chain, squares, weight), stats

    return step


def _sghmc_init(key: jax.Array, position: Params, tuning: Tuning, density: Density) -> sghmc.SGHMCState:
    del density
    return sghmc.init(position, key, tuning["temperature"])


def _sghmc_move(
    key: jax.Array, state: sghmc.SGHMCState, gradient: Params, inverse_mass: Params | None, tuning: Tuning
) -> tuple[sghmc.SGHMCState, Stats]:
    new, info = sghmc.build_kernel()(
        key,
        state,
        lambda position, minibatch: gradient,
        None,
        tuning["step_size"],
        tuning["friction"],
        tuning["temperature"],
        inverse_mass,
    )
    return new, {"kinetic_temperature": info.kinetic_temperature, "step_size": tuning["step_size"]}


def _position_init(key: jax.Array, position: Params, tuning: Tuning, density: Density) -> Params:
    del key, tuning, density
    return position


def _configurational_temperature(gradient: Params, inverse_mass: Params | None, tuning: Tuning) -> jax.Array:
    """T + e |g|^2 / (2 d), g the gradient estimate in units of the mass: its stationary mean is -E[theta . g] / d.

    A step keeps E |theta|^2 where that is so. For the exact dynamics it is T; on a Gaussian it is T times the mean
    over parameters of the factor by which the step size and the noise of gradients inflate their variances.
    """
    scaled = sghmc.into_units(gradient, inverse_mass)
    total = jax.tree.reduce(jnp.add, jax.tree.map(lambda leaf: jnp.sum(leaf**2), scaled))
    count = sum(leaf.size for leaf in jax.tree.leaves(gradient))
    return tuning["temperature"] + tuning["step_size"] * total / (2 * count)


def _sgld_move(
    key: jax.Array, state: Params, gradient: Params, inverse_mass: Params | None, tuning: Tuning
) -> tuple[Params, Stats]:
    kernel = load_blackjax().sgld.build_kernel()
    stats = {
        "configurational_temperature": _configurational_temperature(gradient, inverse_mass, tuning),
        "step_size": tuning["step_size"],
    }
    if inverse_mass is None:
        new = kernel(key, state, lambda position, minibatch: gradient, None, tuning["step_size"], tuning["temperature"])
        return new, stats
    # The move of theta in units of G^(1/2) by BlackJAX, from zero so that nothing is rounded on the way to it and back.
    scaled = sghmc.into_units(gradient, inverse_mass)
    zeros = jax.tree.map(jnp.zeros_like, state)
    moved = kernel(key, zeros, lambda position, minibatch: scaled, None, tuning["step_size"], tuning["temperature"])
    move = sghmc.out_of_units(moved, inverse_mass)
    return jax.tree.map(lambda q, m: (q + m).astype(q.dtype), state, move), stats


def _blackjax_sghmc_step(
    key: jax.Array, state: Params, tuning: Tuning, density: Density, options: Mapping[str, Any]
) -> tuple[Params, Stats]:
    batch_key, step_key = batch_and_step(key)
    new = load_blackjax().sghmc.build_kernel(tuning["friction"])(
        step_key,
        state,
        density.gradient,
        density.minibatch(batch_key),
        tuning["step_size"],
        options["num_integration_steps"],
        tuning["temperature"],
    )
    return new, {"step_size": tuning["step_size"]}


_GRADIENT_OPTIONS = {"schedule": Constant(), "preconditioner": "auto", "control_variate": "auto"}

SGHMC = KernelSpec(
    init=_with_squares(_sghmc_init),
    step=_preconditioned(_sghmc_move),
    position=position_of,
    options={"friction": None, **_GRADIENT_OPTIONS},
    uses_minibatches=True,
)
SGLD = KernelSpec(
    init=_with_squares(_position_init),
    step=_preconditioned(_sgld_move),
    position=_position_in,
    options=_GRADIENT_OPTIONS,
    uses_minibatches=True,
)
BLACKJAX_SGHMC = KernelSpec(
    init=_position_init,
    step=_blackjax_sghmc_step,
    position=_position_in,
    options={"friction": None, "num_integration_steps": 10},
    uses_minibatches=True,
)
