"""Hyperparameters of the published recipes, by data set and images a class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

__all__ = [
    "BPCRecipe",
    "FBPCRecipe",
    "TrajectoryRecipe",
    "bpc_recipe",
    "fbpc_recipe",
    "gradient_matching_recipe",
    "trajectory_recipe",
]

T = TypeVar("T")


@dataclass(frozen=True)
class FBPCRecipe:
    """A row of Table 4 of Kim et al. 2023.

    Attributes:
        first_epoch: T, the earliest expert epoch.
        inner_loss: gamma.
        data_learning_rate: lambda_x.
        coreset_learning_rate: lambda_u.
        steps: N.
        step_size: alpha, of SGD on the inputs.
        coreset_batch_size: B.
    """

    first_epoch: int
    inner_loss: float
    data_learning_rate: float
    coreset_learning_rate: float
    steps: int
    step_size: float
    coreset_batch_size: int | None


_FBPC_TABLE_4 = {
    ("cifar10", 1): FBPCRecipe(1, 0.01, 0.05, 0.01, 1000, 100.0, 10),
    ("cifar10", 10): FBPCRecipe(2, 0.1, 0.05, 0.01, 1000, 1000.0, 100),
    ("cifar10", 50): FBPCRecipe(10, 0.2, 0.05, 0.01, 1000, 1000.0, 500),
    ("cifar100", 1): FBPCRecipe(2, 0.1, 0.1, 0.1, 5000, 1000.0, 100),
    ("cifar100", 10): FBPCRecipe(40, 0.1, 0.1, 0.1, 5000, 1000.0, 1000),
    ("cifar100", 50): FBPCRecipe(20, 0.2, 0.01, 0.01, 300, 1000.0, 5000),
    ("tiny_imagenet", 1): FBPCRecipe(2, 0.1, 0.1, 3.0, 5000, 1000.0, 100),
    ("tiny_imagenet", 10): FBPCRecipe(40, 1.0, 0.1, 3.0, 500, 1000.0, 100),
    ("tiny_imagenet", 50): FBPCRecipe(40, 1.0, 0.1, 3.0, 500, 1000.0, 100),
}
_ELSEWHERE = FBPCRecipe(1, 0.1, 0.05, 0.01, 1000, 100.0, None)


def fbpc_recipe(data_name: str, images_per_class: float | None) -> FBPCRecipe:
    """The published recipe for a data set, at the nearest published number of images a class; sensible elsewhere.

    Args:
        data_name: the name of the data set.
        images_per_class: None for coresets that are not counted by class.
    """
    return _nearest(_FBPC_TABLE_4, data_name, images_per_class, _ELSEWHERE)


@dataclass(frozen=True)
class BPCRecipe:
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
    """The recipe of the nearest number of images a class; that of 10 for coresets not counted by class."""
    return _BPC[_closest(_BPC, 10 if images_per_class is None else images_per_class)]


@dataclass(frozen=True)
class TrajectoryRecipe:
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
_MTT_ELSEWHERE = TrajectoryRecipe(30, 2, 20, 100.0, 0.01)


def trajectory_recipe(data_name: str, images_per_class: float | None) -> TrajectoryRecipe:
    """The recipe for a data set, at the nearest published number of images a class; sensible elsewhere.

    Args:
        data_name: the name of the data set.
        images_per_class: None for coresets that are not counted by class.
    """
    return _nearest(_MTT, data_name, images_per_class, _MTT_ELSEWHERE)


_GRADIENT_MATCHING = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


def gradient_matching_recipe(images_per_class: float | None) -> tuple[int, int]:
    """Matches of a network, and steps on the coreset between two of them, in the code of DC (Zhao et al. 2021).

    Those of the nearest number of images a class; of 10 for coresets not counted by class.
    """
    return _GRADIENT_MATCHING[_closest(_GRADIENT_MATCHING, 10 if images_per_class is None else images_per_class)]


def _nearest(table: dict[tuple[str, int], T], data_name: str, images_per_class: float | None, elsewhere: T) -> T:
    """The row of a data set at the closest number of images a class, or ``elsewhere``."""
    published = [count for name, count in table if name == data_name]
    if not published or images_per_class is None:
        return elsewhere
    return table[data_name, _closest(published, images_per_class)]


def _closest(published: Iterable[int], count: float) -> int:
    return min(published, key=lambda one: abs(one - count))
