"""What a method is: its settings as a frozen dataclass, and what it makes of a problem.

A method has a name and settings. Settings that are None follow from the problem, by the method's published recipe,
once it is ``resolved``. ``fit`` does the rest; ``docs/add-a-method.md`` has a skeleton.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeAlias

import jax
import numpy as np
import optax

from pseudocoreset.arguments import check_fields
from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data import Dataset
from pseudocoreset.data.augmentation import Augmentation, resolve_augmentation
from pseudocoreset.experts import Experts
from pseudocoreset.models import Model
from pseudocoreset.objectives import Objective
from pseudocoreset.validation import check_choice, check_integer, check_positive

__all__ = ["EXPERT_EPOCHS", "NUM_EXPERTS", "Callback", "Learned", "Method", "Optimizer", "Problem", "is_table"]

Callback: TypeAlias = Callable[[int, Pseudocoreset, dict[str, float]], bool | None]
Optimizer: TypeAlias = optax.GradientTransformation | Mapping[str, optax.GradientTransformation]
NUM_EXPERTS, EXPERT_EPOCHS = 10, 50  # that a fit trains by itself


def is_table(data: Dataset) -> bool:
    """Whether an input is a row of columns, not an image."""
    return len(data.train.feature_shape) == 1


@dataclass(frozen=True, eq=False)
class Problem:
    """What a method is asked to do. ``fit`` has checked it.

    Attributes:
        models: bound.
        data: the data set.
        key: one typed key.
        images_per_class: points of each class; None where ``size`` or a start was given.
        size: number of points.
        start: the coreset to start from; None for real data.
        experts: one set of trajectories for each model, as the user gave them; None if there are none.
        num_experts: experts to train where there are none.
        num_expert_epochs: their epochs; None for the method's number.
    """

    models: tuple[Model, ...]
    data: Dataset
    key: jax.Array
    images_per_class: int | None = None
    size: int | None = None
    start: Pseudocoreset | None = None
    experts: tuple[Experts, ...] | None = None
    num_experts: int = NUM_EXPERTS
    num_expert_epochs: int | None = None

    @property
    def are_networks(self) -> bool:
        """Whether all models are networks."""
        return all(model.is_network for model in self.models)

    @property
    def is_table(self) -> bool:
        """Whether an input is a row of columns, not an image."""
        return is_table(self.data)

    @property
    def points_per_class(self) -> float | None:
        """Points of each class, on average where a size was given; None without classes."""
        if self.start is None and self.images_per_class is not None:
            return self.images_per_class
        count = self.size if self.start is None else self.start.size
        return None if self.data.num_classes is None or count is None else count / self.data.num_classes

    @property
    def num_epochs(self) -> int:
        """Epochs of the shortest set of experts, given or to be trained."""
        if self.experts is not None:
            return min(one.num_epochs for one in self.experts)
        return EXPERT_EPOCHS if self.num_expert_epochs is None else self.num_expert_epochs

    def last_start(self, first: int, published: int, ahead: int) -> int:
        """The latest epoch where a training on the coreset starts: the published one, or the last that experts have.

        Args:
            first: the earliest.
            published: by the table of the method.
            ahead: epochs from the start to the snapshot that is to be met.
        """
        return max(first, min(published, self.num_epochs - ahead))


@dataclass(frozen=True, kw_only=True)
class Method:
    """Settings of a method; every field is a keyword of ``fit`` and an option ``--set`` of the command.

    ``takes`` names the arguments of ``fit``, beyond model, data, size and key, that the method has a use for, and
    ``finds_size`` says whether it finds the number of points where ``fit`` is given none.
    """

    name: ClassVar[str] = ""
    takes: ClassVar[frozenset[str]] = frozenset()
    finds_size: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)
        self.check()

    def check(self) -> None:
        """Refuse settings that are out of range, by name."""

    def recipe(self, problem: Problem) -> dict[str, Any]:
        """Values for settings that are None, by the published table or what suits the problem."""
        return {}

    def resolved(self, problem: Problem) -> Self:
        """The same method with the settings of its recipe where none were given."""
        found = self.recipe(problem)
        return replace(self, **{name: value for name, value in found.items() if getattr(self, name) is None})


@dataclass(frozen=True, kw_only=True)
class Learned(Method):
    """A method that moves points down the gradient of an objective.

    Attributes:
        steps: updates of the coreset.
        optimizer: acts on the free leaves, or one for each leaf by name.
        step_size: of the method's own optimiser; give this or ``optimizer``.
        augment: ``"auto"``, a strategy, an ``Augmentation`` or None (see ``resolve_augmentation``).
        weights: ``"learned"`` (from n / m each), ``"data"`` (n / m each) or ``"ones"``; None learns them, and takes
            ones for networks. A ``coreset`` to start from keeps its own.
        targets: ``"fixed"``, or ``"learned"``: class probabilities, or real targets.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"coreset", "callbacks", "checkpoint_dir", "mesh", "fixed"})
    learns_weights: ClassVar[bool] = True  # of models that are no networks, where ``weights`` is None

    steps: int | None = 500
    optimizer: Optimizer | None = None
    step_size: float | None = None
    augment: Augmentation | str | None = "auto"
    weights: str | None = None
    targets: str = "fixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer is not None and self.step_size is not None:
            raise ValueError("give optimizer or step_size, not both")
        if self.step_size is not None:
            check_positive(self.step_size, "step_size")
        if self.steps is not None:
            check_integer(self.steps, "steps")
        check_choice(self.targets, "targets", ("fixed", "learned"))
        if self.weights is not None:
            check_choice(self.weights, "weights", ("ones", "data", "learned"))

    def resolved(self, problem: Problem) -> Self:
        # Models that are no networks are fitted for the posterior of all data, whether or not weights are learned.
        default = "ones" if problem.are_networks else "learned" if self.learns_weights else "data"
        weights = self.weights or default
        augment = resolve_augmentation(self.augment, problem.data.train.feature_shape, problem.data.name)
        # None is the method's own number: that of its class, or else of its recipe.
        steps = type(self).steps if self.steps is None else self.steps
        return super(Learned, replace(self, steps=steps, weights=weights, augment=augment)).resolved(problem)

    @property
    def augmentation(self) -> Augmentation | None:
        """The augmentation of a resolved method."""
        assert not isinstance(self.augment, str)
        return self.augment

    @property
    def free(self) -> tuple[str, ...]:
        """The leaves to learn."""
        chosen = {"inputs": True, "targets": self.targets == "learned", "weights": self.weights == "learned"}
        return tuple(name for name, is_free in chosen.items() if is_free)

    def objective(self, model: Model, problem: Problem) -> Objective:
        """The objective of one model; the method is resolved."""
        raise NotImplementedError(f"{type(self).__name__} must define objective(model, problem)")

    def default_optimizer(self, problem: Problem) -> Optimizer:
        """The optimiser where the user gave none; ``step_size`` may be None."""
        raise NotImplementedError(f"{type(self).__name__} must define default_optimizer(problem)")

    def first_start(self, problem: Problem) -> Pseudocoreset | None:
        """The coreset to start from where the user gave none; None for random real data."""
        return None

    def finished(self, coreset: Pseudocoreset) -> Pseudocoreset:
        """What the user gets of the learned points."""
        return coreset

    def least_epochs(self) -> int:
        """The fewest epochs of experts that serve a resolved method."""
        return 0

    def without_mode(self, problem: Problem, progress: bool) -> tuple[str, Self] | None:
        """What takes the place of a Laplace approximation where there is no mode, in words and as a method."""
        return None


def mean_weight(method: Learned, problem: Problem) -> float:
    """Of a point of the start."""
    if problem.start is not None:
        return float(np.mean(problem.start.weights))
    points = problem.size or (problem.images_per_class or 1) * (problem.data.num_classes or 1)
    return 1.0 if method.weights == "ones" else problem.data.train.num_data / points
