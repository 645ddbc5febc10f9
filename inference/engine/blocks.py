"""The compiled parts of ``sample``: starting points, warmup, and blocks of draws, for all chains at once.

Each function is compiled once for a ``Plan`` and array shapes; numbers of steps, step sizes and temperatures
are arrays, so changing them compiles nothing.

**Keys.** The key of a step depends on its place in the chain alone, never on how the run is cut into blocks, nor on
where the rows are. This module alone says how: ``keys_of_draw`` and ``keys_of_step``, of which rows on disk follow too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.compute.processes import to_host
from pseudocoreset.inference.data import function_summary
from pseudocoreset.inference.engine.kernel import Density, Kernel, Stats, Tuning
from pseudocoreset.inference.engine.plan import Plan
from pseudocoreset.inference.schedules import scheduled, steps_of_draw
from pseudocoreset.models import Params
from pseudocoreset.rows import Rows

__all__ = [
    "SMALL_SITE_ELEMENTS",
    "HeldOut",
    "adapt_chains",
    "advance",
    "all_finite",
    "initial_positions",
    "keys_of_draw",
    "keys_of_step",
    "no_stats",
    "one_step",
    "run_block",
    "start_chains",
    "steps_of",
    "summarise",
    "summary_of_state",
]

SMALL_SITE_ELEMENTS = 64
INIT_ATTEMPTS = 20
HeldOut = tuple[jax.Array, jax.Array] | None


@functools.partial(jax.jit, static_argnames="plan")
def initial_positions(plan: Plan, keys: jax.Array) -> Params:
    """``model.init`` of every key."""
    return plan.devices.map(plan.model.init, keys)


@functools.partial(jax.jit, static_argnames="plan")
def _start(plan: Plan, keys: jax.Array, positions: Params, tuning: Tuning, data: Rows) -> tuple[Any, jax.Array]:
    def chain(item: Any, rows: Rows) -> tuple[Any, jax.Array]:
        key, position, tuned = item
        density = plan.density(rows)
        state_key, batch_key = jax.random.split(key)
        value = density.log_density(position, density.minibatch(batch_key))
        return plan.kernel.init(state_key, position, tuned, density), jnp.isfinite(value)

    return plan.devices.map(chain, (keys, positions, tuning), data)


def start_chains(
    plan: Plan, key: jax.Array, positions: Params, are_given: bool, tuning: Tuning, data: Rows
) -> tuple[Any, Params]:
    """Kernel states and positions of finite log density; where it is not, ``model.init`` is asked again.

    Raises:
        ValueError: if a given position has none, or twenty draws of the initialiser found none for a chain.
    """
    start_key, init_key = jax.random.split(key)
    num_chains = jax.tree.leaves(positions)[0].shape[0]
    for attempt in range(INIT_ATTEMPTS):
        states, finite = _start(plan, jax.random.split(start_key, num_chains), positions, tuning, data)
        found = to_host(finite)
        if found.all():
            return states, positions
        if are_given:
            lost = np.flatnonzero(~found).tolist()
            raise ValueError(f"init_params: the log density is not finite for chains {lost}")
        keys = jax.random.split(jax.random.fold_in(init_key, attempt), num_chains)
        # Nearer to zero each time: with columns on raw scales a start of order one can overflow.
        nearer = jax.tree.map(lambda leaf, by=0.8**attempt: by * leaf, initial_positions(plan, keys))
        positions = _where(found, positions, nearer)
    raise ValueError(
        f"no starting point with a finite log density in {INIT_ATTEMPTS} attempts for chains "
        f"{np.flatnonzero(~found).tolist()}; check that the data lie in the support of the likelihood, "
        "or give init_params"
    )


def _where(keep: np.ndarray, old: Params, new: Params) -> Params:
    """Chains of ``old`` where ``keep``, of ``new`` elsewhere."""

    def chosen(first: jax.Array, second: jax.Array) -> jax.Array:
        return jnp.where(keep.reshape(-1, *[1] * (first.ndim - 1)), first, second)

    return jax.tree.map(chosen, old, new)


@functools.partial(jax.jit, static_argnames=("plan", "num_steps"))
def adapt_chains(
    plan: Plan, num_steps: int, keys: jax.Array, positions: Params, tuning: Tuning, data: Rows
) -> tuple[Any, Tuning]:
    """Kernel states after ``num_steps`` of adaptation, and the tuning found, a chain each."""

    def chain(item: Any, rows: Rows) -> tuple[Any, Tuning]:
        key, position, tuned = item
        return plan.kernel.adapt(key, position, tuned, plan.density(rows), num_steps)

    return plan.devices.map(chain, (keys, positions, tuning), data)


@functools.partial(jax.jit, static_argnames=("plan", "block"))
def run_block(
    plan: Plan,
    block: int,
    is_recording: bool,
    thinning: int,
    states: Any,
    tuning: Tuning,
    keys: jax.Array,
    first: int,
    last: int,
    data: Rows,
    held_out: HeldOut,
) -> tuple[Any, Any, jax.Array]:
    """Draws ``first`` to ``last`` of every chain, ``thinning`` steps each.

    Returns:
        States; what ``summarise`` keeps of each draw, with leading axes (chain, block), of which the first
        ``last - first`` are filled if ``is_recording``, zeros otherwise; whether the position and log
        density of each chain are finite. One compilation serves warmup and sampling.
    """

    def chain(item: Any, rows: Rows, numbers: tuple[Any, ...], held_out: HeldOut) -> tuple[Any, Any, jax.Array]:
        state, tuned, key = item
        density = plan.density(rows)
        is_recording, thinning, first, last = numbers

        def steps_to(draw: Any, key: jax.Array, state: Any) -> tuple[Any, Stats]:
            start, count = steps_of(tuned, draw, thinning, is_recording)

            def step(index: Any, state: Any) -> tuple[Any, Stats]:
                return one_step(plan, key, index, start, state, tuned, density, jnp.asarray(is_recording))

            return advance(step, count, state, no_stats(step, state))

        def body(draw: jax.Array, carry: Any) -> Any:
            state, buffers = carry
            steps_key, summary_key = keys_of_draw(key, draw)
            state, stats = steps_to(draw, steps_key, state)

            def record(buffers: Any) -> Any:
                summary = summary_of_state(plan, summary_key, state, stats, density, held_out)
                return jax.tree.map(
                    lambda b, s: jax.lax.dynamic_update_index_in_dim(b, s, draw - first, 0), buffers, summary
                )

            return state, jax.lax.cond(is_recording, record, lambda buffers: buffers, buffers)

        def one_draw(key: jax.Array, state: Any) -> dict[str, Any]:
            state, stats = steps_to(first, key, state)
            return summary_of_state(plan, key, state, stats, density, held_out)

        shapes = jax.eval_shape(one_draw, key, state)
        buffers = jax.tree.map(lambda s: jnp.zeros((block, *s.shape), s.dtype), shapes)
        state, buffers = jax.lax.fori_loop(first, last, body, (state, buffers))
        stats = buffers["sample_stats"]
        density_values = stats["lp"] if "lp" in stats else stats["lp_estimate"]
        finite = all_finite(plan.kernel.position(state)) & jnp.all(jnp.isfinite(density_values))
        return state, buffers, finite

    numbers = is_recording, thinning, first, last
    return plan.devices.map(chain, (states, tuning, keys), data, numbers, held_out)


class DrawKeys(NamedTuple):
    """Keys of the steps that lead to a draw, and of the minibatch on which the draw is evaluated."""

    steps: jax.Array
    summary: jax.Array


def keys_of_draw(key: jax.Array, draw: Any) -> DrawKeys:
    """Of a chain whose key is ``key``."""
    return DrawKeys(*jax.random.split(jax.random.fold_in(key, draw)))


class StepKeys(NamedTuple):
    """Keys of the minibatch of a step, and of its move."""

    rows: jax.Array
    move: jax.Array


def keys_of_step(kernel: Kernel, key: jax.Array, index: Any) -> StepKeys:
    """Of step ``index`` among those that lead to a draw, whose key is ``key``."""
    key = jax.random.fold_in(key, index)
    # Without minibatches nothing is drawn by the first.
    return StepKeys(*jax.random.split(key)) if kernel.uses_minibatches else StepKeys(key, key)


def steps_of(tuning: Tuning, draw: Any, thinning: Any, is_recording: Any) -> tuple[Any, Any]:
    """Of the steps of one chain that lead to a draw: where in the schedule the first is, and how many they are."""
    schedule = tuning.get("schedule")
    if schedule is None:
        return jnp.zeros((), jnp.int32), thinning
    first, count = steps_of_draw(schedule, draw, thinning)
    return jnp.where(is_recording, first, 0), jnp.where(is_recording, count, thinning)


def one_step(
    plan: Plan,
    key: jax.Array,
    index: Any,
    first: Any,
    state: Any,
    tuning: Tuning,
    density: Density,
    is_recording: jax.Array,
) -> tuple[Any, Stats]:
    """Step ``index`` of a draw whose key is ``key``; its schedule counts from ``first``."""
    now = {**tuning, "is_warmup": ~is_recording}
    schedule = tuning.get("schedule")
    if schedule is not None:
        of_step = scheduled(schedule, first + index, tuning)
        now |= {name: jnp.where(is_recording, value, tuning[name]) for name, value in of_step.items()}
    keys = keys_of_step(plan.kernel, key, index)
    rows = density.minibatch(keys.rows) if plan.kernel.uses_minibatches else density.data
    return plan.kernel.step(keys.move, state, now, density, rows)


def no_stats(step: Callable[[Any, Any], tuple[Any, Stats]], state: Any) -> Stats:
    """What ``advance`` begins a draw with."""
    _, shapes = jax.eval_shape(step, jnp.zeros((), jnp.int32), state)
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def advance(step: Callable[[Any, Any], tuple[Any, Stats]], count: Any, state: Any, stats: Stats) -> tuple[Any, Stats]:
    """``count`` steps towards a draw; divergences are joined, integration steps added, the rest is the last's.

    Args:
        step: ``(index, state) -> (state, stats)``.
        count: steps, a number or traced.
        state: of the chain.
        stats: of the steps before that lead to the same draw.
    """

    def body(index: jax.Array, carry: Any) -> Any:
        state, before = carry
        state, stats = step(index, state)
        if "diverging" in stats:
            stats["diverging"] = stats["diverging"] | before["diverging"]
        if "n_steps" in stats:
            stats["n_steps"] = stats["n_steps"] + before["n_steps"]
        return state, stats

    return jax.lax.fori_loop(0, count, body, (state, stats))


def summary_of_state(
    plan: Plan, key: jax.Array, state: Any, stats: Stats, density: Density, held_out: HeldOut
) -> dict[str, Any]:
    """What ``summarise`` keeps of a draw, with its log density, or that of a minibatch or of augmented views."""
    params = plan.kernel.position(state)
    if "lp" not in stats:
        name = "lp" if plan.has_exact_density else "lp_estimate"
        stats = {name: density.log_density(params, density.minibatch(key)), **stats}
    return summarise(plan, params, stats, held_out)


def summarise(plan: Plan, params: Params, stats: Stats, held_out: HeldOut) -> dict[str, Any]:
    """What is kept of one draw; None for what is not."""
    values = plan.model.constrain(params)
    if not plan.keep_weights:
        values = {name: value for name, value in values.items() if value.size <= SMALL_SITE_ELEMENTS}
    function_values = log_likelihood = None
    if held_out is not None:
        function_values, log_likelihood = function_summary(
            plan.model,
            params,
            *held_out,
            preprocessing=plan.held_out_preprocessing,
            chunk_size=plan.held_out_chunk_size,
        )
        function_values = None if function_values is None else function_values.astype(jnp.float32)
    return {
        "draws": values,
        "unconstrained": params if plan.keep_weights else None,
        "function_values": function_values,
        "log_likelihood": log_likelihood,
        "sample_stats": stats,
    }


def all_finite(tree: Any) -> jax.Array:
    """Whether every number of a tree is."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
