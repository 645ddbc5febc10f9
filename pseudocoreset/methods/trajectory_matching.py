"""Matching training trajectories (MTT; Cazenavette et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from pseudocoreset.methods.base import Optimizer, Problem
from pseudocoreset.methods.inner import FromExperts
from pseudocoreset.methods.optimizers import distillation_sgd
from pseudocoreset.methods.recipes import nearest
from pseudocoreset.models import Model
from pseudocoreset.objectives import Objective, trajectory_matching

__all__ = ["TrajectoryMatching", "TrajectoryRecipe", "trajectory_recipe"]


class TrajectoryRecipe(NamedTuple):
    """A row of the hyperparameters of MTT (Cazenavette et al. 2022), as its authors gave them to DC-Bench.

    Attributes:
        num_inner_steps: N, steps of the student on the coreset.
        expert_epochs: M, epochs of the expert that they are to reach.
        starts: epochs that may be a start: 0 to one less.
        step_size: of SGD on the inputs.
        inner_learning_rate: alpha at the start.
    """

    num_inner_steps: int
    expert_epochs: int
    starts: int
    step_size: float
    inner_learning_rate: float


_MTT = {
    ("cifar10", 1): TrajectoryRecipe(50, 2, 2, 100.0, 0.01),
    ("cifar10", 10): TrajectoryRecipe(30, 2, 20, 100.0, 0.001),
    ("cifar10", 50): TrajectoryRecipe(30, 2, 40, 1000.0, 0.001),
    ("cifar100", 1): TrajectoryRecipe(20, 3, 20, 1000.0, 0.01),
    ("cifar100", 10): TrajectoryRecipe(20, 2, 20, 1000.0, 0.01),
    ("cifar100", 50): TrajectoryRecipe(80, 2, 40, 1000.0, 0.01),
    ("tiny_imagenet", 1): TrajectoryRecipe(10, 2, 10, 10000.0, 0.01),
    ("tiny_imagenet", 10): TrajectoryRecipe(20, 2, 40, 10000.0, 0.01),
    ("tiny_imagenet", 50): TrajectoryRecipe(20, 2, 40, 10000.0, 0.01),
}
_ELSEWHERE = TrajectoryRecipe(30, 2, 20, 100.0, 0.01)


def trajectory_recipe(data_name: str, images_per_class: float | None) -> TrajectoryRecipe:
    """The recipe for a data set, at the nearest published number of images per class; sensible elsewhere.

    Args:
        data_name: the name of the data set.
        images_per_class: None for coresets that are not counted by class.
    """
    return nearest(_MTT, data_name, images_per_class, _ELSEWHERE)


@dataclass(frozen=True, kw_only=True)
class TrajectoryMatching(FromExperts):
    """Matching training trajectories (MTT; Cazenavette et al. 2022).

    The distance of ``BPCWasserstein`` for networks, for any model. Settings that are None are the authors' for
    CIFAR-10, CIFAR-100 and Tiny ImageNet at the nearest published number of images per class. They take 5,000 steps,
    ZCA whitening for some settings, batches of the larger coresets, and learn the inner step size by SGD on the number
    itself, this by Adam on its logarithm.

    Attributes:
        steps: updates of the coreset.
        optimizer: by default SGD with momentum 0.5 on the inputs of networks and Adam of step 0.01 on other leaves;
            Adam with cosine decay for other models.
        step_size: of the optimiser; 100 to 10,000 for networks, 0.1 for other models.
        augment: of the coreset in the training of networks.
        weights: ``"learned"``, ``"data"`` or ``"ones"``; None learns them, and takes ones for networks. Learned weights
            keep their mass, of which the objective says nothing.
        num_inner_steps: L; gradients flow through all of them.
        inner_learning_rate: alpha at the start.
        learn_step_size: Adam step size on the logarithm of alpha; 0 keeps it.
        rematerialise: ``"step"`` or ``"sqrt"``; see ``objectives.wasserstein``.
    """

    name: ClassVar[str] = "trajectory_matching"

    steps: int | None = 1000
    expert_epochs: int | None = None
    learn_step_size: float = 1e-3
    rematerialise: str = "step"

    def recipe(self, problem: Problem) -> dict[str, Any]:
        row = trajectory_recipe(problem.data.name, problem.points_per_class)
        return self.training_recipe(problem, row, row.expert_epochs)

    def objective(self, model: Model, problem: Problem) -> Objective:
        return trajectory_matching(
            model,
            inner=self.inner,
            learn_step_size=self.learn_step_size,
            rematerialise=self.rematerialise,
            free=self.free,
        )

    def default_optimizer(self, problem: Problem) -> Optimizer:
        row = trajectory_recipe(problem.data.name, problem.points_per_class)
        return distillation_sgd(self, problem, row.step_size)
