"""Gradient matching: DC (Zhao et al. 2021) and DSA (Zhao and Bilen 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pseudocoreset.methods.base import Learned, Optimizer, Problem
from pseudocoreset.methods.optimizers import distillation_sgd
from pseudocoreset.methods.recipes import closest
from pseudocoreset.models import Model
from pseudocoreset.objectives import Objective, SnapshotWindow
from pseudocoreset.objectives.gradient_matching import gradient_matching
from pseudocoreset.validation import check_integer, check_positive

__all__ = ["FromSnapshots", "GradientMatching", "gradient_matching_recipe"]

_RECIPES = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


def gradient_matching_recipe(images_per_class: float | None) -> tuple[int, int]:
    """Matches of a network, and steps on the coreset between two of them, in the code of DC (Zhao et al. 2021).

    Those of the nearest number of images per class; of 10 for coresets not counted by class.
    """
    return _RECIPES[closest(_RECIPES, 10 if images_per_class is None else images_per_class)]


@dataclass(frozen=True, kw_only=True)
class FromSnapshots(Learned):
    """A method that makes its networks by itself, and takes them from snapshots of experts where those are given.

    Attributes:
        first_epoch: the earliest snapshot of ``experts``.
        last_epoch: the latest.
    """

    takes: ClassVar[frozenset[str]] = Learned.takes | {"experts"}

    first_epoch: int = 0
    last_epoch: int | None = None

    def check(self) -> None:
        check_integer(self.first_epoch, "first_epoch", minimum=0)

    def window(self, problem: Problem) -> SnapshotWindow | None:
        """The snapshots that networks come from; None where there are no experts."""
        return None if problem.experts is None else SnapshotWindow(self.first_epoch, self.last_epoch)


@dataclass(frozen=True, kw_only=True)
class GradientMatching(FromSnapshots):
    """Gradient matching: DSA (Zhao and Bilen 2021), and with ``augment=None`` DC (Zhao et al. 2021).

    It makes the gradient of the loss on the coreset that on the data, class by class, along the training of a network
    on the coreset (``objectives.gradient_matching``). The published numbers of steps are 1,000 for each of the
    ``num_outer`` matches of a network: 10,000 for 10 images per class. DC starts from noise, this from real data as
    DSA does.

    Attributes:
        optimizer: acts on the free leaves, or one for each leaf by name. By default SGD with momentum 0.5 on the
            inputs of networks and Adam of step 0.01 on other leaves; Adam with cosine decay for other models.
        step_size: of the optimiser; 0.1.
        augment: of data and coreset alike; ``"auto"``, a strategy, an ``Augmentation`` or None.
        weights: ``"learned"``, ``"data"`` or ``"ones"``; None learns them, and takes ones for networks. Learned weights
            keep the mass of each class (without ``by_class``, in all), of which the objective says nothing.
        distance: ``"cosine"`` or ``"squared"``; see ``objectives.gradient_matching``. By default cosine, and
            squared for a model all of whose sites are vectors, which have no rows to compare.
        num_inner_steps: steps on the coreset between two matches; by the table of the reference.
        inner_learning_rate: their step size.
        num_outer: matches of a network before it is drawn afresh; by the table of the reference.
        batch_size: data of each class per step.
        by_class: match class by class; where there are classes by default.
    """

    name: ClassVar[str] = "gradient_matching"

    steps: int | None = 1000
    distance: str | None = None
    num_inner_steps: int | None = None
    inner_learning_rate: float = 0.01
    num_outer: int | None = None
    batch_size: int = 256
    by_class: bool | None = None

    def check(self) -> None:
        super().check()
        if self.num_inner_steps is not None:
            check_integer(self.num_inner_steps, "num_inner_steps")
        check_positive(self.inner_learning_rate, "inner_learning_rate")

    def recipe(self, problem: Problem) -> dict[str, Any]:
        outer, inner = gradient_matching_recipe(problem.points_per_class)
        return {"num_outer": outer, "num_inner_steps": inner}

    def objective(self, model: Model, problem: Problem) -> Objective:
        assert self.num_inner_steps is not None
        assert self.num_outer is not None
        return gradient_matching(
            model,
            distance=_distance(model) if self.distance is None else self.distance,
            num_inner_steps=self.num_inner_steps,
            inner_learning_rate=self.inner_learning_rate,
            num_outer=self.num_outer,
            batch_size=self.batch_size,
            by_class=model.num_classes is not None if self.by_class is None else self.by_class,
            augment=self.augmentation,
            window=self.window(problem),
            free=self.free,
        )

    def default_optimizer(self, problem: Problem) -> Optimizer:
        return distillation_sgd(self, problem, 0.1)


def _distance(model: Model) -> str:
    """By default that of the reference code, or squares for a model without the matrices whose rows it compares."""
    has_matrices = any(len(site.unconstrained_shape) > 1 for site in model.sites)
    return "cosine" if has_matrices else "squared"
