"""Random real data: the subset that every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.methods.base import Callback, Problem
from pseudocoreset.subsets.base import Choice, Subset

__all__ = ["Random"]


@dataclass(frozen=True, kw_only=True)
class Random(Subset):
    """Data chosen at random, without replacement: those that ``Pseudocoreset.from_data`` chooses with the same key."""

    name: ClassVar[str] = "random"

    def choose(self, problem: Problem, callbacks: tuple[Callback, ...], progress: bool) -> Choice:
        mass = self.mass(problem)
        chosen = Pseudocoreset.from_data(
            problem.data, images_per_class=problem.images_per_class, size=problem.size, key=problem.key, mass=mass
        )
        return Choice(chosen, {}, {"mass": mass})
