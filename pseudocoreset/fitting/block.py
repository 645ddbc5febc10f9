"""The compiled block: steps of the loop without a return to the host."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.fitting.leaves import (
    Box,
    Free,
    KeptMass,
    from_free,
    hold_still,
    project,
    pull_back,
)
from pseudocoreset.objectives import Objective
from pseudocoreset.rows import Rows

__all__ = ["Constraints", "Loop", "compile_block"]

# What learned weights keep of their mass, and where learned inputs may go.
Constraints = tuple[KeptMass | None, Box | None]


class Loop(NamedTuple):
    """Everything that is carried from step to step."""

    arrays: Rows
    free: Free
    optimizer: Any
    objectives: tuple[Any, ...]
    skipped: jax.Array  # steps in a row with a gradient that was not finite
    good: Rows  # the last arrays whose gradient and loss were finite
    lost: Free  # where the last gradient was not finite


@functools.lru_cache(maxsize=16)
def compile_block(
    objectives: tuple[Objective, ...], optimizer: optax.GradientTransformation, is_soft: bool
) -> Callable[..., tuple[Loop, dict[str, jax.Array]]]:
    """The compiled block; the same objectives and optimiser, as objects, compile once for each shape."""

    def one_step(
        loop: Loop, item: Any, constraints: Constraints, key: jax.Array, data: DeviceData
    ) -> tuple[Loop, dict[str, jax.Array]]:
        (step, snapshots), (kept, box) = item, constraints
        total: dict[str, jax.Array] = {}
        states = []
        losses = []
        report: dict[str, jax.Array] = {}
        for i, objective in enumerate(objectives):
            step_key = jax.random.fold_in(jax.random.fold_in(key, step), i)
            gradient, state, info = objective.gradient(step_key, loop.objectives[i], loop.arrays, data, snapshots[i])
            total = {name: total[name] + leaf if total else leaf for name, leaf in gradient.items()}
            losses.append(info.get("loss", jnp.zeros(())))
            states.append(state)
            report |= {name if len(objectives) == 1 else f"{name}_{i}": value for name, value in info.items()}
        if box is not None:
            total["inputs"] = box.slope(total["inputs"])
        lost = {name: ~jnp.isfinite(leaf) for name, leaf in total.items()}
        is_good = jnp.isfinite(optax.tree.norm((total, losses)))
        good = jax.tree.map(lambda new, old: jnp.where(is_good, new, old), loop.arrays, loop.good)
        total = pull_back(loop.arrays, loop.free, total, is_soft, kept)
        updates, optimizer_state = optimizer.update(total, loop.optimizer, loop.free)
        free = project(optax.apply_updates(loop.free, updates), kept)
        if "inputs" in free:
            free["inputs"] = hold_still(free["inputs"], loop.free["inputs"], total["inputs"])
        if box is not None:
            free["inputs"] = box.enter(free["inputs"], loop.free["inputs"])
        arrays = from_free(loop.arrays, free, is_soft)
        proposal = Loop(arrays, free, optimizer_state, tuple(states), jnp.zeros_like(loop.skipped), good, lost)
        finite = is_good & jnp.isfinite(optax.tree.norm((total, free))) & jnp.any(arrays.weights > 0)
        finite = finite if kept is None else finite & kept.is_imposed(arrays.weights)
        stay = loop._replace(skipped=loop.skipped + 1, good=good, lost=lost)
        report["gradient_norm"] = optax.tree.norm(total)
        report["inputs_rms"] = jnp.sqrt(jnp.mean(arrays.inputs**2))
        if "weights" in free:
            report["mass"] = jnp.sum(arrays.weights)
        report["skipped"] = ~finite
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), proposal, stay), report

    @jax.jit
    def run_block(
        loop: Loop, constraints: Constraints, key: jax.Array, numbers: jax.Array, snapshots: Any, data: DeviceData
    ) -> tuple[Loop, dict[str, jax.Array]]:
        done = jax.lax.scan(
            lambda carry, item: one_step(carry, item, constraints, key, data), loop, (numbers, snapshots)
        )
        return data.devices.replicate(done)

    return run_block
