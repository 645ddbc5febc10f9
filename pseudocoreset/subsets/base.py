"""What the methods share that choose real data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.coreset import MASSES, Pseudocoreset
from pseudocoreset.data import Dataset
from pseudocoreset.methods.base import Callback, Method, Problem
from pseudocoreset.models import Model
from pseudocoreset.validation import check_choice, check_integer

__all__ = ["Choice", "Chosen", "Subset", "one_model", "quota_of", "ratio", "subset_of"]


class Choice(NamedTuple):
    """What a method chose.

    coreset
        With the indices of its points among the training data in its metadata.
    history
        Scalars by name, one for each choice.
    settings
        For the record, JSON-able.
    was_stopped
        By a callback.
    advice
        What is wrong with the choice and what to do about it; empty if nothing is.
    posterior
        ``FullPosterior`` of all data, to second order at its mode; None where the method did not find it.
    """

    coreset: Pseudocoreset
    history: dict[str, np.ndarray]
    settings: dict[str, Any]
    was_stopped: bool = False
    advice: str = ""
    posterior: Any = None


@dataclass(frozen=True, kw_only=True)
class Chosen(Method):
    """A method that chooses points among the data."""

    def choose(self, problem: Problem, callbacks: tuple[Callback, ...], progress: bool) -> Choice:
        """The points; the method is resolved."""
        raise NotImplementedError(f"{type(self).__name__} must define choose(problem, callbacks, progress)")

    @property
    def is_compared(self) -> bool:
        """Whether the choice is held against random points where the models have a mode."""
        return True


@dataclass(frozen=True, kw_only=True)
class Subset(Chosen):
    """A method whose points all weigh the same.

    Attributes:
        weights: ``"data"`` (n / m each) or ``"ones"``; None takes ones for networks, and n / m elsewhere, where a
            warning says if random points are nearer to the posterior of all data.
    """

    weights: str | None = None

    def check(self) -> None:
        if self.weights is not None:
            check_choice(self.weights, "weights", MASSES)

    @property
    def is_compared(self) -> bool:
        return self.weights is None

    def mass(self, problem: Problem) -> str:
        """``weights``, or what suits the models."""
        if self.weights is None:
            return "ones" if problem.are_networks else "data"
        return self.weights


def one_model(problem: Problem) -> Model:
    """The model; several are refused."""
    if len(problem.models) != 1:
        raise TypeError(
            f"model must be one Model, whose log-likelihoods choose the points; got {len(problem.models)} of them"
        )
    return problem.models[0]


def quota_of(problem: Problem) -> tuple[np.ndarray, int]:
    """Group (n,) of every datum, its class or 0, and how many points there may be of each."""
    data, images_per_class, size = problem.data, problem.images_per_class, problem.size
    if size is not None:
        if check_integer(size, "size") > data.train.num_data:
            raise ValueError(f"size={size} is more than the {data.train.num_data} training data")
        return np.zeros(data.train.num_data, np.int32), size
    count = check_integer(images_per_class, "images_per_class")
    if data.num_classes is None:
        raise ValueError("images_per_class needs classes; these targets are real numbers, give size instead")
    members = np.bincount(data.train.y, minlength=data.num_classes)
    if members.min() < count:
        label = int(members.argmin())
        raise ValueError(f"images_per_class={count}, but class {label} has {members[label]} training data")
    return data.train.y, count


def subset_of(data: Dataset, indices: np.ndarray, weights: np.ndarray) -> Pseudocoreset:
    """The training data at ``indices``, weighted."""
    return Pseudocoreset(
        inputs=np.asarray(data.preprocessing.apply(data.train.raw[indices]), np.float32),
        targets=np.asarray(data.train.y[indices]),
        weights=np.asarray(weights, np.float32),
        preprocessing=data.preprocessing,
        layout=data.train.layout,
        num_data=data.train.num_data,
        class_names=data.class_names,
        metadata={"indices": indices.tolist()},
        holds_probabilities=False if data.train.y.ndim == 2 else None,
    )


def ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """A quotient that is zero where the denominator is not positive."""
    return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1.0), 0.0)
