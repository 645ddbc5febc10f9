"""What a fit needs of the memory of its device, by the compiler's own account, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from pseudocoreset.compute.memory import MemoryEstimate, device_bytes, tree_bytes
from pseudocoreset.objectives import Objective

__all__ = ["block_memory", "check_memory", "raise_if_exhausted"]

# Settings of objectives that memory depends on, beside the number of points.
KNOBS = (
    "coreset_batch_size",
    "batch_size",
    "num_draws",
    "num_networks",
    "proxy",
    "rank",
    "num_inner_steps",
    "rematerialise",
)


def block_memory(run_block: Any, loop: tuple[Any, ...], data: Any, objectives: Sequence[Objective]) -> MemoryEstimate:
    """What a block of steps needs; it is compiled, and nothing runs.

    Args:
        run_block: the jitted block.
        loop: its first arguments: state of the loop, constraints, key, numbers of the steps of a block; arrays or their
            shapes. A later call with arguments of the same shapes finds the program compiled.
        data: its last argument, likewise.
        objectives: what runs in the block; they say which snapshots it takes.

    Raises:
        MemoryError: if the compiler itself runs out of memory.
    """
    snapshots = tuple(_snapshot_shapes(objective, len(loop[-1])) for objective in objectives)
    try:
        analysis = run_block.lower(*loop, snapshots, data).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        raise_if_exhausted(error, objectives)
        raise
    return MemoryEstimate(
        temporaries=analysis.temp_size_in_bytes,
        data=tree_bytes(data),
        coreset=tree_bytes(loop) + analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        snapshots=tree_bytes(snapshots),
        available=device_bytes(),
    )


def check_memory(estimate: MemoryEstimate, objectives: Sequence[Objective]) -> None:
    """Refuse a fit that needs more than its device has.

    Raises:
        MemoryError: naming the arguments that make it smaller.
    """
    if not estimate.fits:
        raise MemoryError(f"the fit needs {estimate}. {_advice(objectives)}")


def _snapshot_shapes(objective: Objective, steps: int) -> tuple[Any, ...]:
    """Shapes of the expert snapshots that an objective takes in a block of steps."""
    if objective.window is None:
        return ()
    params = jax.eval_shape(objective.model.init, jax.random.key(0))
    leading = (steps,) if objective.window.per_step is None else (steps, objective.window.per_step)
    stack = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*leading, *leaf.shape), leaf.dtype), params)
    return (stack,) if objective.window.ahead is None else (stack, stack)


def raise_if_exhausted(error: jax.errors.JaxRuntimeError, objectives: Sequence[Objective]) -> None:
    """An error that says what to do about it, if this one of the runtime is about memory.

    Raises:
        MemoryError: naming the arguments that make the fit smaller.
    """
    if "RESOURCE_EXHAUSTED" in str(error):
        raise MemoryError(f"the device ran out of memory. {_advice(objectives)} The runtime said: {error}") from error


def _advice(objectives: Sequence[Objective]) -> str:
    settings = {name: value for o in objectives for name, value in o.settings.items() if name in KNOBS}
    now = ", ".join(f"{name}={value!r}" for name, value in settings.items())
    return f"Choose a smaller images_per_class (or size){f', or others of {now}' if now else ''}, or a smaller model."
