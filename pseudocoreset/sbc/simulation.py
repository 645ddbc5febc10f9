"""Parameters from the prior, data from the parameters, and a chain for each such data set, all at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.distributions.transforms import biject_to

from pseudocoreset.arguments import blaming
from pseudocoreset.compute.devices import Devices
from pseudocoreset.inference.engine import Plan, Run
from pseudocoreset.inference.engine.blocks import adapt_chains, run_block
from pseudocoreset.models import Model, Params
from pseudocoreset.models.structure import is_factor
from pseudocoreset.rows import Rows, spread_indices

__all__ = [
    "Draws",
    "Quantities",
    "Simulated",
    "at_truth",
    "bind_to_inputs",
    "centre",
    "draw",
    "first_of",
    "observes_inputs",
    "placeholder",
    "simulate",
    "warm_up",
]

MAX_SITE_ELEMENTS = 16
NUM_ROWS = 10_007  # by which the plate over the data is told from others


class Simulated(NamedTuple):
    """One simulation, or a stack of them.

    params
        Unconstrained parameters, from the prior.
    x, y
        Data from the likelihood given them.
    """

    params: Params
    x: jax.Array
    y: jax.Array


def bind_to_inputs(model: Model, x: Any) -> Model:
    """The model with the shape of a datum fixed by inputs (n, ...) alone: a target has that of what is drawn for it."""
    if model.structure is not None:
        return model.bind(x, jax.ShapeDtypeStruct((x.shape[0], *model.structure.y.shape), model.structure.y.dtype))
    shapes: list[jax.ShapeDtypeStruct] = []

    def run(x: jax.Array) -> None:
        trace = handlers.trace(handlers.seed(model.program, jax.random.key(0))).get_trace(x, None)
        for site in trace.values():
            is_target = site["type"] == "sample" and not site["is_observed"]
            if is_target and any(frame.size == NUM_ROWS for frame in site["cond_indep_stack"]):
                shapes.append(jax.ShapeDtypeStruct(jnp.shape(site["value"]), jnp.result_type(site["value"])))

    jax.eval_shape(run, jax.ShapeDtypeStruct((NUM_ROWS, *x.shape[1:]), jnp.result_type(float)))
    # A program that observes its inputs leaves its targets alone, and any will do.
    return model.bind(x, shapes[0] if len(shapes) == 1 else jax.ShapeDtypeStruct((NUM_ROWS,), jnp.result_type(float)))


def placeholder(model: Model, x: jax.Array) -> jax.Array:
    """Targets, zeros, of the shape that a bound model's have for inputs (n, ...)."""
    assert model.structure is not None
    return jnp.zeros((x.shape[0], *model.structure.y.shape), model.structure.y.dtype)


def _drawn(model: Model, key: jax.Array, x: jax.Array) -> dict[str, Any]:
    """The sites of a run of the program in which every one is drawn and nothing observed."""
    program = handlers.seed(handlers.uncondition(model.program), key)
    return handlers.trace(program).get_trace(x, placeholder(model, x))


def observes_inputs(model: Model, x: jax.Array) -> bool:
    """Whether the program observes its inputs rather than its targets.

    Args:
        model: a bound model.
        x: inputs (n, *feature_shape).

    Raises:
        ValueError: if data cannot be drawn from the program: it has a factor or a site under a scale, or observes a
            transform of its data.
    """
    assert model.structure is not None
    if len(model.terms) > 1:
        raise ValueError(
            f"model: {model.name!r} has the observed sites and factors {[term.name for term in model.terms]}; "
            "calibration draws the data of one observed site"
        )
    program = handlers.seed(model.program, jax.random.key(0))
    for name, site in handlers.trace(program).get_trace(x, placeholder(model, x)).items():
        if site["type"] == "sample" and (is_factor(site) or site.get("scale") is not None):
            what = "is a factor" if is_factor(site) else "has a scale"
            raise ValueError(
                f"model: the site {name!r} of {model.name!r} {what}, so the density of the model is not that of what "
                "its program draws; calibration needs a program that makes its data"
            )
    trace = _drawn(model, jax.random.key(1), x)
    values = {site.name: trace[site.name]["value"] for site in model.structure.sites}
    data = trace[model.structure.observed]["value"]
    for is_input in (False, True):
        if is_input and data.size != x.size:
            continue
        arguments = (data.reshape(x.shape), placeholder(model, x)) if is_input else (x, data)
        again = handlers.trace(handlers.substitute(program, values)).get_trace(*arguments)
        if np.array_equal(again[model.structure.observed]["value"], data):
            return is_input
    raise ValueError(
        f"model: what {model.name!r} observes is neither its targets nor its inputs but made of them, so data cannot "
        "be drawn from it; make that transformation before the data are given to the program"
    )


