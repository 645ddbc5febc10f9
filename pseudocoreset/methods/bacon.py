"""BACON, with and without several images stored in one (Zhou et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.methods.base import Optimizer, Problem
from pseudocoreset.methods.gradient_matching import FromSnapshots
from pseudocoreset.methods.optimizers import distillation_sgd
from pseudocoreset.models import Model
from pseudocoreset.objectives import Objective
from pseudocoreset.objectives.bacon import bacon, decode, encode
from pseudocoreset.validation import check_integer

__all__ = ["BACON"]


@dataclass(frozen=True, kw_only=True)
class BACON(FromSnapshots):
    """BACON (Zhou et al. 2024), published with 20,000 steps; ``objectives.bacon`` says which parts are the paper's.

    With ``formation=2`` the points that are learned hold 2 x 2 images of half the size each, while the coreset that
    comes back holds the decoded images, four times as many, ready for any posterior; ``result.state.arrays`` keeps
    those learned. Compare it with coresets of as many stored images as methods that decode too. For models with
    features and classes.

    Attributes:
        optimizer: by default SGD with momentum 0.5 on the inputs of networks and Adam of step 0.01 on other leaves;
            Adam with cosine decay for other models.
        step_size: of the optimiser; 0.2 for networks, 0.1 for other models.
        augment: of data and coreset alike.
        weights: ``"learned"``, ``"data"`` or ``"ones"``; None learns them, and takes ones for networks. Learned weights
            keep the mass of each class, of which the objective says nothing.
        variant: ``"paper"`` (images only) or ``"released"``; by default the paper's for images, the released elsewhere.
        weight: lambda.
        likelihood_scale: of the variant ``"paper"``.
        cross_entropy: its weight; see ``objectives.bacon``.
        batch_size: data of each class per step.
        formation: 1, or 2; then give ``images_per_class``, of stored points.
    """

    name: ClassVar[str] = "bacon"

    steps: int | None = 2000
    variant: str | None = None
    weight: float = 0.8
    likelihood_scale: float = 1.0
    cross_entropy: float | None = None
    batch_size: int = 256
    formation: int = 1

    def objective(self, model: Model, problem: Problem) -> Objective:
        return bacon(
            model,
            variant=("released" if problem.is_table else "paper") if self.variant is None else self.variant,
            weight=self.weight,
            likelihood_scale=self.likelihood_scale,
            cross_entropy=self.cross_entropy,
            batch_size=self.batch_size,
            formation=self.formation,
            augment=self.augmentation,
            window=self.window(problem),
            free=self.free,
        )

    def default_optimizer(self, problem: Problem) -> Optimizer:
        return distillation_sgd(self, problem, 0.2)

    def first_start(self, problem: Problem) -> Pseudocoreset | None:
        return _encoded_start(problem, self.weights) if self.formation == 2 else None

    def finished(self, coreset: Pseudocoreset) -> Pseudocoreset:
        return coreset if self.formation == 1 else _decoded(coreset)


def _encoded_start(problem: Problem, weights: str | None) -> Pseudocoreset:
    """Stored images of four real images of their class each."""
    count = problem.images_per_class
    if count is None:
        raise ValueError("formation=2 starts from images of one class in each point; give images_per_class or coreset")
    real = Pseudocoreset.from_data(
        problem.data,
        images_per_class=4 * check_integer(count, "images_per_class"),
        key=jax.random.fold_in(problem.key, 4),
    )
    classes = real.size // (4 * count)
    quarters = real.inputs.reshape(classes, 4, count, *real.inputs.shape[1:]).swapaxes(0, 1)
    stored = replace(
        real,
        inputs=np.asarray(encode(jnp.asarray(quarters.reshape(real.inputs.shape)))),
        targets=np.repeat(real.targets[:: 4 * count], count),
        weights=np.repeat(real.weights[:: 4 * count], count),
    )
    return stored.with_mass("ones" if weights == "ones" else "data")


def _decoded(coreset: Pseudocoreset) -> Pseudocoreset:
    """Every image of a stored one as a point; weights of mean one keep it, others are shared out."""
    counted = np.isclose(coreset.mass, coreset.size)
    return replace(
        coreset,
        inputs=np.asarray(decode(jnp.asarray(coreset.inputs))),
        targets=np.concatenate([coreset.targets] * 4),
        weights=np.tile(coreset.weights if counted else coreset.weights / 4, 4),
        metadata=coreset.metadata | {"formation": 2, "stored_images": coreset.size},
    )
