"""``calibrate``: simulation-based calibration, do credible intervals hold the truth as often as they say?

Parameters are drawn from the prior, data from the parameters, and the posterior given those data is sampled. Averaged
over such simulations the parameters and the draws have the same law, so the rank of the former among L of the latter
is uniform on 0..L (Cook, Gelman and Rubin 2006; Talts et al. 2018), as is that of any function of parameters and data
(Modrák et al. 2023). A sampler, a temperature or a coreset that changes the posterior shows in the ranks.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pseudocoreset.arguments import blaming, check_call, checked
from pseudocoreset.compute.backends import full_precision
from pseudocoreset.compute.devices import Devices
from pseudocoreset.compute.processes import to_host
from pseudocoreset.formatting import json_values
from pseudocoreset.inference.engine import Kernel, Run
from pseudocoreset.inference.engine.guards import warn_of_no_mode
from pseudocoreset.inference.engine.prepare import set_up, start_of
from pseudocoreset.inference.kernels import resolve_kernel
from pseudocoreset.inference.schedules import Constant
from pseudocoreset.models import Model
from pseudocoreset.rows import Rows
from pseudocoreset.sbc.calibration import Calibration
from pseudocoreset.sbc.ranks import autocorrelations, draws_to_independence, ranks_of
from pseudocoreset.sbc.simulation import (
    Quantities,
    Simulated,
    at_truth,
    bind_to_inputs,
    centre,
    draw,
    first_of,
    observes_inputs,
    placeholder,
    simulate,
    warm_up,
)
from pseudocoreset.validation import check_integer, check_key, key_record

__all__ = ["calibrate"]

FUNCTION_INPUTS = 3
MAX_AUTOCORRELATION = 0.2  # above it ranks are uneven enough to warn of
PILOT_STRETCHES = (1, 4, 16, 64)  # steps from draw to draw while that is measured, one after another until one will do
Coreset = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]


@checked
@full_precision()
def calibrate(
    model: Model,
    x: Any,
    *,
    kernel: str | Kernel = "nuts",
    num_simulations: int = 200,
    num_draws: int = 99,
    num_warmup: int = 300,
    thinning: int | None = None,
    temperature: float = 1.0,
    batch_size: int | None = None,
    step_size: float | None = None,
    coreset: Coreset | None = None,
    quantities: Callable[..., Any] | None = None,
    num_inputs: int | None = None,
    at_once: int | None = None,
    mesh: Mesh | None = None,
    key: jax.Array,
    **kernel_options: Any,
) -> Calibration:
    """Simulation-based calibration of a model, a kernel and, where one is given, a way to make coresets.

    Simulations run side by side in one compiled computation, one chain each, by the same kernels, adaptation and
    defaults as ``pseudocoreset.inference.sample``, started where ``model.init`` says. Meant for small models: the data
    and draws of all simulations are in memory together.

    At the defaults ``is_calibrated`` is false for a posterior whose standard deviations are 0.7 of the right ones in
    some 97 % of cases, for 0.8 of them in 36 %, for 1.25 of them in 19 %, and for a mean 0.3 of them off in 72 %; 600
    simulations find 0.8 in 95 % (one of four quantities wrong; normal posteriors).

    Ranked are the elements of latent sites (of at most 16; not the weights of a network, whose symmetries no chain
    explores), the log-likelihood of the data, which sees what no single parameter does, such as a posterior that has
    forgotten its data, and function values at a few inputs.

    Args:
        model: the model. Its program has to make its data: no factors, no scaled sites.
        x: inputs (n, *feature_shape) of every simulated data set, or a function ``key -> x`` that JAX can trace.
        kernel: as for ``sample``.
        num_simulations: data sets, at least 10.
        num_draws: L, draws that a rank counts, at least 1. One less than a round number makes even histograms.
        num_warmup: steps of each chain before the first draw.
        thinning: steps from draw to draw. By default measured on a first stretch of draws, so that successive
            draws are close to independent.
        temperature: T of the sampled posterior; any but 1 is miscalibrated.
        batch_size: as for ``sample``.
        step_size: as for ``sample``.
        coreset: ``(key, x, y) -> (x, y, weights)``, which JAX can trace: what the posterior is given in place of the
            simulated data. The data themselves by default.
        quantities: ``(values, x, y) -> {name: scalar}``, more to be ranked: a function of the values of the latent
            sites, as the program sees them, and the simulated data.
        num_inputs: inputs at which function values are ranked; by default 3 of a network, none of other models.
        at_once: simulations that run side by side; all by default, fewer to bound memory.
        mesh: devices that share the simulations, ``jax.make_mesh((4,), ("devices",))``; ``at_once`` is then of each.
        key: one typed key.
        **kernel_options: as for ``sample``; a schedule needs ``thinning``.

    Returns:
        ``Calibration``.

    Raises:
        TypeError, ValueError: for arguments that do not fit, before any chain runs.
        FloatingPointError: when a chain, or what was simulated, leaves the finite numbers.
    """
    started = time.perf_counter()
    check_key(key)
    devices = Devices.of(mesh)
    num_simulations = check_integer(num_simulations, "num_simulations", 10)
    num_draws = check_integer(num_draws, "num_draws")
    devices = devices.taking("all" if at_once is None else check_integer(at_once, "at_once"))
    example = _example(x)
    model = bind_to_inputs(model, example)
    num_inputs = _number_of_inputs(num_inputs, model)
    kernel = resolve_kernel(kernel, kernel_options)
    if thinning is None and kernel.options().get("schedule", Constant()) != Constant():
        raise ValueError("schedule: thinning is measured by default, which a schedule does not allow; give thinning")
    coreset = _checked(coreset)
    with blaming("coreset(key, x, y)"):
        shapes = jax.eval_shape(coreset, jax.random.key(0), example, placeholder(model, example))
    run = set_up(
        model,
        kernel,
        num_data=shapes[0].shape[0],
        feature_shape=shapes[0].shape[1:],
        num_chains=num_simulations,
        num_warmup=num_warmup,
        num_samples=num_draws,
        thinning=1 if thinning is None else thinning,
        temperature=temperature,
        batch_size=batch_size,
        step_size=step_size,
    )
    data_keys, init_key, warmup_key, pilot_key, draw_key, tie_key = _keys(key)
    simulated, rows = _simulated(model, x if callable(x) else example, coreset, data_keys, num_simulations)
    ranked = Quantities(model, num_inputs, quantities)
    total_weight = float(jnp.mean(jnp.sum(rows.weights, axis=1)))
    chains, states = _Chains.warmed_up(
        run, ranked, num_draws, devices, simulated, rows, (init_key, warmup_key), total_weight
    )
    apart = run.thinning
    if thinning is None:
        states, apart = chains.measured_thinning(states, pilot_key)
    _, values, num_divergent = chains.draws(states, draw_key, apart)
    settings = {"num_divergences": num_divergent, "total_weight": total_weight, "thinning": apart}
    return _ranked(chains, values, tie_key, chains.metadata(settings, key, started))


@dataclass(frozen=True)
class _Chains:
    """A chain for every simulated data set, all moved together.

    Attributes:
        run: of one chain.
        quantities: what is ranked.
        num_draws: draws that a rank counts.
        devices: that share the simulations, so many of them side by side.
        simulated: parameters and data.
        rows: what the posteriors are given.
        tuning: of every chain.
    """

    run: Run
    quantities: Quantities
    num_draws: int
    devices: Devices
    simulated: Simulated
    rows: Rows
    tuning: Any

    @classmethod
    def warmed_up(
        cls,
        run: Run,
        quantities: Quantities,
        num_draws: int,
        devices: Devices,
        simulated: Simulated,
        rows: Rows,
        keys: tuple[jax.Array, jax.Array],
        total_weight: float,
    ) -> tuple[_Chains, Any]:
        """The chains after their warmup, and the states of the kernel; the keys are of starts and of the warmup."""
        positions, tuning, _ = start_of(run, keys[0], total_weight)
        if run.is_centred:
            positions, tuning = centre(run, devices.within, positions, tuning, rows)
            warn_of_no_mode(tuning, "simulations")
        rows, simulated, positions, tuning = devices.replicate((rows, simulated, positions, tuning))
        warmup_keys = devices.replicate(jax.random.split(keys[1], len(simulated.x)))
        states, tuning = warm_up(run.plan, run.num_warmup, devices, warmup_keys, positions, tuning, rows)
        return cls(run, quantities, num_draws, devices, simulated, rows, tuning), states

    @property
    def num_simulations(self) -> int:
        """Simulations."""
        return len(self.simulated.x)

    def draws(self, states: Any, key: jax.Array, thinning: int) -> tuple[Any, np.ndarray, int]:
        """States after the draws, the quantities (simulation, draw, q), and how many draws diverged."""
        found = draw(
            self.run.plan,
            self.quantities,
            self.num_draws,
            self.devices,
            thinning,
            self.devices.replicate(jax.random.split(key, self.num_simulations)),
            states,
            self.tuning,
            self.rows,
            self.simulated,
        )
        finite, values, num_divergent = to_host((found.finite, found.values, found.num_divergent))
        if not np.all(finite):
            lost = int(np.sum(~finite))
            raise FloatingPointError(
                f"kernel {self.run.kernel.name!r} left the finite numbers in {lost} of {self.num_simulations} "
                "simulations; try a smaller step_size, a longer num_warmup, or a prior that does not ask for the "
                "extreme"
            )
        return found.states, np.asarray(values, float), int(np.sum(num_divergent))

    def measured_thinning(self, states: Any, key: jax.Array) -> tuple[Any, int]:
        """States after some stretches of draws, and how far apart draws have to be to be nearly independent."""
        apart = self.num_draws
        for stretch_key, stretch in zip(jax.random.split(key, len(PILOT_STRETCHES)), PILOT_STRETCHES, strict=True):
            states, pilot, _ = self.draws(states, stretch_key, stretch)
            lag = draws_to_independence(pilot)
            apart = stretch * (lag or self.num_draws)
            if lag is not None:
                break
        return states, apart

    def metadata(self, found: dict[str, Any], key: jax.Array, started: float) -> dict[str, Any]:
        """What the ranks were made by, JSON-able."""
        run, plan = self.run, self.run.plan
        return {
            "model": self.quantities.model.name,
            "kernel": run.kernel.name,
            "temperature": run.temperature,
            "num_warmup": run.num_warmup,
            "thinning": found["thinning"],
            "num_data": self.simulated.x.shape[1],
            "num_given": plan.num_data,
            "total_weight": found["total_weight"],
            "batch_size": plan.batch_size,
            "num_divergences": found["num_divergences"],
            "options": json_values(run.kernel.reported(_of_simulations(to_host(self.tuning)))),
            "key": key_record(key),
            "seconds": round(time.perf_counter() - started, 1),
        }


def _keys(key: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Keys of the data and of coresets, of starts, warmup, pilot draws, draws, and of ties."""
    data, coreset, init, warmup, pilot, draws, ties = jax.random.split(key, 7)
    return (data, coreset), init, warmup, pilot, draws, ties