@functools.partial(jax.jit, static_argnames=("model", "is_input", "inputs_of"))
def simulate(
    model: Model,
    is_input: bool,
    keys: jax.Array,
    inputs: jax.Array | None = None,
    inputs_of: Callable[[jax.Array], jax.Array] | None = None,
) -> Simulated:
    """Simulations, one a key, on the given inputs or on those that ``inputs_of`` makes of a key."""
    assert model.structure is not None
    structure = model.structure

    def one(key: jax.Array) -> Simulated:
        inputs_key, program_key = jax.random.split(key)
        x = inputs if inputs_of is None else inputs_of(inputs_key)
        assert x is not None
        trace = _drawn(model, program_key, x)
        params = {
            site.name: biject_to(trace[site.name]["fn"].support).inv(trace[site.name]["value"])
            for site in structure.sites
        }
        data = trace[structure.observed]["value"]
        if is_input:
            return Simulated(params, data.reshape(x.shape), placeholder(model, x))
        return Simulated(params, x, data.astype(structure.y.dtype))

    return jax.vmap(one)(keys)


@dataclass(frozen=True)
class Quantities:
    """Scalars of parameters and data whose ranks are taken.

    Attributes:
        model: a bound model.
        num_inputs: inputs at which function values are taken.
        more: ``(values, x, y) -> {name: scalar}`` of the constrained sites and the data, or None.
    """

    model: Model
    num_inputs: int
    more: Callable[[Params, jax.Array, jax.Array], Mapping[str, jax.Array]] | None

    def of(self, params: Params, x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
        """All of them by name, scalars: small sites, the log-likelihood, function values, and what was asked for."""
        values = self.model.constrain(params)
        found: dict[str, jax.Array] = {}
        for name, value in values.items():
            if value.size <= MAX_SITE_ELEMENTS and not name.startswith("network/"):
                found |= _elements(name, value)
        found["log_likelihood"] = jnp.sum(self.model.log_likelihood(params, x, y))
        if self.num_inputs:
            rows = spread_indices(x.shape[0], self.num_inputs)
            f = self.model.apply(params, x[rows])
            found |= _elements("f", f[:, 0] if f.shape[1] == 1 else f)
        return found | self._asked_for(values, x, y)

    def _asked_for(self, values: Params, x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
        if self.more is None:
            return {}
        with blaming("quantities(values, x, y), which returns {name: scalar},"):
            found = {str(name): jnp.asarray(value) for name, value in self.more(values, x, y).items()}
        wrong = {name: value.shape for name, value in found.items() if value.shape}
        if wrong:
            raise ValueError(f"quantities must give scalars; got the shapes {wrong}")
        return found

    def names(self, params: Params, x: jax.Array, y: jax.Array) -> tuple[str, ...]:
        """Their names, in the order of ``stacked``; JAX would sort those of a dictionary."""
        found: list[str] = []
        jax.eval_shape(lambda *arguments: found.extend(self.of(*arguments)), params, x, y)
        return tuple(found)

    def stacked(self, params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        """Their values (q,)."""
        return jnp.stack(list(self.of(params, x, y).values()))


def _elements(name: str, value: jax.Array) -> dict[str, jax.Array]:
    if value.ndim == 0:
        return {name: value}
    return {f"{name}[{', '.join(map(str, index))}]": value[index] for index in np.ndindex(value.shape)}


def _stack_of(tree: Any) -> Any:
    """Everything with a leading axis of one, as functions of several chains take it."""
    return jax.tree.map(lambda leaf: leaf[None], tree)


def first_of(tree: Any) -> Any:
    """The first of everything that is stacked."""
    return jax.tree.map(lambda leaf: leaf[0], tree)


def centre(run: Run, devices: Devices, positions: Params, tuning: Any, rows: Rows) -> tuple[Params, Any]:
    """Positions and tuning (S, ...) with the centres of control variates, of every simulation's own data."""

    def one(item: Any) -> tuple[Params, Any]:
        position, tuned, data = item
        return first_of(run.kernel.centred(run, _stack_of(position), _stack_of(tuned), data))

    return devices.map(one, (positions, tuning, rows))


@functools.partial(jax.jit, static_argnames=("plan", "num_warmup", "devices"))
def warm_up(
    plan: Plan,
    num_warmup: int,
    devices: Devices,
    keys: jax.Array,
    positions: Params,
    tuning: Any,
    rows: Rows,
) -> tuple[Any, Any]:
    """Kernel states and tuning after the warmup, adapted where the step size is not given; leaves (S, 1, ...)."""

    def one(item: Any) -> tuple[Any, Any]:
        key, position, tuned, data = item
        if "step_size" not in tuned:
            return adapt_chains(plan, num_warmup, key[None], _stack_of(position), _stack_of(tuned), data)
        split = jax.random.split(key)
        state = _stack_of(plan.kernel.init(split[0], position, tuned, plan.density(data)))
        tuned = _stack_of(tuned)
        state, _, _ = run_block(plan, 1, False, 1, state, tuned, split[1:], 0, num_warmup, data, None)
        return state, tuned

    return devices.map(one, (keys, positions, tuning, rows))


@functools.partial(jax.jit, static_argnames="quantities")
def at_truth(quantities: Quantities, simulated: Simulated) -> jax.Array:
    """The quantities (S, q) at the parameters that made the data."""
    return jax.vmap(quantities.stacked)(*simulated)


class Draws(NamedTuple):
    """Of every simulation.

    states
        Of the kernel, after the last draw.
    values
        (simulation, draw, q) quantities.
    finite
        (simulation,) whether all are finite.
    num_divergent
        (simulation,) draws that come from divergent transitions.
    """

    states: Any
    values: jax.Array
    finite: jax.Array
    num_divergent: jax.Array


@functools.partial(jax.jit, static_argnames=("plan", "quantities", "num_draws", "devices"))
def draw(
    plan: Plan,
    quantities: Quantities,
    num_draws: int,
    devices: Devices,
    thinning: int,
    keys: jax.Array,
    states: Any,
    tuning: Any,
    rows: Rows,
    simulated: Simulated,
) -> Draws:
    """Draws of every simulation, ``thinning`` steps apart."""

    def one(item: Any, thinning: jax.Array) -> Draws:
        # States and tuning have their own axis of one chain below that of simulations.
        key, state, tuned, data, (_, x, y) = item
        state, kept, finite = run_block(
            plan, num_draws, True, thinning, state, tuned, key[None], 0, num_draws, data, None
        )
        values = jax.vmap(lambda params: quantities.stacked(params, x, y))(first_of(kept["unconstrained"]))
        divergent = kept["sample_stats"].get("diverging", jnp.zeros((1, num_draws), bool))
        return Draws(state, values, finite[0] & jnp.all(jnp.isfinite(values)), jnp.sum(divergent))

    return devices.map(one, (keys, states, tuning, rows, simulated), thinning)
