"""Chains whose minibatches come from disk: the draws of a run on data in memory, up to rounding.

Which data a minibatch has follows from the keys alone. So the rows that a block of draws will see are known before it
begins, and are read while the device takes the steps before.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.data.records import STREAMED_BYTES, StoredImages
from pseudocoreset.inference.chains import (
    HeldOut,
    Plan,
    all_finite,
    keys_of_draw,
    one_step,
    over_chains,
    summary_of_state,
)
from pseudocoreset.inference.data import Minibatch
from pseudocoreset.inference.kernel_spec import Density, Stats, Tuning, batch_and_step
from pseudocoreset.inference.schedules import steps_of_draw
from pseudocoreset.meshes import to_host

__all__ = ["StoredRows", "run_stored_block"]


@dataclass(frozen=True)
class StoredRows:
    """Training data of which the inputs are on disk.

    Attributes:
        inputs: images (n, ...).
        targets: (n, ...).
        weights: (n,).
    """

    inputs: StoredImages
    targets: np.ndarray
    weights: np.ndarray

    def head(self, size: int) -> Minibatch:
        """The first rows, in memory."""
        return Minibatch(*map(jnp.asarray, (self.inputs[:size], self.targets[:size], self.weights[:size])))

    def batches(self, parts: list[np.ndarray]) -> Iterator[Minibatch]:
        """Rows of each part, indices of any shape, with the shape of the part before that of a row."""
        for part, inputs in zip(parts, self.inputs.stream([part.ravel() for part in parts]), strict=True):
            yield Minibatch(
                jnp.asarray(inputs.reshape(*part.shape, *inputs.shape[1:])),
                jnp.asarray(self.targets[part]),
                jnp.asarray(self.weights[part]),
            )


class _Steps(NamedTuple):
    """Steps one after another, each (k,): the draw that it leads to, its number there, and what that counts from."""

    draw: Any
    number: Any
    first: Any


def run_stored_block(
    plan: Plan,
    is_recording: bool,
    thinning: int,
    states: Any,
    tuning: Tuning,
    keys: jax.Array,
    first: int,
    last: int,
    data: StoredRows,
    held_out: HeldOut,
) -> tuple[Any, Any, jax.Array]:
    """What ``chains.run_block`` does; the summaries have ``last - first`` draws, and there are none of a warmup."""
    assert plan.batch_size is not None
    row_bytes = len(keys) * plan.batch_size * int(np.prod(plan.model.datum_shape))
    at_once = max(1, STREAMED_BYTES // row_bytes)
    # Steps, and after those of a draw its number, for its summary.
    events: list[_Steps | int] = []
    if is_recording:
        for draw in range(first, last):
            events += [*_pieces(_steps_of(tuning, draw, thinning, is_recording), at_once), draw]
    else:
        each = [_steps_of(tuning, draw, thinning, is_recording) for draw in range(first, last)]
        events += _pieces(_Steps(*map(np.concatenate, zip(*each, strict=True))), at_once)
    parts = [
        np.asarray(
            _indices_of_summary(plan, keys, event) if isinstance(event, int) else _indices_of_steps(plan, keys, event)
        )
        for event in events
    ]
    summaries, stats, before = [], None, None
    for event, rows in zip(events, data.batches(parts), strict=True):
        if isinstance(event, int):
            summaries.append(_summary(plan, states, stats, keys, rows, event, held_out))
        else:
            states, stats = _advance(plan, states, tuning, keys, rows, event, is_recording)
            # Rows of two events at most are on the device, one of them waiting.
            jax.block_until_ready(before)
            before = stats
    finite = to_host(_are_finite(plan, states))
    if not is_recording:
        return states, None, finite
    draws = jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *map(to_host, summaries))
    return states, draws, finite & np.all(np.isfinite(draws["sample_stats"]["lp_estimate"]), axis=1)


def _steps_of(tuning: Tuning, draw: int, thinning: int, is_recording: bool) -> _Steps:
    start, count = 0, thinning
    if is_recording and "schedule" in tuning:
        # The same in every chain.
        schedule = jax.tree.map(lambda leaf: leaf[0], tuning["schedule"])
        start, count = map(int, steps_of_draw(schedule, jnp.asarray(draw), jnp.asarray(thinning)))
    return _Steps(np.full(count, draw), np.arange(count), np.full(count, start))


def _pieces(steps: _Steps, at_once: int) -> list[_Steps]:
    return [_Steps(*(part[start : start + at_once] for part in steps)) for start in range(0, len(steps.draw), at_once)]


@functools.partial(jax.jit, static_argnums=0)
def _indices_of_steps(plan: Plan, keys: jax.Array, steps: _Steps) -> jax.Array:
    """(chains, steps, batch size)."""

    def of_step(key: jax.Array, draw: jax.Array, index: jax.Array) -> jax.Array:
        step_key = jax.random.fold_in(keys_of_draw(key, draw)[0], index)
        return plan.batch_indices(batch_and_step(step_key)[0])

    return jax.vmap(lambda key: jax.vmap(functools.partial(of_step, key))(steps.draw, steps.number))(keys)


@functools.partial(jax.jit, static_argnums=0)
def _indices_of_summary(plan: Plan, keys: jax.Array, draw: int) -> jax.Array:
    """(chains, batch size)."""
    return jax.vmap(lambda key: plan.batch_indices(keys_of_draw(key, draw)[1]))(keys)


@functools.partial(jax.jit, static_argnums=0)
def _advance(
    plan: Plan, states: Any, tuning: Tuning, keys: jax.Array, rows: Minibatch, steps: _Steps, is_recording: bool
) -> tuple[Any, Stats]:
    """All chains some steps on, and what the last of these reports."""

    def chain(item: Any, _: Density, steps: _Steps, is_recording: jax.Array) -> tuple[Any, Stats]:
        state, tuned, key, rows = item

        def step(i: jax.Array, state: Any) -> tuple[Any, Stats]:
            drawn = jax.tree.map(lambda leaf: leaf[i], rows)
            key_of_steps = keys_of_draw(key, steps.draw[i])[0]
            density = plan.density(drawn, drawn)
            return one_step(plan, key_of_steps, steps.number[i], steps.first[i], state, tuned, density, is_recording)

        _, shapes = jax.eval_shape(step, jnp.zeros((), jnp.int32), state)
        stats = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.fori_loop(0, len(steps.draw), lambda i, carry: step(i, carry[0]), (state, stats))

    return over_chains(plan, chain, (states, tuning, keys, rows), None, steps, jnp.asarray(is_recording))


@functools.partial(jax.jit, static_argnums=0)
def _summary(
    plan: Plan, states: Any, stats: Stats, keys: jax.Array, rows: Minibatch, draw: int, held_out: HeldOut
) -> dict[str, Any]:
    def chain(item: Any, _: Density, draw: jax.Array, held_out: HeldOut) -> dict[str, Any]:
        state, stats, key, drawn = item
        return summary_of_state(plan, keys_of_draw(key, draw)[1], state, stats, plan.density(drawn, drawn), held_out)

    return over_chains(plan, chain, (states, stats, keys, rows), None, draw, held_out)


@functools.partial(jax.jit, static_argnums=0)
def _are_finite(plan: Plan, states: Any) -> jax.Array:
    return over_chains(plan, lambda state, _: all_finite(plan.spec.position(state)), states, None)
