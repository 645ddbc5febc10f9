"""Bytes: of arrays, of what a computation needs, of what a device has."""

from __future__ import annotations

import os
import pathlib
from dataclasses import dataclass
from typing import Any

import jax

from pseudocoreset.compute.limits import limits

__all__ = ["MemoryEstimate", "device_bytes", "tree_bytes"]

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


def tree_bytes(tree: Any) -> int:
    """Bytes of the arrays of a tree, or of what it has the shapes of."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def device_bytes() -> int | None:
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
