"""What every objective is: ``init`` and ``gradient``, and what they need from outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from pseudocoreset.arguments import checked_class
from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.models import Model, Params
from pseudocoreset.rows import Rows

__all__ = [
    "LEAVES",
    "MASSES",
    "Gradient",
    "Objective",
    "SnapshotWindow",
    "check_free",
    "differentiate",
]

LEAVES = ("inputs", "targets", "weights")
MASSES = ("learned", "kept", "kept by class")


@checked_class
class SnapshotWindow(NamedTuple):
    """Which expert snapshots an objective takes: one epoch drawn uniformly from ``first`` to ``last``.

    With ``ahead`` it takes a second one too, that many epochs later in the same trajectory. With ``per_step`` it takes
    so many in each step, drawn independently, along a leading axis of every leaf.
    """

    first: int
    last: int | None = None  # the last that there is
    ahead: int | None = None
    per_step: int | None = None


# Of the free leaves by name, the next state, and scalars to report.
Gradient = tuple[dict[str, jax.Array], Any, dict[str, jax.Array]]
# (key, state, coreset, data, snapshots): the snapshots that the window names, one or two, none without a window.
GradientFn = Callable[[jax.Array, Any, Rows, DeviceData, tuple[Params, ...]], Gradient]


@dataclass(frozen=True, eq=False)
class Objective:
    """An objective as pure functions, after the manner of optax and BlackJAX.

    Attributes:
        name: shown in logs and saved with the coreset.
        model: the model whose posteriors it matches.
        init: ``(key, coreset, data) -> state``, what is carried from step to step.
        gradient: ``(key, state, coreset, data, snapshots) -> (gradient, state, info)``; the gradient is a dictionary
            with the derivative in every free leaf.
        window: the expert snapshots that ``gradient`` takes, None if it takes none.
        settings: hyperparameters, JSON-able.
        free: the leaves of the coreset that it has a gradient for, among ``"inputs"``, ``"targets"``, ``"weights"``.
        mass: whether its minimum determines the sum of the weights: ``"learned"`` if it does; ``"kept"`` if it says
            nothing of the sum, or ``"kept by class"`` of that of each class, which ``fit`` then keeps as it was.
        loss_is_value: whether the ``"loss"`` that ``gradient`` reports measures how good the coreset is, so that it can
            be compared between steps; false where it is only something whose gradient is the right one.
    """

    name: str
    model: Model
    init: Callable[[jax.Array, Rows, DeviceData], Any]
    gradient: GradientFn
    window: SnapshotWindow | None
    settings: dict[str, Any]
    free: tuple[str, ...] = ("inputs",)
    mass: str = "learned"
    loss_is_value: bool = False


def check_free(free: str | Sequence[str]) -> tuple[str, ...]:
    """The free leaves in their order, each once.

    Raises:
        ValueError: for none, or an unknown name.
    """
    names = (free,) if isinstance(free, str) else tuple(free)
    unknown = [name for name in names if name not in LEAVES]
    if unknown or not names:
        raise ValueError(f"free must name some of {', '.join(map(repr, LEAVES))}; got {names}")
    return tuple(name for name in LEAVES if name in names)


def differentiate(
    loss_fn: Callable[[Rows], tuple[jax.Array, Any]], coreset: Rows, free: tuple[str, ...]
) -> tuple[tuple[jax.Array, Any], dict[str, jax.Array]]:
    """Value, auxiliary output and gradient of ``loss_fn(coreset) -> (scalar, aux)`` in the free leaves."""

    def of_free(leaves: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
        return loss_fn(coreset._replace(**leaves))

    return jax.value_and_grad(of_free, has_aux=True)({name: getattr(coreset, name) for name in free})
