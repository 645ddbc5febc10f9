"""The kernels that ``sample`` drives, each behind the same three functions.

========================  ===========================================================================
``"nuts"``, ``"hmc"``     BlackJAX, on the exact log density; window adaptation during the warmup
``"sghmc"``               ``pseudocoreset.inference.sghmc``: persistent momentum, splitting integrator
``"sgld"``                BlackJAX's stochastic gradient Langevin dynamics (Euler)
``"blackjax_sghmc"``      BlackJAX 1.7.1's SGHMC, for comparison only. **Its draws have the wrong variance**
                          unless friction times trajectory length is large: on N(0, 1) with step 0.05, ten
                          integration steps and friction 1 it is 1.09 times the target's at temperature 1,
                          8.4 times at 0.1 and 81 times at 0.01. Momentum has unit variance at every
                          temperature, and one minibatch serves a whole trajectory.
========================  ===========================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pseudocoreset.inference import sghmc
from pseudocoreset.inference.data import Minibatch
from pseudocoreset.inference.lazy import load_blackjax
from pseudocoreset.models import Params

__all__ = ["KERNELS", "Density", "KernelSpec"]

Stats = dict[str, jax.Array]
Tuning = dict[str, jax.Array]


class Density(NamedTuple):
    """What a kernel may ask of the target, at temperature one.

    log_density
        ``(params, minibatch) -> scalar``, unbiased, and exact on ``data``.
    gradient
        ``(params, minibatch) -> params``, its gradient: an estimator in BlackJAX's form.
    minibatch
        ``key -> Minibatch``; all data where no batch size was asked for.
    data
        All data.
    """

    log_density: Callable[[Params, Minibatch], jax.Array]
    gradient: Callable[[Params, Minibatch], Params]
    minibatch: Callable[[jax.Array], Minibatch]
    data: Minibatch


class KernelSpec(NamedTuple):
    """One algorithm for one chain.

    init
        ``(key, position, tuning, density) -> state``.
    step
        ``(key, state, tuning, density, options) -> (state, stats)``; stats have ArviZ's names.
    position
        ``state -> params``.
    options
        Names and defaults of what ``sample`` takes as ``**kernel_options`` (None: decided by ``sample``).
    uses_minibatches
        Whether gradients are estimated; otherwise the kernel needs the exact log density and accepts or
        rejects.
    adapt
        ``(key, position, tuning, density, options, num_steps, has_metric) -> (state, tuning)`` or None.
    """

    init: Callable[..., Any]
    step: Callable[..., tuple[Any, Stats]]
    position: Callable[[Any], Params]
    options: Mapping[str, Any]
    uses_minibatches: bool
    adapt: Callable[..., tuple[Any, Tuning]] | None = None


def _tempered(tuning: Tuning, density: Density) -> Callable[[Params], jax.Array]:
    return lambda params: density.log_density(params, density.data) / tuning["temperature"]


def _metropolis_init(key: jax.Array, position: Params, tuning: Tuning, density: Density) -> Any:
    del key
    return load_blackjax().hmc.init(position, _tempered(tuning, density))


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
            _tempered(tuning, density),
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
        key, state, _tempered(tuning, density), tuning["step_size"], metric, options["num_integration_steps"]
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
        _tempered(tuning, density),
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


def _sghmc_init(key: jax.Array, position: Params, tuning: Tuning, density: Density) -> sghmc.SGHMCState:
    del density
    return sghmc.init(position, key, tuning["temperature"])


def _sghmc_step(
    key: jax.Array, state: sghmc.SGHMCState, tuning: Tuning, density: Density, options: Mapping[str, Any]
) -> tuple[sghmc.SGHMCState, Stats]:
    del options
    batch_key, step_key = jax.random.split(key)
    new, info = sghmc.build_kernel()(
        step_key,
        state,
        density.gradient,
        density.minibatch(batch_key),
        tuning["step_size"],
        tuning["friction"],
        tuning["temperature"],
    )
    return new, {"kinetic_temperature": info.kinetic_temperature, "step_size": tuning["step_size"]}


def _position_init(key: jax.Array, position: Params, tuning: Tuning, density: Density) -> Params:
    del key, tuning, density
    return position


def _sgld_step(
    key: jax.Array, state: Params, tuning: Tuning, density: Density, options: Mapping[str, Any]
) -> tuple[Params, Stats]:
    del options
    batch_key, step_key = jax.random.split(key)
    new = load_blackjax().sgld.build_kernel()(
        step_key,
        state,
        density.gradient,
        density.minibatch(batch_key),
        tuning["step_size"],
        tuning["temperature"],
    )
    return new, {"step_size": tuning["step_size"]}


def _blackjax_sghmc_step(
    key: jax.Array, state: Params, tuning: Tuning, density: Density, options: Mapping[str, Any]
) -> tuple[Params, Stats]:
    batch_key, step_key = jax.random.split(key)
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


def _itself(state: Params) -> Params:
    return state


def _position_of(state: Any) -> Params:
    return state.position


_ADAPTATION = {"target_acceptance_rate": 0.8, "inverse_mass_matrix": None, "is_mass_matrix_diagonal": True}

KERNELS: Mapping[str, KernelSpec] = {
    "nuts": KernelSpec(
        init=_metropolis_init,
        step=_nuts_step,
        position=_position_of,
        options={**_ADAPTATION, "max_num_doublings": 10},
        uses_minibatches=False,
        adapt=_adapter("nuts", ("max_num_doublings",)),
    ),
    "hmc": KernelSpec(
        init=_metropolis_init,
        step=_hmc_step,
        position=_position_of,
        options={**_ADAPTATION, "num_integration_steps": 10},
        uses_minibatches=False,
        adapt=_adapter("hmc", ("num_integration_steps",)),
    ),
    "sghmc": KernelSpec(
        init=_sghmc_init,
        step=_sghmc_step,
        position=_position_of,
        options={"friction": None},
        uses_minibatches=True,
    ),
    "sgld": KernelSpec(init=_position_init, step=_sgld_step, position=_itself, options={}, uses_minibatches=True),
    "blackjax_sghmc": KernelSpec(
        init=_position_init,
        step=_blackjax_sghmc_step,
        position=_itself,
        options={"friction": None, "num_integration_steps": 10},
        uses_minibatches=True,
    ),
}
