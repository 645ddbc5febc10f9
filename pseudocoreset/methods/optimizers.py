"""The optimisers that methods have by default, and step sizes in the units of a table's columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from pseudocoreset.data import Dataset
from pseudocoreset.methods.base import Learned, Optimizer, Problem, mean_weight

__all__ = ["adam", "column_scales", "distillation_sgd", "in_units", "published_sgd"]

MOMENTUM = 0.5  # of SGD on the inputs, in all reference codes of dataset distillation


def adam(method: Learned, problem: Problem) -> Optimizer:
    """Adam with cosine decay of its step, 0.1 at the start, on all leaves.

    Of tables in units of each column, and with networks a tenth of that: their gradients are noise for the most part,
    which would carry points away from all data.
    """
    first = 0.01 if problem.is_table and any(m.is_network for m in problem.models) else 0.1
    alpha = first if method.step_size is None else method.step_size
    assert method.steps is not None
    # Near the optimum the gradient falls by orders of magnitude; a long memory of its square would stall there.
    optimizer = optax.adam(optax.cosine_decay_schedule(alpha, method.steps), b2=0.9)
    return in_units(optimizer, _units(method, problem)) if problem.is_table else optimizer


def _units(method: Learned, problem: Problem) -> dict[str, Any]:
    """Of the leaves of a table: standard deviations of columns and real targets, and the mean weight of a point."""
    y = problem.data.train.y
    units: dict[str, Any] = {"inputs": column_scales(problem.data), "weights": mean_weight(method, problem)}
    if np.issubdtype(np.asarray(y).dtype, np.floating):
        units["targets"] = np.std(y, axis=0, dtype=float)
    return units


def published_sgd(method: Learned, problem: Problem, published: float, momentum: float) -> Optimizer:
    """SGD on the inputs, with the step size of a reference code for images; Adam of step 0.01 on other leaves.

    Tables have ``adam``: the published steps are those of whitened pixels.
    """
    if problem.is_table:
        return adam(method, problem)
    alpha = published if method.step_size is None else method.step_size
    each: dict[str, optax.GradientTransformation] = {name: optax.adam(0.01) for name in method.free}
    return each | {"inputs": optax.sgd(alpha, momentum=momentum or None)}


def distillation_sgd(method: Learned, problem: Problem, published: float) -> Optimizer:
    """SGD with the momentum of the reference codes of dataset distillation for networks, Adam elsewhere."""
    if not problem.are_networks:
        return adam(method, problem)
    return published_sgd(method, problem, published, momentum=MOMENTUM)


def column_scales(data: Dataset) -> np.ndarray:
    """Standard deviation (d,) of every column of a table's model inputs; zero of a column that is constant."""
    return np.std(data.train.packed, axis=0, dtype=np.float64).astype(np.float32)


def in_units(optimizer: optax.GradientTransformation, units: Mapping[str, Any]) -> optax.GradientTransformation:
    """An optimiser of leaves in the given units: it sees z = leaf / unit and what it does to z is done to the leaf.

    Args:
        optimizer: acts on a dictionary of leaves.
        units: by the name of a leaf, an array that broadcasts against it; one where there is none. An element of unit
            zero does not move, and one without gradient keeps its bits.
    """

    def scaled(tree: dict[str, jax.Array], power: int) -> dict[str, jax.Array]:
        def one(name: str, leaf: jax.Array) -> jax.Array:
            if name not in units:
                return leaf
            unit = np.asarray(units[name])
            factor = np.where(unit > 0, unit, 1.0) ** power if power < 0 else unit
            return leaf * jax.numpy.asarray(factor, leaf.dtype)

        return {name: one(name, leaf) for name, leaf in tree.items()}

    def init(params: Any) -> Any:
        return optimizer.init(scaled(params, -1))

    def update(gradient: Any, state: Any, params: Any = None) -> Any:
        moves, state = optimizer.update(scaled(gradient, 1), state, None if params is None else scaled(params, -1))
        return scaled(moves, 1), state

    return optax.GradientTransformation(init, update)
