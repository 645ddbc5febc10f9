"""The Wasserstein distance between weight posteriors: BPC-W."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pseudocoreset.methods.base import Optimizer, Problem
from pseudocoreset.methods.inner import PUBLISHED_STEP_SIZE, FromExperts
from pseudocoreset.methods.optimizers import distillation_sgd
from pseudocoreset.models import Model
from pseudocoreset.objectives import Objective, wasserstein

__all__ = ["BPCWasserstein"]


@dataclass(frozen=True, kw_only=True)
class BPCWasserstein(FromExperts):
    """Wasserstein distance: BPC-W (Kim et al. 2022), for networks the same as trajectory matching.

    For networks |theta_L - theta*_{t+E}|^2 / |theta*_t - theta*_{t+E}|^2, with theta_L after L steps on the coreset
    from the expert snapshot theta*_t. Elsewhere the squared distance of two Gaussians in closed form.

    Attributes:
        proxy: ``"conjugate"``, ``"laplace"``, or ``"isotropic"`` for networks; by default what suits the model.
        optimizer: SGD with momentum 0.5 on the images of networks by default, Adam elsewhere as in ``BPCReverseKL``.
        step_size: of the optimiser; 1,000 for networks, 0.1 elsewhere.
        augment: of the coreset in the training of networks.
        weights: ``"learned"``, ``"data"`` or ``"ones"``; None learns them, and takes ones for networks. Learned weights
            keep their mass where the objective does not determine it (around MAP solutions of networks).
        num_inner_steps: L; gradients flow through all of them.
        inner_learning_rate: alpha at the start.
        expert_epochs: E; 1 or 2, by the table of the reference.
        learn_step_size: Adam step size on the logarithm of alpha; 0 keeps it.
        rematerialise: ``"step"`` or ``"sqrt"``; see ``objectives.wasserstein``.
    """

    name: ClassVar[str] = "bpc_w"

    expert_epochs: int | None = None
    proxy: str | None = None
    learn_step_size: float = 1e-3
    rematerialise: str = "step"

    def objective(self, model: Model, problem: Problem) -> Objective:
        return wasserstein(
            model,
            proxy=self.proxy,
            inner=self.inner,
            learn_step_size=self.learn_step_size,
            rematerialise=self.rematerialise,
            free=self.free,
        )

    def default_optimizer(self, problem: Problem) -> Optimizer:
        return distillation_sgd(self, problem, PUBLISHED_STEP_SIZE)
