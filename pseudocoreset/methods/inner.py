"""Settings of methods that train a network on the coreset from an expert snapshot (Kim et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from pseudocoreset.methods.base import Learned, Problem
from pseudocoreset.methods.recipes import closest
from pseudocoreset.objectives import InnerTraining
from pseudocoreset.validation import check_integer, check_positive

__all__ = ["PUBLISHED_STEP_SIZE", "BPCRecipe", "FromExperts", "bpc_recipe"]

PUBLISHED_STEP_SIZE = 1000.0


class BPCRecipe(NamedTuple):
    """Settings for networks in the reference code of Kim et al. 2022.

    Attributes:
        num_inner_steps: L.
        inner_learning_rate: alpha.
        starts: epochs that may be a start: 0 to one less.
        wasserstein_epochs: E of BPC-W; the others have 1.
        reverse_kl_draws: S of BPC-rKL; BPC-fKL has 30.
    """

    num_inner_steps: int
    inner_learning_rate: float
    starts: int
    wasserstein_epochs: int
    reverse_kl_draws: int


_BPC = {
    1: BPCRecipe(50, 0.01, 2, 2, 10),
    10: BPCRecipe(30, 0.03, 20, 1, 30),
    20: BPCRecipe(30, 0.03, 30, 2, 10),
}


def bpc_recipe(images_per_class: float | None) -> BPCRecipe:
    """The recipe of the nearest number of images per class; that of 10 for coresets not counted by class."""
    return _BPC[closest(_BPC, 10 if images_per_class is None else images_per_class)]


@dataclass(frozen=True, kw_only=True)
class FromExperts(Learned):
    """A method whose networks start a short training on the coreset from a snapshot of an expert.

    Attributes:
        num_inner_steps: L, steps of that training; by the table of the reference.
        inner_learning_rate: alpha, their step size.
        expert_epochs: E, epochs from the snapshot where it starts to the one that it is compared with.
        first_epoch: the earliest start.
        last_epoch: the latest start; by the table of the reference, or what the experts allow.
    """

    takes: ClassVar[frozenset[str]] = Learned.takes | {"experts", "num_experts", "num_expert_epochs"}

    num_inner_steps: int | None = None
    inner_learning_rate: float | None = None
    expert_epochs: int | None = 1
    first_epoch: int = 0
    last_epoch: int | None = None

    def check(self) -> None:
        if self.num_inner_steps is not None:
            check_integer(self.num_inner_steps, "num_inner_steps")
        if self.inner_learning_rate is not None:
            check_positive(self.inner_learning_rate, "inner_learning_rate")
        if self.expert_epochs is not None:
            check_integer(self.expert_epochs, "expert_epochs")
        check_integer(self.first_epoch, "first_epoch", minimum=0)

    def recipe(self, problem: Problem) -> dict[str, Any]:
        row = bpc_recipe(problem.points_per_class)
        return self.training_recipe(problem, row, row.wasserstein_epochs)

    def training_recipe(self, problem: Problem, row: Any, expert_epochs: int) -> dict[str, Any]:
        """Settings of the training on the coreset by a ``row`` of a published table."""
        ahead = expert_epochs if self.expert_epochs is None else self.expert_epochs
        return {
            "num_inner_steps": row.num_inner_steps,
            "inner_learning_rate": row.inner_learning_rate,
            "expert_epochs": ahead,
            "last_epoch": problem.last_start(self.first_epoch, row.starts - 1, ahead),
        }

    @property
    def inner(self) -> InnerTraining:
        """The training, of a resolved method."""
        assert self.num_inner_steps is not None
        assert self.inner_learning_rate is not None
        assert self.expert_epochs is not None
        return InnerTraining(
            num_steps=self.num_inner_steps,
            learning_rate=self.inner_learning_rate,
            expert_epochs=self.expert_epochs,
            first_epoch=self.first_epoch,
            last_epoch=self.last_epoch,
            augment=self.augmentation,
        )
