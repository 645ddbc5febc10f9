"""What a GPU does in a computation, from JAX's profiler."""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax

__all__ = ["launches"]


def launches(fn: Callable[[], Any], steps: int = 1) -> list[tuple[str, float, float]]:
    """Name, microseconds and launches of each kernel that a call of ``fn`` runs, per step, the longest first.

    Empty without a GPU, whose streams alone are read.
    """
    total: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(fn())
        path = next(pathlib.Path(folder).rglob("*.xplane.pb"))
        planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
        streams = [line for plane in planes if "GPU" in plane.name for line in plane.lines if "Stream" in line.name]
        for event in (event for line in streams for event in line.events):
            microseconds, count = total.setdefault(event.name, [0.0, 0.0])
            total[event.name] = [microseconds + event.duration_ns / 1000, count + 1]
    ordered = sorted(total.items(), key=lambda item: -item[1][0])
    return [(name[:90], round(time / steps, 2), round(count / steps, 2)) for name, (time, count) in ordered]
