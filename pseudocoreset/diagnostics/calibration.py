"""Simulation-based calibration: do credible intervals hold the truth as often as they say?

Parameters are drawn from the prior, data from the parameters, and the posterior given those data is sampled. Averaged
over such simulations the parameters and the draws have the same law, so the rank of the former among L of the latter
is uniform on 0..L (Cook, Gelman and Rubin 2006; Talts et al. 2018), as is that of any function of parameters and data
(Modrák et al. 2023). A sampler, a temperature or a coreset that changes the posterior shows in the ranks.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pseudocoreset.arguments import check_call, checked
from pseudocoreset.batching import full_precision
from pseudocoreset.diagnostics.formatting import json_values, number, text_table
from pseudocoreset.diagnostics.ranks import (
    autocorrelations,
    chi_square_p_value,
    draws_to_independence,
    ecdf_p_value,
    ranks_of,
)
from pseudocoreset.meshes import check_mesh, replicate, to_host
from pseudocoreset.validation import check_integer, check_key, key_record

if TYPE_CHECKING:
    from pseudocoreset.inference import Kernel
    from pseudocoreset.models import Model

__all__ = ["Calibration", "calibrate"]

FUNCTION_INPUTS = 3
MAX_AUTOCORRELATION = 0.2  # above it ranks are uneven enough to warn of
PILOT_STRETCHES = (1, 4, 16, 64)  # steps from draw to draw while that is measured, one after another until one will do
Coreset = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Ranks of true values among posterior draws, over simulations.

    Attributes:
        quantities: Names of the q scalars that were ranked.
        num_draws: L, draws that a rank counts.
        ranks: (simulation, q) integers from 0 to L: how many draws lie below the truth.
        truths: (simulation, q) values at the parameters that made the data.
        means: (simulation, q) posterior means.
        deviations: (simulation, q) posterior standard deviations.
        autocorrelations: (q,) of successive draws, averaged over simulations. Ranks are uniform if it is near zero.
        metadata: model, kernel, options, thinning, divergent draws, key, seconds: JSON-able.
    """

    quantities: tuple[str, ...]
    num_draws: int
    ranks: np.ndarray
    truths: np.ndarray
    means: np.ndarray
    deviations: np.ndarray
    autocorrelations: np.ndarray
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def num_simulations(self) -> int:
        """Simulations."""
        return len(self.ranks)

    @property
    def p_values(self) -> dict[str, float]:
        """Of each quantity: that uniform ranks leave a band around uniformity as wide as the ranks need; exact."""
        return {
            name: ecdf_p_value(column, self.num_draws)
            for name, column in zip(self.quantities, self.ranks.T, strict=True)
        }

    @property
    def p_value(self) -> float:
        """Of all quantities together: the smallest of theirs times their number (Bonferroni), at most 1."""
        return min(1.0, len(self.quantities) * min(self.p_values.values()))

    @property
    def is_calibrated(self) -> bool:
        """Whether the ranks pass for uniform, p-value 0.01 or more: of right posteriors one in a hundred does not."""
        return self.p_value >= 0.01

    @property
    def errors(self) -> np.ndarray:
        """(simulation, q): truth minus posterior mean, in posterior standard deviations."""
        return (self.truths - self.means) / self.deviations

    @property
    def bias(self) -> np.ndarray:
        """(q,) mean of ``errors``: 0 if calibrated."""
        return self.errors.mean(axis=0)

    @property
    def spread(self) -> np.ndarray:
        """(q,) root mean square of ``errors``: about 1 if calibrated, 3 where posteriors are three times too narrow."""
        return np.sqrt(np.mean(self.errors**2, axis=0))

    @checked
    def coverage(self, level: float) -> np.ndarray:
        """(q,) share of the truths inside the central interval that is to hold a share ``level`` of them."""
        places = (self.ranks + 0.5) / (self.num_draws + 1)
        return np.mean(np.abs(places - 0.5) < level / 2, axis=0)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the values of single simulations, ready for JSON."""
        columns: dict[str, Any] = {
            "p_value": list(self.p_values.values()),
            "chi_square_p_value": [chi_square_p_value(column, self.num_draws) for column in self.ranks.T],
            "coverage_50": self.coverage(0.5),
            "coverage_90": self.coverage(0.9),
            "spread": self.spread,
            "bias": self.bias,
            "autocorrelation": self.autocorrelations,
        }
        rows = {
            name: {column: values[i] for column, values in columns.items()} for i, name in enumerate(self.quantities)
        }
        content = {
            "num_simulations": self.num_simulations,
            "num_draws": self.num_draws,
            "p_value": self.p_value,
            "is_calibrated": self.is_calibrated,
            "quantities": rows,
            "settings": self.metadata,
        }
        return dict(json_values(content))

    def __str__(self) -> str:
        content = self.as_dict()
        finding = (
            "ranks pass for uniform" if self.is_calibrated else "NOT calibrated: ranks of the truth are not uniform"
        )
        made = "".join(
            f", {name} {self.metadata[name]}" for name in ("model", "kernel", "temperature") if name in self.metadata
        )
        columns = ["p", "chi-square p", "in 50 %", "in 90 %", "spread", "bias", "autocorrelation"]
        rows = [[name, *(number(value) for value in row.values())] for name, row in content["quantities"].items()]
        head = (
            f"Calibration{made}: {finding} (p {number(self.p_value)}; {self.num_simulations} simulations of "
            f"{self.num_draws} draws)"
        )
        return text_table((head, columns, rows))


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
    # NumPyro programs and BlackJAX are for those who sample.
    from pseudocoreset.diagnostics import simulation
    from pseudocoreset.inference.data import Minibatch
    from pseudocoreset.inference.engine.guards import warn_of_no_mode
    from pseudocoreset.inference.engine.prepare import set_up, start_of
    from pseudocoreset.inference.kernels import resolve_kernel
    from pseudocoreset.inference.schedules import Constant

    started = time.perf_counter()
    check_key(key)
    mesh = check_mesh(mesh)
    num_simulations = check_integer(num_simulations, "num_simulations", 10)
    num_draws = check_integer(num_draws, "num_draws")
    at_once = None if at_once is None else check_integer(at_once, "at_once")
    example = _example(x)
    model = simulation.bind_to_inputs(model, example)
    if num_inputs is None:
        num_inputs = FUNCTION_INPUTS if model.is_network else 0
    num_inputs = check_integer(num_inputs, "num_inputs", 0)
    if num_inputs and not model.has_function:
        raise ValueError(f"num_inputs={num_inputs}: the program {model.name!r} has no function values, a site 'f'")
    kernel = resolve_kernel(kernel, kernel_options)
    if thinning is None and kernel.options().get("schedule", Constant()) != Constant():
        raise ValueError("schedule: thinning is measured by default, which a schedule does not allow; give thinning")
    if coreset is not None:
        check_call(coreset, 3, "coreset")
    coreset = coreset or _everything
    shapes = jax.eval_shape(coreset, jax.random.key(0), example, simulation.placeholder(model, example))
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
    plan, kernel = run.plan, run.kernel
    is_input = simulation.observes_inputs(model, example)

    data_key, coreset_key, init_key, warmup_key, pilot_key, draw_key, tie_key = jax.random.split(key, 7)
    inputs: dict[str, Any] = {"inputs_of": x} if callable(x) else {"inputs": example}
    simulated = simulation.simulate(model, is_input, jax.random.split(data_key, num_simulations), **inputs)
    _check_finite(simulated, "what was simulated")
    given = jax.jit(jax.vmap(coreset))(jax.random.split(coreset_key, num_simulations), simulated.x, simulated.y)
    _check_finite(given, "what coreset returned")
    rows = Minibatch(*given)
    ranked = simulation.Quantities(model, num_inputs, quantities)
    names = ranked.names(*_first(simulated))

    total_weight = float(jnp.mean(jnp.sum(rows.weights, axis=1)))
    positions, tuning, _ = start_of(run, init_key, total_weight)
    if run.is_centred:
        positions, tuning = simulation.centre(run, at_once, positions, tuning, rows)
        warn_of_no_mode(tuning, "simulations")
    rows, simulated, positions, tuning = replicate((rows, simulated, positions, tuning), mesh)
    warmup_keys = replicate(jax.random.split(warmup_key, num_simulations), mesh)
    states, tuning = simulation.warm_up(plan, run.num_warmup, at_once, mesh, warmup_keys, positions, tuning, rows)

    def draws(states: Any, key: jax.Array, thinning: int) -> Any:
        keys = replicate(jax.random.split(key, num_simulations), mesh)
        found = simulation.draw(plan, ranked, num_draws, at_once, mesh, thinning, keys, states, tuning, rows, simulated)
        finite, values, num_divergent = to_host((found.finite, found.values, found.num_divergent))
        if not np.all(finite):
            lost = int(np.sum(~finite))
            raise FloatingPointError(
                f"kernel {kernel.name!r} left the finite numbers in {lost} of {num_simulations} simulations; try a "
                "smaller step_size, a longer num_warmup, or a prior that does not ask for the extreme"
            )
        return found.states, np.asarray(values, float), int(np.sum(num_divergent))

    apart = run.thinning
    if thinning is None:
        for round_key, stretch in zip(jax.random.split(pilot_key, len(PILOT_STRETCHES)), PILOT_STRETCHES, strict=True):
            states, pilot, _ = draws(states, round_key, stretch)
            lag = draws_to_independence(pilot)
            apart = stretch * (lag or num_draws)
            if lag is not None:
                break
    _, values, num_divergent = draws(states, draw_key, apart)
    truths = np.asarray(to_host(simulation.at_truth(ranked, simulated)), float)
    correlations = autocorrelations(values)[1] if num_draws > 2 else np.zeros(len(names))
    if np.max(correlations) > MAX_AUTOCORRELATION:
        worst = names[int(np.argmax(correlations))]
        warnings.warn(
            f"successive draws of {worst!r} have a correlation of {np.max(correlations):.2f}, which makes ranks "
            f"uneven; try a thinning above {apart}",
            stacklevel=2,
        )
    return Calibration(
        quantities=names,
        num_draws=num_draws,
        ranks=ranks_of(values, truths, tie_key),
        truths=truths,
        means=values.mean(axis=1),
        deviations=values.std(axis=1, ddof=1) if num_draws > 1 else np.full_like(truths, np.nan),
        autocorrelations=correlations,
        metadata={
            "model": model.name,
            "kernel": kernel.name,
            "temperature": run.temperature,
            "num_warmup": run.num_warmup,
            "thinning": apart,
            "num_data": simulated.x.shape[1],
            "num_given": plan.num_data,
            "total_weight": total_weight,
            "batch_size": plan.batch_size,
            "num_divergences": num_divergent,
            "options": json_values(kernel.reported(_of_simulations(to_host(tuning)))),
            "key": key_record(key),
            "seconds": round(time.perf_counter() - started, 1),
        },
    )


def _example(x: Any) -> jax.Array:
    """Inputs of one simulation."""
    array = np.asarray(x(jax.random.key(0)) if callable(x) else x)
    if array.dtype == object or not np.issubdtype(array.dtype, np.number):
        raise TypeError(f"x must be inputs (n, *feature_shape) or a function of a key; got {type(x).__name__}")
    if array.ndim < 2 or len(array) == 0:
        raise ValueError(f"x must be inputs (n, *feature_shape), n at least 1; got shape {array.shape}")
    return jnp.asarray(array, jnp.result_type(float))


def _everything(key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The data themselves as a coreset."""
    del key
    return x, y, jnp.ones(x.shape[0])


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)


def _of_simulations(tuning: Any) -> Any:
    """Tuning with one leading axis, that of simulations."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tuning)


def _check_finite(tree: Any, what: str) -> None:
    finite = [np.isfinite(np.asarray(leaf)).reshape(len(leaf), -1).all(axis=1) for leaf in jax.tree.leaves(tree)]
    lost = int(np.sum(~np.logical_and.reduce(finite)))
    if lost:
        raise FloatingPointError(f"{what} is not finite in {lost} simulations; see to the priors of the model")