def _number_of_inputs(num_inputs: int | None, model: Model) -> int:
    """Inputs at which function values are ranked."""
    if num_inputs is None:
        num_inputs = FUNCTION_INPUTS if model.is_network else 0
    num_inputs = check_integer(num_inputs, "num_inputs", 0)
    if num_inputs and not model.has_function:
        raise ValueError(f"num_inputs={num_inputs}: the program {model.name!r} has no function values, a site 'f'")
    return num_inputs


def _simulated(
    model: Model, x: Any, coreset: Coreset, keys: tuple[jax.Array, jax.Array], num_simulations: int
) -> tuple[Simulated, Rows]:
    """Parameters and data, and what the posteriors are given in their place; ``x`` is inputs, or makes them."""
    is_input = observes_inputs(model, _example(x))
    inputs: dict[str, Any] = {"inputs_of": x} if callable(x) else {"inputs": x}
    simulated = simulate(model, is_input, jax.random.split(keys[0], num_simulations), **inputs)
    _check_finite(simulated, "what was simulated")
    given = jax.jit(jax.vmap(coreset))(jax.random.split(keys[1], num_simulations), simulated.x, simulated.y)
    _check_finite(given, "what coreset returned")
    return simulated, Rows(*given)


def _ranked(chains: _Chains, values: np.ndarray, key: jax.Array, metadata: dict[str, Any]) -> Calibration:
    """The truths among the draws (simulation, draw, q), the key breaking ties."""
    num_draws, names = chains.num_draws, chains.quantities.names(*first_of(chains.simulated))
    truths = np.asarray(to_host(at_truth(chains.quantities, chains.simulated)), float)
    correlations = autocorrelations(values)[1] if num_draws > 2 else np.zeros(len(names))
    _warn_of_correlation(names, correlations, metadata["thinning"])
    return Calibration(
        quantities=names,
        num_draws=num_draws,
        ranks=ranks_of(values, truths, key),
        truths=truths,
        means=values.mean(axis=1),
        deviations=values.std(axis=1, ddof=1) if num_draws > 1 else np.full_like(truths, np.nan),
        autocorrelations=correlations,
        metadata=metadata,
    )


