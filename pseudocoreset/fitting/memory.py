"""What a fit needs of the memory of its device, by the compiler's own account, before anything runs."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from pseudocoreset.compute.limits import limits
from pseudocoreset.objectives import Objective

__all__ = ["MemoryEstimate", "block_memory", "check_memory", "raise_if_exhausted"]

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
UNITS = ("kB", "MB", "GB", "TB")
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a fit needs on its device.

    Attributes:
        temporaries: intermediate values of a compiled block of steps.
        data: the training data, as they are kept on the device.
        coreset: the coreset, the optimiser's state and the objectives', before a block and after it.
        snapshots: the expert snapshots of a block.
        available: what the device has in all, None where it does not say.
    """

    temporaries: int
    data: int
    coreset: int
    snapshots: int
    available: int | None

    @property
    def total(self) -> int:
        """All of it."""
        return self.temporaries + self.data + self.coreset + self.snapshots

    @property
    def fits(self) -> bool:
        """Whether the device has as much, or does not say what it has."""
        return self.available is None or self.total <= self.available

    def __str__(self) -> str:
        parts = (
            f"{_readable(self.total)}: {_readable(self.temporaries)} of temporaries, {_readable(self.data)} of data, "
            f"{_readable(self.coreset)} of coreset and optimiser, {_readable(self.snapshots)} of expert snapshots"
        )
        return parts if self.available is None else f"{parts}; the device has {_readable(self.available)}"


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
        data=_bytes(data),
        coreset=_bytes(loop) + analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        snapshots=_bytes(snapshots),
        available=_device_bytes(),
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


def _readable(number: int) -> str:
    """Bytes with three digits and a unit of powers of 1,000."""
    value = float(number)
    if value < 1000:
        return f"{number} bytes"
    for unit in UNITS:
        value /= 1000
        if value < 999.5 or unit == UNITS[-1]:
            return f"{value:.3g} {unit}"
    raise AssertionError


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _device_bytes() -> int | None:
    """Memory of the default device: what its allocator may take, or of a CPU what the machine or container has."""
    if limits().device_bytes is not None:
        return limits().device_bytes
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):
        return None
    for path in map(pathlib.Path, CGROUP_LIMITS):
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            found.append(int(text))
    return min(found)
