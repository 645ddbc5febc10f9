"""Kernels that accept or reject by the exact log density: BlackJAX's NUTS and HMC, and HMC for networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from pseudocoreset.inference import hmc
from pseudocoreset.inference.kernel_spec import Density, KernelSpec, Stats, Tuning, position_of, tempered
from pseudocoreset.inference.lazy import load_blackjax
from pseudocoreset.models import Params

__all__ = ["HMC", "NETWORK_HMC", "NUTS"]


def _metropolis_init(key: jax.Array, position: Params, tuning: Tuning, density: Density) -> Any:
    del key
    return load_blackjax().hmc.init(position, tempered(tuning, density))


def _adapter(algorithm: str, static: tuple[str, ...]) -> Callable[..., tuple[Any, Tuning]]:
    """Stan's window adaptation of step size and mass matrix, or of the step size where the other is given."""

    def adapt(
        key: jax.Array,
        position: Params,
        tuning: Tuning,
        density: Density,
        options: Mapping[str, Any],
        num_steps: int,
        has_metric: bool,
    ) -> tuple[Any, Tuning]:
        if has_metric:
            metric: Any = _fixed_metric(tuning["inverse_mass_matrix"])
        else:
            metric = "welford_diag" if options["is_mass_matrix_diagonal"] else "welford_dense"
        blackjax = load_blackjax()
        warmup = blackjax.staged_adaptation(
            getattr(blackjax, algorithm),
            tempered(tuning, density),
            metric,
            target_acceptance_rate=options["target_acceptance_rate"],
            adaptation_info_fn=lambda *_: None,
            **{name: options[name] for name in static},
        )
        results, _ = warmup.run(key, position, num_steps=num_steps)
        found = {name: results.parameters[name] for name in ("step_size", "inverse_mass_matrix")}
        return results.state, {**tuning, **found}

    return adapt


class _FixedMetric(NamedTuple):
    inverse_mass_matrix: jax.Array


def _fixed_metric(inverse_mass_matrix: jax.Array) -> Any:
    return load_blackjax().adaptation.metric_recipes.MetricCore(
        init=lambda num_dimensions: _FixedMetric(inverse_mass_matrix),
        update=lambda state, position, gradient=None: state,
        final=lambda state: state,
    )


def _hmc_step(
    key: jax.Array, state: Any, tuning: Tuning, density: Density, options: Mapping[str, Any]
) -> tuple[Any, Stats]:
    metric = tuning["inverse_mass_matrix"]
    blackjax = load_blackjax()
    new, info = blackjax.hmc.build_kernel()(
        key, state, tempered(tuning, density), tuning["step_size"], metric, options["num_integration_steps"]
    )
    # BlackJAX reports the energy of the proposal; that of a rejected transition is the one it started with.
    start = -state.logdensity + blackjax.mcmc.metrics.default_metric(metric).kinetic_energy(info.momentum)
    stats = {
        "lp": new.logdensity * tuning["temperature"],
        "acceptance_rate": info.acceptance_rate,
        "diverging": info.is_divergent,
        "energy": jnp.where(info.is_accepted, info.energy, start),
        "n_steps": jnp.asarray(info.num_integration_steps, jnp.int32),
        "step_size": tuning["step_size"],
    }
    return new, stats


def _nuts_step(
    key: jax.Array, state: Any, tuning: Tuning, density: Density, options: Mapping[str, Any]
) -> tuple[Any, Stats]:
    new, info = load_blackjax().nuts.build_kernel()(
        key,
        state,
        tempered(tuning, density),
        tuning["step_size"],
        tuning["inverse_mass_matrix"],
        options["max_num_doublings"],
    )
    stats = {
        "lp": new.logdensity * tuning["temperature"],
        "acceptance_rate": info.acceptance_rate,
        "diverging": info.is_divergent,
        "energy": info.energy,
        "n_steps": jnp.asarray(info.num_integration_steps, jnp.int32),
        "tree_depth": jnp.asarray(info.num_trajectory_expansions, jnp.int32),
        "step_size": tuning["step_size"],
    }
    return new, stats


def _network_hmc_init(key: jax.Array, position: Params, tuning: Tuning, density: Density) -> hmc.HMCState:
    del key, tuning
    return hmc.init(position, *_terms_and_gradient(density))


def _terms_and_gradient(density: Density) -> tuple[Callable[[Params], Any], Callable[[Params], Params]]:
    terms = density.terms
    assert terms is not None
    return lambda params: terms(params, density.data), lambda params: density.gradient(params, density.data)


