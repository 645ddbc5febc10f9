"""Warmup and draws of a run, block by block: kept in memory, or in a directory from which a stopped run goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from pseudocoreset.inference.chains import HeldOut, Plan, adapt_chains, run_block, start_chains
from pseudocoreset.inference.data import Minibatch
from pseudocoreset.inference.guards import check_finite
from pseudocoreset.inference.kernels import Tuning
from pseudocoreset.inference.posterior import flatten_groups
from pseudocoreset.inference.posterior.draw_files import DrawFiles
from pseudocoreset.inference.streaming import StoredRows, run_stored_block
from pseudocoreset.meshes import lay_out, to_host
from pseudocoreset.models import Params
from pseudocoreset.progress import progress_bar

__all__ = ["Run"]

NUM_BLOCKS = 20


class _Block(NamedTuple):
    """Warmup steps or draws ``first`` to ``last`` of every chain: what ``run_block`` returns of them."""

    first: int
    last: int
    states: Any
    draws: Any
    finite: jax.Array


@dataclass(frozen=True)
class Run:
    """What a run does besides the plan of one block.

    Attributes:
        plan: of the compiled blocks.
        key: of everything random from the start of the chains on.
        num_warmup: steps a chain before the first draw.
        num_samples: draws a chain.
        thinning: steps from draw to draw.
        block: draws of a block.
        rows: training data, on the device or on disk.
        held_out: what draws are evaluated on, None for nothing.
        progress: whether to show a bar.
    """

    plan: Plan
    key: jax.Array
    num_warmup: int
    num_samples: int
    thinning: int
    block: int
    rows: Minibatch | StoredRows
    held_out: HeldOut
    progress: bool

    def __call__(
        self, positions: Params, are_given: bool, tuning: Tuning, files: DrawFiles | None
    ) -> tuple[dict[str, np.ndarray], Tuning, dict[str, float]]:
        """All draws, the tuning they were made with, and seconds: of warmup, of sampling, and of both in earlier calls.

        Args:
            positions: where the chains start.
            are_given: whether the user gave them.
            tuning: of every chain; what is missing is adapted.
            files: where to, None for memory.
        """
        start_key, warmup_key, draw_key = jax.random.split(self.key, 3)
        num_chains = jax.tree.leaves(positions)[0].shape[0]
        warmup_keys, draw_keys = jax.random.split(warmup_key, num_chains), jax.random.split(draw_key, num_chains)
        adapts = "step_size" not in tuning

        states, positions = start_chains(self.plan, start_key, positions, are_given, tuning, self._some_rows())
        state = states, tuning
        done, seconds, restored = 0, {"warmup": 0.0, "sampling": 0.0}, None
        if files is not None:
            template = jax.eval_shape(self._adaptation, warmup_keys, positions, tuning) if adapts else state
            restored = files.restore(template)
        if restored is not None:
            done, state, seconds = restored
        state = lay_out(state, self.plan.mesh, splits_data=self.plan.splits_data)
        seconds["earlier"] = seconds["warmup"] + seconds["sampling"]

        if done < self.num_warmup or (adapts and restored is None):
            if adapts:
                state = self._adapt(warmup_keys, positions, tuning, seconds, files)
            else:
                state = self._warm_up(state, warmup_keys, done, seconds, files)
            done = self.num_warmup
        arrays = self._draw(state, draw_keys, done - self.num_warmup, seconds, files)
        return arrays, to_host(state[1]), seconds

    def _some_rows(self) -> Minibatch:
        """Rows to start with: all, or as many as a minibatch has."""
        if isinstance(self.rows, Minibatch):
            return self.rows
        assert self.plan.batch_size is not None
        return self.rows.head(self.plan.batch_size)

    def _blocks(
        self, is_recording: bool, thinning: int, state: tuple[Any, Tuning], keys: jax.Array, first: int, last: int
    ) -> Iterator[_Block]:
        """Steps or draws ``first`` to ``last``, a block at a time.

        Of data on the device each comes when the next was started: the device does not wait for what is done with it.
        """
        size = self.block if is_recording else math.ceil(self.num_warmup / NUM_BLOCKS)

        def computed() -> Iterator[_Block]:
            states, tuning = state
            for start, stop in _parts(first, last, size):
                moving = is_recording, thinning, states, tuning, keys, start, stop
                if isinstance(self.rows, StoredRows):
                    states, draws, finite = run_stored_block(self.plan, *moving, self.rows, self.held_out)
                else:
                    states, draws, finite = run_block(self.plan, self.block, *moving, self.rows, self.held_out)
                yield _Block(start, stop, states, draws, finite)

        return _one_behind(computed()) if isinstance(self.rows, Minibatch) else computed()

    def _adaptation(self, keys: jax.Array, positions: Params, tuning: Tuning) -> tuple[Any, Tuning]:
        return adapt_chains(self.plan, self.num_warmup, keys, positions, tuning, self._some_rows())

    def _adapt(
        self, keys: jax.Array, positions: Params, tuning: Tuning, seconds: dict[str, float], files: DrawFiles | None
    ) -> tuple[Any, Tuning]:
        """Warmup that adapts, in one computation."""
        started = time.perf_counter()
        with progress_bar(f"{self.plan.kernel} warmup", self.num_warmup, enabled=self.progress) as advance:
            state = self._adaptation(keys, positions, tuning)
            found = to_host(state[1]["step_size"])
            if not np.all(np.isfinite(found) & (found > 0)):
                raise FloatingPointError(
                    f"kernel {self.plan.kernel!r} adapted to the step sizes {found.tolist()}; give step_size and "
                    "init_params, or a longer num_warmup"
                )
            advance(self.num_warmup)
        seconds["warmup"] += time.perf_counter() - started
        if files is not None:
            files.save(self.num_warmup, state, seconds)
        return state

    def _warm_up(
        self,
        state: tuple[Any, Tuning],
        keys: jax.Array,
        done: int,
        seconds: dict[str, float],
        files: DrawFiles | None,
    ) -> tuple[Any, Tuning]:
        """Warmup that only moves."""
        _, tuning = state
        with progress_bar(f"{self.plan.kernel} warmup", self.num_warmup, enabled=self.progress) as advance:
            advance(done)
            started = time.perf_counter()
            for block in self._blocks(False, 1, state, keys, done, self.num_warmup):
                check_finite(block.finite, self.plan, tuning, f"warmup steps {block.first} to {block.last}")
                state = block.states, tuning
                started = _add_seconds(seconds, "warmup", started)
                if files is not None:
                    files.save(block.last, state, seconds)
                advance(block.last - block.first)
        return state

    def _draw(
        self,
        state: tuple[Any, Tuning],
        keys: jax.Array,
        drawn: int,
        seconds: dict[str, float],
        files: DrawFiles | None,
    ) -> dict[str, np.ndarray]:
        """Draws from ``drawn`` on, beside those already in the files; leaves (chain, draw, ...)."""
        _, tuning = state
        arrays = files.reopen(drawn, self.num_samples) if files is not None and drawn > 0 else {}
        with progress_bar(f"{self.plan.kernel} sampling", self.num_samples, enabled=self.progress) as advance:
            advance(drawn)
            started = time.perf_counter()
            for block in self._blocks(True, self.thinning, state, keys, drawn, self.num_samples):
                first, last = block.first, block.last
                check_finite(block.finite, self.plan, tuning, f"draws {first} to {last}")
                leaves = to_host(flatten_groups(block.draws))
                if not arrays:
                    shapes = {
                        name: jax.ShapeDtypeStruct((len(keys), self.num_samples, *leaf.shape[2:]), leaf.dtype)
                        for name, leaf in leaves.items()
                    }
                    arrays = _in_memory(shapes) if files is None else files.create(shapes)
                leaves = {name: leaf[:, : last - first] for name, leaf in leaves.items()}
                if files is not None:
                    files.write(first, last, leaves)
                else:
                    for name, leaf in leaves.items():
                        arrays[name][:, first:last] = leaf
                started = _add_seconds(seconds, "sampling", started)
                if files is not None:
                    files.save(self.num_warmup + last, (block.states, tuning), seconds)
                advance(last - first)
        return arrays


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


def _add_seconds(seconds: dict[str, float], name: str, started: float) -> float:
    """Add the time since ``started``, and return the time now."""
    now = time.perf_counter()
    seconds[name] += now - started
    return now
