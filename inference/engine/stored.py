"""Blocks of draws on rows that are on disk: the draws of a run on data in memory, up to rounding.

Which data a minibatch has follows from the keys alone (``blocks.keys_of_step``). So the rows that a block of draws will
see are known before it begins, and are read while the device takes the steps before.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.compute.processes import to_host
from pseudocoreset.data.sources.records import StoredImages
from pseudocoreset.inference.engine.blocks import (
    HeldOut,
    advance,
    all_finite,
    keys_of_draw,
    keys_of_step,
    no_stats,
    one_step,
    steps_of,
    summary_of_state,
)
from pseudocoreset.inference.engine.kernel import Stats, Tuning
from pseudocoreset.inference.engine.plan import ON_DISK, Plan
from pseudocoreset.rows import Rows

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

    def head(self, size: int) -> Rows:
        """The first rows, in memory."""
        return Rows(*map(jnp.asarray, (self.inputs[:size], self.targets[:size], self.weights[:size])))

    def batches(self, parts: list[np.ndarray]) -> Iterator[Rows]:
        """Rows of each part, indices of any shape, with the shape of the part before that of a row."""
        for part, inputs in zip(parts, self.inputs.stream([part.ravel() for part in parts]), strict=True):
            yield Rows(
                jnp.asarray(inputs.reshape(*part.shape, *inputs.shape[1:])),
                jnp.asarray(self.targets[part]),
                jnp.asarray(self.weights[part]),
            )


class _OutOfReach:
    """In the place of all data, which a step on rows from disk cannot see."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{ON_DISK}; a step has its rows, and no density.data")


_OUT_OF_REACH: Any = _OutOfReach()


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
    """What ``blocks.run_block`` does; the summaries have ``last - first`` draws, and there are none of a warmup."""
    events = _events(plan, is_recording, thinning, tuning, len(keys), first, last)
    parts = [
        np.asarray(
            _indices_of_summary(plan, keys, event) if isinstance(event, int) else _indices_of_steps(plan, keys, event)
        )
        for event in events
    ]
    summaries: list[Any] = []
    stats: Stats | None = None
    before: Stats | None = None
    for event, rows in zip(events, data.batches(parts), strict=True):
        if isinstance(event, int):
            summaries.append(_summary(plan, states, stats, keys, rows, event, held_out))
            stats = None
        else:
            states, stats = _advance(plan, states, stats, tuning, keys, rows, event, is_recording)
            # Rows of two events at most are on the device, one of them waiting.
            jax.block_until_ready(before)
            before = stats
            stats = stats if is_recording else None
    finite = to_host(_are_finite(plan, states))
    if not is_recording:
        return states, None, finite
    draws = jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *map(to_host, summaries))
    found = draws["sample_stats"]
    values = found["lp"] if "lp" in found else found["lp_estimate"]
    return states, draws, finite & np.all(np.isfinite(values), axis=1)


def _events(
    plan: Plan, is_recording: bool, thinning: int, tuning: Tuning, num_chains: int, first: int, last: int
) -> list[_Steps | int]:
    """Steps as many as are read at once, and after those of a draw its number, for its summary."""
    assert plan.batch_size is not None
    row_bytes = num_chains * plan.batch_size * int(np.prod(plan.model.datum_shape))
    at_once = max(1, plan.devices.limits.streamed_bytes // row_bytes)
    # The same in every chain.
    of_chain = jax.tree.map(lambda leaf: leaf[0], {name: tuning[name] for name in ("schedule",) if name in tuning})

    def steps_to(draw: int) -> _Steps:
        start, count = map(int, steps_of(of_chain, jnp.asarray(draw), jnp.asarray(thinning), is_recording))
        return _Steps(np.full(count, draw), np.arange(count), np.full(count, start))

    def pieces(steps: _Steps) -> list[_Steps]:
        starts = range(0, len(steps.draw), at_once)
        return [_Steps(*(part[start : start + at_once] for part in steps)) for start in starts]

    each = [steps_to(draw) for draw in range(first, last)]
    if not is_recording:
        return [*pieces(_Steps(*map(np.concatenate, zip(*each, strict=True))))]
    events: list[_Steps | int] = []
    for draw, steps in zip(range(first, last), each, strict=True):
        events += [*pieces(steps), draw]
    return events


@functools.partial(jax.jit, static_argnums=0)
def _indices_of_steps(plan: Plan, keys: jax.Array, steps: _Steps) -> jax.Array:
    """(chains, steps, batch size)."""

    def of_step(key: jax.Array, draw: jax.Array, index: jax.Array) -> jax.Array:
        return plan.batch_indices(keys_of_step(plan.kernel, keys_of_draw(key, draw).steps, index).rows)

    return jax.vmap(lambda key: jax.vmap(functools.partial(of_step, key))(steps.draw, steps.number))(keys)


@functools.partial(jax.jit, static_argnums=0)
def _indices_of_summary(plan: Plan, keys: jax.Array, draw: int) -> jax.Array:
    """(chains, batch size)."""
    return jax.vmap(lambda key: plan.batch_indices(keys_of_draw(key, draw).summary))(keys)


@functools.partial(jax.jit, static_argnums=0)
def _advance(
    plan: Plan,
    states: Any,
    stats: Stats | None,
    tuning: Tuning,
    keys: jax.Array,
    rows: Rows,
    steps: _Steps,
    is_recording: bool,
) -> tuple[Any, Stats]:
    """All chains some steps on, and what they report, with the ``stats`` of those before that lead to the same draw."""

    def chain(item: Any, steps: _Steps, is_recording: jax.Array) -> tuple[Any, Stats]:
        state, before, tuned, key, rows = item

        def step(i: Any, state: Any) -> tuple[Any, Stats]:
            drawn = jax.tree.map(lambda leaf: leaf[i], rows)
            key_of_steps = keys_of_draw(key, steps.draw[i]).steps
            density = plan.density(drawn, drawn)._replace(data=_OUT_OF_REACH)
            return one_step(plan, key_of_steps, steps.number[i], steps.first[i], state, tuned, density, is_recording)

        return advance(step, len(steps.draw), state, no_stats(step, state) if before is None else before)

    return plan.devices.map(chain, (states, stats, tuning, keys, rows), steps, jnp.asarray(is_recording))


@functools.partial(jax.jit, static_argnums=0)
def _summary(
    plan: Plan, states: Any, stats: Stats, keys: jax.Array, rows: Rows, draw: int, held_out: HeldOut
) -> dict[str, Any]:
    def chain(item: Any, draw: jax.Array, held_out: HeldOut) -> dict[str, Any]:
        state, stats, key, drawn = item
        density = plan.density(drawn, drawn)
        return summary_of_state(plan, keys_of_draw(key, draw).summary, state, stats, density, held_out)

    return plan.devices.map(chain, (states, stats, keys, rows), draw, held_out)


@functools.partial(jax.jit, static_argnums=0)
def _are_finite(plan: Plan, states: Any) -> jax.Array:
    return plan.devices.map(lambda state: all_finite(plan.kernel.position(state)), states)