def _network_hmc_transition(
    key: jax.Array,
    state: hmc.HMCState,
    tuning: Tuning,
    density: Density,
    step_size: jax.Array,
    num_steps: jax.Array | int,
) -> tuple[hmc.HMCState, hmc.HMCInfo]:
    _, unravel = ravel_pytree(state.position)
    return hmc.build_kernel()(
        key,
        state,
        *_terms_and_gradient(density),
        step_size,
        num_steps,
        unravel(tuning["inverse_mass_matrix"]),
        tuning["temperature"],
    )


def _num_leapfrog_steps(key: jax.Array, tuning: Tuning, step_size: jax.Array) -> jax.Array:
    """Steps of a trajectory of the length asked for, jittered; drawn without looking at the state."""
    jitter = tuning["trajectory_jitter"] * jax.random.uniform(key, (), step_size.dtype, -1.0, 1.0)
    wanted = jnp.ceil(tuning["trajectory_length"] * (1 + jitter) / step_size)
    return jnp.clip(wanted, 1, tuning["max_num_steps"]).astype(jnp.int32)


def _network_hmc_step(
    key: jax.Array, state: hmc.HMCState, tuning: Tuning, density: Density, options: Mapping[str, Any]
) -> tuple[hmc.HMCState, Stats]:
    del options
    jitter_key, key = jax.random.split(key)
    step_size = tuning["step_size"]
    num_steps = _num_leapfrog_steps(jitter_key, tuning, step_size)
    new, info = _network_hmc_transition(key, state, tuning, density, step_size, num_steps)
    return new, {
        "lp": hmc.compensated_sum(new.terms),
        "acceptance_rate": info.acceptance_rate,
        "diverging": info.is_divergent,
        "energy": info.energy,
        "energy_change": info.energy_change,
        "n_steps": info.num_integration_steps,
        "step_size": step_size,
    }


def _network_hmc_adapt(
    key: jax.Array,
    position: Params,
    tuning: Tuning,
    density: Density,
    options: Mapping[str, Any],
    num_steps: int,
    has_metric: bool,
) -> tuple[hmc.HMCState, Tuning]:
    """Dual averaging of the step size on the acceptance rate of whole trajectories (Hoffman and Gelman 2014)."""
    del has_metric
    init_key, search_key, run_key = jax.random.split(key, 3)
    step_sizes = load_blackjax().adaptation.step_size
    state = _network_hmc_init(init_key, position, tuning, density)

    def single_leapfrog(step_size: jax.Array) -> Callable[..., Any]:
        return lambda key, state: _network_hmc_transition(key, state, tuning, density, step_size, 1)

    target = options["target_acceptance_rate"]
    begin, update, final = step_sizes.dual_averaging_adaptation(target)
    dtype = tuning["temperature"].dtype
    first = step_sizes.find_reasonable_step_size(search_key, single_leapfrog, state, jnp.ones((), dtype), target)

    def body(index: jax.Array, carry: Any) -> Any:
        state, averaging = carry
        jitter_key, key = jax.random.split(jax.random.fold_in(run_key, index))
        step_size = jnp.exp(averaging.log_step_size).astype(dtype)
        count = _num_leapfrog_steps(jitter_key, tuning, step_size)
        state, info = _network_hmc_transition(key, state, tuning, density, step_size, count)
        new = update(averaging, info.acceptance_rate)
        return state, jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), new, averaging)

    averaging = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), begin(first))
    state, averaging = jax.lax.fori_loop(0, num_steps, body, (state, averaging))
    return state, {**tuning, "step_size": final(averaging).astype(dtype)}


_ADAPTATION = {"target_acceptance_rate": 0.8, "inverse_mass_matrix": None, "is_mass_matrix_diagonal": True}

NUTS = KernelSpec(
    init=_metropolis_init,
    step=_nuts_step,
    position=position_of,
    options={**_ADAPTATION, "max_num_doublings": 10},
    uses_minibatches=False,
    adapt=_adapter("nuts", ("max_num_doublings",)),
)
HMC = KernelSpec(
    init=_metropolis_init,
    step=_hmc_step,
    position=position_of,
    options={**_ADAPTATION, "num_integration_steps": 10},
    uses_minibatches=False,
    adapt=_adapter("hmc", ("num_integration_steps",)),
)
NETWORK_HMC = KernelSpec(
    init=_network_hmc_init,
    step=_network_hmc_step,
    position=position_of,
    options={
        "target_acceptance_rate": 0.8,
        "inverse_mass_matrix": None,
        "trajectory_length": None,
        "trajectory_jitter": 0.2,
        "max_num_steps": 1000,
    },
    uses_minibatches=False,
    adapt=_network_hmc_adapt,
)
