"""Microcanonical Langevin Monte Carlo of BlackJAX, on the exact log density, without and with a Metropolis step.

The momentum is a unit vector that is turned towards the gradient and perturbed at random on the way, so that it
forgets its direction over the **decoherence length** L (Robnik, De Luca, Silverstein and Seljak 2023).

**"mclmc" accepts everything: its draws have a bias** that falls with the step size. The tuning sets the variance of
the change of energy of one step, per parameter (``energy_variance``); at its default the bias of second moments is
usually below what a thousand independent draws can tell. A bias that matters shows by repeating with a tenth of it.
**"adjusted_mclmc"** accepts or rejects trajectories of a random number of steps, with a new direction for each, so
that its draws have none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pseudocoreset.inference.kernel_spec import Density, KernelSpec, Stats, Tuning, position_of, tempered
from pseudocoreset.inference.lazy import load_blackjax
from pseudocoreset.models import Params

__all__ = ["ADJUSTED_MCLMC", "MCLMC"]

# The last phase of the tuning keeps this many numbers at most (positions by steps), or is left out.
KEPT_ELEMENTS = 2**27


def _mclmc_init(key: jax.Array, position: Params, tuning: Tuning, density: Density) -> Any:
    return load_blackjax().mclmc.init(position, tempered(tuning, density), key)


def _mclmc_step(
    key: jax.Array, state: Any, tuning: Tuning, density: Density, options: Mapping[str, Any]
) -> tuple[Any, Stats]:
    del options
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


def _mclmc_adapt(
    key: jax.Array,
    position: Params,
    tuning: Tuning,
    density: Density,
    options: Mapping[str, Any],
    num_steps: int,
    has_metric: bool,
) -> tuple[Any, Tuning]:
    """BlackJAX's tuning of step size, diagonal metric and decoherence length, a third of the steps each."""
    blackjax = load_blackjax()
    init_key, key = jax.random.split(key)
    state = _mclmc_init(init_key, position, tuning, density)
    start = _start_parameters(position, tuning, has_metric, 0.25)
    finds_metric = options["diagonal_preconditioning"] and not has_metric
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
    return state, _found(tuning, found, decoherence_length=found.L)


def _start_parameters(position: Params, tuning: Tuning, has_metric: bool, share: float) -> Any:
    """Where the tuning starts: BlackJAX's own values, in the type of the parameters."""
    size = sum(leaf.size for leaf in jax.tree.leaves(position))
    dtype = tuning["temperature"].dtype
    metric = tuning["inverse_mass_matrix"] if has_metric else jnp.ones(size, dtype)
    length = jnp.sqrt(jnp.asarray(size, dtype))
    parameters = load_blackjax().adaptation.mclmc_adaptation.MCLMCAdaptationState
    return parameters(length, share * length, inverse_mass_matrix=metric)


def _found(tuning: Tuning, found: Any, **others: jax.Array) -> Tuning:
    """Tuning with what was found; a metric that is not positive makes the step size NaN, which ``sample`` reports."""
    metric = found.inverse_mass_matrix
    values = {"step_size": found.step_size, "inverse_mass_matrix": metric, **others}
    is_sound = jnp.all(jnp.stack([jnp.all(jnp.isfinite(value) & (value > 0)) for value in values.values()]))
    values["step_size"] = jnp.where(is_sound, found.step_size, jnp.nan)
    return {**tuning, **{name: value.astype(tuning["temperature"].dtype) for name, value in values.items()}}


def _adjusted_init(key: jax.Array, position: Params, tuning: Tuning, density: Density) -> Any:
    del key
    return load_blackjax().adjusted_mclmc.init(position, tempered(tuning, density))


def _adjusted_kernel() -> Callable[..., tuple[Any, Any]]:
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


def _adjusted_step(
    key: jax.Array, state: Any, tuning: Tuning, density: Density, options: Mapping[str, Any]
) -> tuple[Any, Stats]:
    del options
    new, info = _adjusted_kernel()(
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


def _adjusted_adapt(
    key: jax.Array,
    position: Params,
    tuning: Tuning,
    density: Density,
    options: Mapping[str, Any],
    num_steps: int,
    has_metric: bool,
) -> tuple[Any, Tuning]:
    """BlackJAX's tuning of step size and diagonal metric, for trajectories of the mean length that will be used."""
    blackjax = load_blackjax()
    init_key, key = jax.random.split(key)
    state, found, _ = blackjax.adjusted_mclmc_find_L_and_step_size(
        mclmc_kernel=_adjusted_kernel(),
        logdensity_fn=tempered(tuning, density),
        num_steps=num_steps,
        state=_adjusted_init(init_key, position, tuning, density),
        rng_key=key,
        target=options["target_acceptance_rate"],
        # The first share is run through twice.
        frac_tune1=1 / 3,
        frac_tune2=1 / 3,
        diagonal_preconditioning=options["diagonal_preconditioning"] and not has_metric,
        params=_start_parameters(position, tuning, has_metric, 0.2),
        target_num_integration_steps=tuning["mean_integration_steps"],
    )
    return state, _found(tuning, found)


MCLMC = KernelSpec(
    init=_mclmc_init,
    step=_mclmc_step,
    position=position_of,
    options={
        "decoherence_length": None,
        "energy_variance": 5e-4,
        "inverse_mass_matrix": None,
        "diagonal_preconditioning": True,
    },
    uses_minibatches=False,
    adapt=_mclmc_adapt,
)
ADJUSTED_MCLMC = KernelSpec(
    init=_adjusted_init,
    step=_adjusted_step,
    position=position_of,
    options={
        "target_acceptance_rate": 0.9,
        "mean_integration_steps": 2.0,
        "inverse_mass_matrix": None,
        "diagonal_preconditioning": True,
    },
    uses_minibatches=False,
    adapt=_adjusted_adapt,
)
