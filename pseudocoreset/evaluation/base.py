"""What the published evaluations have in common: the pure functions that a run consists of.

``start`` makes the state of one repeat, ``advance`` takes it through one round, and after the last rounds the network
at ``position`` predicts. What the weights of a coreset sum to plays no part in them: losses are weighted means.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from pseudocoreset.data.augmentation import Augmentation
from pseudocoreset.models import Model, Params
from pseudocoreset.proxies import mean_loss_and_gradient
from pseudocoreset.rows import Rows

__all__ = ["Learning", "Rounds", "check_non_negative", "check_share", "still"]


@dataclass(frozen=True)
class Learning:
    """What networks learn with, apart from arrays.

    Attributes:
        model: a bound model.
        augment: of the coreset, a new one each step, with parameters for each image; None for none.
    """

    model: Model
    augment: Augmentation | None

    def loss(self, params: Params, batch: Rows, key: jax.Array) -> jax.Array:
        """Weighted mean cross-entropy of a batch, augmented; its gradient takes a few points at a time."""
        if self.augment is not None:
            batch = batch._replace(inputs=self.augment(key, batch.inputs))
        return _loss(self.model, params, batch)


class Rounds(ABC):
    """A run in rounds, repeated with other keys."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def repeats(self) -> int:
        """Independent runs."""

    @property
    @abstractmethod
    def rounds(self) -> tuple[int, int]:
        """Number of rounds of a run, and the first after which it predicts."""

    @abstractmethod
    def start(self, key: jax.Array, task: Learning) -> Any:
        """State of one repeat."""

    @abstractmethod
    def advance(self, key: jax.Array, index: jax.Array, state: Any, task: Learning, coreset: Rows) -> Any:
        """State after round ``index``."""

    def position(self, state: Any) -> Params:
        """Parameters that predict."""
        return state.position

    def measured(self, state: Any) -> dict[str, jax.Array]:
        """Numbers about the run itself, by name."""
        return {}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(model: Model, params: Params, batch: Rows) -> jax.Array:
    return mean_loss_and_gradient(model, params, batch)[0]


def _forward(model: Model, params: Params, batch: Rows) -> tuple[jax.Array, Params]:
    return mean_loss_and_gradient(model, params, batch)


def _backward(model: Model, gradient: Params, cotangent: jax.Array) -> tuple[Params, None]:
    return jax.tree.map(lambda g: cotangent * g, gradient), None


_loss.defvjp(_forward, _backward)


def check_non_negative(value: float | None, argument: str) -> None:
    """A finite number not below zero, or None."""
    if value is not None and not 0.0 <= value < float("inf"):
        raise ValueError(f"{argument} must be a number not below zero; got {value!r}")


def check_share(value: float, argument: str) -> None:
    """A number in [0, 1)."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{argument} must be in [0, 1); got {value!r}")


def still(params: Params) -> Params:
    """A velocity of zero."""
    return jax.tree.map(jnp.zeros_like, params)
