"""What every objective is: ``init`` and ``gradient``, and what they need from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from pseudocoreset.device import DeviceData
from pseudocoreset.models import Model, Params

__all__ = ["CoresetArrays", "Gradient", "Objective", "SnapshotWindow"]


class CoresetArrays(NamedTuple):
    """The arrays of a coreset inside the loop."""

    inputs: jax.Array  # (m, *feature_shape) float32
    targets: jax.Array  # (m,) or (m, num_classes)
    weights: jax.Array  # (m,) float32


class SnapshotWindow(NamedTuple):
    """Which expert snapshots an objective takes: one epoch drawn uniformly from ``first`` to ``last``."""

    first: int
    last: int | None = None  # the last there is


# Of the free leaves by name ("inputs"), the next state, and scalars to report.
Gradient = tuple[dict[str, jax.Array], Any, dict[str, jax.Array]]


@dataclass(frozen=True)
class Objective:
    """An objective as pure functions, after the manner of optax and BlackJAX.

    Attributes:
        name: shown in logs and saved with the coreset.
        model: the model whose posteriors it matches.
        init: ``(key, coreset) -> state``, what is carried from step to step.
        gradient: ``(key, state, coreset, data, snapshot) -> (gradient, state, info)``.
        window: the expert snapshots that ``gradient`` takes, None if it takes none.
        settings: hyperparameters, JSON-able.
    """

    name: str
    model: Model
    init: Callable[[jax.Array, CoresetArrays], Any]
    gradient: Callable[[jax.Array, Any, CoresetArrays, DeviceData, Params | None], Gradient]
    window: SnapshotWindow | None
    settings: dict[str, Any]
