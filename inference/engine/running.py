"""Warmup and draws of a run, block by block: kept in memory, or in a directory from which a stopped run goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from pseudocoreset.compute.processes import to_host
from pseudocoreset.compute.progress import progress_bar
from pseudocoreset.inference.engine.blocks import HeldOut, adapt_chains, run_block, start_chains, summarise
from pseudocoreset.inference.engine.guards import check_finite
from pseudocoreset.inference.engine.kernel import Tuning
from pseudocoreset.inference.engine.plan import Plan, Run
from pseudocoreset.inference.engine.prepare import Start
from pseudocoreset.inference.engine.stored import StoredRows, run_stored_block
from pseudocoreset.inference.posterior import flatten_groups
from pseudocoreset.inference.posterior.draw_files import DrawFiles
from pseudocoreset.rows import Rows

__all__ = ["Given", "bytes_per_draw", "run_chains"]

NUM_BLOCKS = 20


class Given(NamedTuple):
    """Data as the chains see them.

    rows
        To sample on: on the device, or on disk.
    held_out
        To evaluate draws on, on the device; None for nothing.
    """

    rows: Rows | StoredRows
    held_out: HeldOut


class _Block(NamedTuple):
    """Warmup steps or draws ``first`` to ``last`` of every chain: what ``run_block`` returns of them."""

    first: int
    last: int
    states: Any
    draws: Any
    finite: jax.Array


class _Record:
    """How far a run is, kept while it goes on: seconds, and the checkpoints of a run in a directory."""

    def __init__(self, files: DrawFiles | None) -> None:
        self.files = files
        self.seconds = {"warmup": 0.0, "sampling": 0.0}
        self._since = time.perf_counter()

    def restored(self, template: Any) -> tuple[int, Any] | None:
        """Steps done and the state at the newest checkpoint, None to begin."""
        found = None if self.files is None else self.files.restore(template)
        if found is None:
            return None
        done, state, self.seconds = found
        return done, state

    def start(self, part: str) -> None:
        """A part of the run begins."""
        self._part, self._since = part, time.perf_counter()

    def add_seconds(self) -> None:
        """Count the time since a part began, or was last counted."""
        now = time.perf_counter()
        self.seconds[self._part] += now - self._since
        self._since = now

    def save(self, done: int, state: Any) -> None:
        """Checkpoint the chains after ``done`` steps and draws."""
        if self.files is not None:
            self.files.save(done, state, self.seconds)


def run_chains(
    run: Run, start: Start, key: jax.Array, given: Given, files: DrawFiles | None, *, progress: bool
) -> tuple[dict[str, np.ndarray], Tuning, dict[str, float]]:
    """All draws, the tuning they were made with, and seconds: of warmup, of sampling, and of both in earlier calls.

    Args:
        run: what was asked of the chains.
        start: where they start, and their tuning; what is missing is adapted.
        key: of everything random from there on.
        given: the data.
        files: where draws go, None for memory.
        progress: whether to show a bar.
    """
    start_key, warmup_key, draw_key = jax.random.split(key, 3)
    warmup_keys, draw_keys = (jax.random.split(each, run.num_chains) for each in (warmup_key, draw_key))
    plan, tuning, some = run.plan, start.tuning, _some_rows(run.plan, given.rows)
    adapts = "step_size" not in tuning

    states, positions = start_chains(plan, start_key, start.positions, run.init_params is not None, tuning, some)
    record, state = _Record(files), (states, tuning)
    template = state
    if adapts and files is not None:
        template = jax.eval_shape(
            lambda *args: adapt_chains(plan, run.num_warmup, *args), warmup_keys, positions, tuning, some
        )
    restored = record.restored(template)
    done, state = (0, state) if restored is None else restored
    state = plan.devices.lay_out(state)
    earlier = record.seconds["warmup"] + record.seconds["sampling"]

    if adapts and restored is None:
        with progress_bar(f"{plan.kernel.name} warmup", run.num_warmup, enabled=progress) as advance:
            record.start("warmup")
            state = adapt_chains(plan, run.num_warmup, warmup_keys, positions, tuning, some)
            _check_adapted(plan, state[1])
            advance(run.num_warmup)
        record.add_seconds()
        record.save(run.num_warmup, state)
    elif done < run.num_warmup:
        state = _warm_up(run, given, state, warmup_keys, done, record, progress)
    drawn = max(done - run.num_warmup, 0)
    arrays = _draw(run, given, state, draw_keys, drawn, record, progress)
    return arrays, to_host(state[1]), {**record.seconds, "earlier": earlier}


def _some_rows(plan: Plan, rows: Rows | StoredRows) -> Rows:
    """Rows to start with: all, or as many as a minibatch has."""
    if isinstance(rows, Rows):
        return rows
    assert plan.batch_size is not None
    return rows.head(plan.batch_size)


def _check_adapted(plan: Plan, tuning: Tuning) -> None:
    found = to_host(tuning["step_size"])
    if not np.all(np.isfinite(found) & (found > 0)):
        raise FloatingPointError(
            f"kernel {plan.kernel.name!r} adapted to the step sizes {found.tolist()}; give step_size and "
            "init_params, or a longer num_warmup"
        )


def _warm_up(
    run: Run, given: Given, state: tuple[Any, Tuning], keys: jax.Array, done: int, record: _Record, progress: bool
) -> tuple[Any, Tuning]:
    """Warmup that only moves."""
    _, tuning = state
    with progress_bar(f"{run.plan.kernel.name} warmup", run.num_warmup, enabled=progress) as advance:
        advance(done)
        record.start("warmup")
        for block in _blocks(run, given, False, state, keys, done):
            check_finite(block.finite, run.plan, tuning, f"warmup steps {block.first} to {block.last}")
            state = block.states, tuning
            record.add_seconds()
            record.save(block.last, state)
            advance(block.last - block.first)
    return state


def _draw(
    run: Run, given: Given, state: tuple[Any, Tuning], keys: jax.Array, drawn: int, record: _Record, progress: bool
) -> dict[str, np.ndarray]:
    """Draws from ``drawn`` on, beside those already in the files; leaves (chain, draw, ...)."""
    _, tuning = state
    files = record.files
    arrays = files.reopen(drawn, run.num_samples) if files is not None and drawn > 0 else {}
    with progress_bar(f"{run.plan.kernel.name} sampling", run.num_samples, enabled=progress) as advance:
        advance(drawn)
        record.start("sampling")
        for block in _blocks(run, given, True, state, keys, drawn):
            first, last = block.first, block.last
            check_finite(block.finite, run.plan, tuning, f"draws {first} to {last}")
            leaves = to_host(flatten_groups(block.draws))
            if not arrays:
                shapes = {
                    name: jax.ShapeDtypeStruct((len(keys), run.num_samples, *leaf.shape[2:]), leaf.dtype)
                    for name, leaf in leaves.items()
                }
                arrays = _in_memory(shapes) if files is None else files.create(shapes)
            leaves = {name: leaf[:, : last - first] for name, leaf in leaves.items()}
            if files is not None:
                files.write(first, last, leaves)
            else:
                for name, leaf in leaves.items():
                    arrays[name][:, first:last] = leaf
            record.add_seconds()
            record.save(run.num_warmup + last, (block.states, tuning))
            advance(last - first)
    return arrays


def _blocks(
    run: Run, given: Given, is_recording: bool, state: tuple[Any, Tuning], keys: jax.Array, first: int
) -> Iterator[_Block]:
    """Warmup steps or draws from ``first`` on, a block at a time.

    Of data on the device each comes when the next was started: the device does not wait for what is done with it.
    """
    block = _draws_of_block(run, given.held_out)
    total, thinning = (run.num_samples, run.thinning) if is_recording else (run.num_warmup, 1)
    size = block if is_recording else math.ceil(run.num_warmup / NUM_BLOCKS)

    def computed() -> Iterator[_Block]:
        states, tuning = state
        for start, stop in _parts(first, total, size):
            moving = is_recording, thinning, states, tuning, keys, start, stop
            if isinstance(given.rows, StoredRows):
                states, draws, finite = run_stored_block(run.plan, *moving, given.rows, given.held_out)
            else:
                states, draws, finite = run_block(run.plan, block, *moving, given.rows, given.held_out)
            yield _Block(start, stop, states, draws, finite)

    return _one_behind(computed()) if isinstance(given.rows, Rows) else computed()


def bytes_per_draw(run: Run, held_out: Any) -> int:
    """What is kept of one draw of all chains."""
    kept = jax.eval_shape(lambda params, rows: summarise(run.plan, params, {}, rows), run.shapes, held_out)
    return run.num_chains * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def _draws_of_block(run: Run, held_out: HeldOut) -> int:
    """Few enough to show progress and bound memory, as many as make what the host does cost nothing."""
    affordable = run.plan.devices.limits.block_bytes // max(1, bytes_per_draw(run, held_out))
    return max(1, min(math.ceil(run.num_samples / NUM_BLOCKS), affordable))


def _in_memory(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
    return {name: np.empty(item.shape, item.dtype) for name, item in shapes.items()}


def _parts(first: int, total: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(first, total, max(1, size)):
        yield start, min(start + size, total)


def _one_behind(blocks: Iterator[_Block]) -> Iterator[_Block]:
    """The same blocks, each after the next was made."""
    before: _Block | None = None
    for block in blocks:
        if before is not None:
            yield before
        before = block
    if before is not None:
        yield before
