"""Distribution matching (DM; Zhao and Bilen 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pseudocoreset.methods.base import Learned, Optimizer, Problem
from pseudocoreset.methods.optimizers import distillation_sgd
from pseudocoreset.models import Model
from pseudocoreset.objectives import Objective
from pseudocoreset.objectives.distribution_matching import distribution_matching

__all__ = ["DistributionMatching"]


@dataclass(frozen=True, kw_only=True)
class DistributionMatching(Learned):
    """Distribution matching (DM; Zhao and Bilen 2023), published with 20,000 steps.

        L(u) = E_theta sum_c | mean_{x in class c} phi_theta(A x) - mean_{u in class c} phi_theta(A u) |^2

    with phi_theta the features of a random network and A an augmentation: no network is trained. For models with
    features and classes.

    Attributes:
        optimizer: by default SGD with momentum 0.5 on the inputs of networks and Adam of step 0.01 on other leaves;
            Adam with cosine decay for other models.
        step_size: of the optimiser; 1 for networks, 10 from 100 images per class on, 0.1 for other models.
        augment: of data and coreset alike.
        weights: ``"learned"``, ``"data"`` or ``"ones"``; None learns them, and takes ones for networks. Learned weights
            keep the mass of each class, of which the objective says nothing.
        targets: ``"fixed"``: they choose the class alone.
        batch_size: data of each class per step.
    """

    name: ClassVar[str] = "distribution_matching"

    steps: int | None = 2000
    batch_size: int = 256

    def objective(self, model: Model, problem: Problem) -> Objective:
        return distribution_matching(model, batch_size=self.batch_size, augment=self.augmentation, free=self.free)

    def default_optimizer(self, problem: Problem) -> Optimizer:
        return distillation_sgd(self, problem, 10.0 if (problem.points_per_class or 0) >= 100 else 1.0)