def _warn_of_correlation(names: Sequence[str], correlations: np.ndarray, thinning: int) -> None:
    if np.max(correlations) > MAX_AUTOCORRELATION:
        worst = names[int(np.argmax(correlations))]
        warnings.warn(
            f"successive draws of {worst!r} have a correlation of {np.max(correlations):.2f}, which makes ranks "
            f"uneven; try a thinning above {thinning}",
            stacklevel=4,
        )


def _example(x: Any) -> jax.Array:
    """Inputs of one simulation."""
    with blaming("x(key)"):
        array = np.asarray(x(jax.random.key(0)) if callable(x) else x)
    if array.dtype == object or not np.issubdtype(array.dtype, np.number):
        raise TypeError(f"x must be inputs (n, *feature_shape) or a function of a key; got {type(x).__name__}")
    if array.ndim < 2 or len(array) == 0:
        raise ValueError(f"x must be inputs (n, *feature_shape), n at least 1; got shape {array.shape}")
    return jnp.asarray(array, jnp.result_type(float))


def _checked(coreset: Coreset | None) -> Coreset:
    if coreset is None:
        return _everything
    check_call(coreset, 3, "coreset")
    return coreset


def _everything(key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The data themselves as a coreset."""
    del key
    return x, y, jnp.ones(x.shape[0])


def _of_simulations(tuning: Any) -> Any:
    """Tuning with one leading axis, that of simulations."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tuning)


def _check_finite(tree: Any, what: str) -> None:
    finite = [np.isfinite(np.asarray(leaf)).reshape(len(leaf), -1).all(axis=1) for leaf in jax.tree.leaves(tree)]
    lost = int(np.sum(~np.logical_and.reduce(finite)))
    if lost:
        raise FloatingPointError(f"{what} is not finite in {lost} simulations; see to the priors of the model")
