"""Step sizes in the units of a table's columns: an optimiser that sees every column at scale one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from pseudocoreset.data import Dataset

__all__ = ["column_scales", "in_units", "is_table"]


def is_table(data: Dataset) -> bool:
    """Whether an input is a row of columns, as against an image."""
    return len(data.train.feature_shape) == 1


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
