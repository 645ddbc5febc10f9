"""A method in one file, as ``docs/add-a-method.md`` tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.methods import Learned, Optimizer, Problem
from pseudocoreset.methods.optimizers import adam
from pseudocoreset.models import Model
from pseudocoreset.objectives import Objective, Rows
from pseudocoreset.objectives.base import Gradient, differentiate
from pseudocoreset.validation import check_positive

__all__ = ["MeanMatching"]


@dataclass(frozen=True, kw_only=True)
class MeanMatching(Learned):
    """Mean matching: the weighted mean of the points becomes that of the data.

        L(u) = strength | sum_j w_j u_j / sum_j w_j - mean_i x_i |^2

    Attributes:
        strength: a factor of the loss; 1, or 2 from ten points of each class on.
    """

    name: ClassVar[str] = "mean_matching"

    steps: int | None = 100
    strength: float | None = None

    def check(self) -> None:
        if self.strength is not None:
            check_positive(self.strength, "strength")

    def recipe(self, problem: Problem) -> dict[str, Any]:
        return {"strength": 2.0 if (problem.points_per_class or 0) >= 10 else 1.0}

    def objective(self, model: Model, problem: Problem) -> Objective:
        strength, free = self.strength, self.free

        def init(key: jax.Array, coreset: Rows, data: DeviceData) -> jax.Array:
            x, _ = data.batch(jnp.arange(data.num_data))
            return jnp.mean(x, axis=0)

        def gradient(
            key: jax.Array, mean: jax.Array, coreset: Rows, data: DeviceData, snapshots: tuple[Any, ...]
        ) -> Gradient:
            def loss_fn(points: Rows) -> tuple[jax.Array, None]:
                weights = points.weights / jnp.sum(points.weights)
                return strength * jnp.sum((jnp.tensordot(weights, points.inputs, 1) - mean) ** 2), None

            (loss, _), leaves = differentiate(loss_fn, coreset, free)
            return leaves, mean, {"loss": loss}

        settings = {"strength": strength}
        return Objective(self.name, model, init, gradient, None, settings, free, mass="kept", loss_is_value=True)

    def default_optimizer(self, problem: Problem) -> Optimizer:
        return adam(self, problem)
