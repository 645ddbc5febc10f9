"""Herding (Welling 2009): data whose mean feature is that of all."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.data import Dataset
from pseudocoreset.subsets.by_features import ByFeatures

__all__ = ["Herding"]

PRODUCTS_UP_TO = 20  # columns and targets of a table, all of whose products have their means matched


@dataclass(frozen=True, kw_only=True, eq=False)
class Herding(ByFeatures):
    """Herding (Welling 2009), in the form of the distillation papers: data whose mean feature is that of all.

    One after the other, without replacement, in each class on its own or in the whole,

        x_t = argmin_x | mu - (phi(x) + sum_{s<t} phi(x_s)) / t |,    mu the mean of phi.

    Its history has ``distance_to_mean``. The key serves the random points that the choice is held against; nothing
    else is random.

    Features of a table are its columns and targets in standard units and the products of any two (beyond 20 columns
    their squares): data that match the means of columns alone are all near the mean, and say next to nothing.
    """

    name: ClassVar[str] = "herding"
    measure: ClassVar[str] = "distance_to_mean"

    def of_table(self, data: Dataset) -> np.ndarray:
        return _moments(data)

    def pick(self, features: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        return _herd(features, count)


def _moments(data: Dataset) -> np.ndarray:
    """Columns and targets of a table in standard units, and the products of any two, (n, d); beyond 20 the squares."""
    y = np.asarray(data.train.y)
    targets = y.reshape(len(y), -1) if data.num_classes is None or y.ndim > 1 else np.eye(data.num_classes)[y][:, 1:]
    columns = np.concatenate([data.train.packed, targets], axis=1, dtype=np.float64)
    deviations = np.std(columns, axis=0)
    columns = (columns - np.mean(columns, axis=0)) / np.where(deviations > 0, deviations, 1.0)
    first, second = np.triu_indices(columns.shape[1])
    if columns.shape[1] > PRODUCTS_UP_TO:
        first = second = np.arange(columns.shape[1])
    return np.concatenate([columns, columns[:, first] * columns[:, second]], axis=1).astype(np.float32)


@functools.partial(jax.jit, static_argnums=1)
def _herd(features: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Indices (count,) in the order of choice, and the distance of their mean to that of all after each."""
    centred = features - jnp.mean(features, axis=0)  # so that the means to match are zero, and sums stay small

    def pick(carry: tuple[jax.Array, jax.Array], number: jax.Array) -> Any:
        total, free = carry
        distances = jnp.sum((total + centred) ** 2, axis=1)
        best = jnp.argmin(jnp.where(free, distances, jnp.inf))
        return (total + centred[best], free.at[best].set(False)), (best, jnp.sqrt(distances[best]) / number)

    begin = (jnp.zeros_like(centred[0]), jnp.ones(len(centred), bool))
    return jax.lax.scan(pick, begin, jnp.arange(1, count + 1))[1]
