"""The log density of a model at many rows, in double precision, a few rows at a time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data import Dataset
from pseudocoreset.models import Model
from pseudocoreset.rows import ModelInputs, spread_indices

__all__ = ["Density", "PointDensity", "Points", "SecondOrder", "points_of", "second_order_of", "values_of"]

CHUNK_ELEMENTS = 2**20  # numbers of one kind that a chunk holds


Points = tuple[np.ndarray, np.ndarray, np.ndarray]  # inputs, targets, weights


class SecondOrder(NamedTuple):
    """A function of the parameters to second order: value, gradient (d,) and negative Hessian (d, d)."""

    value: float
    gradient: np.ndarray
    curvature: np.ndarray

    def times(self, factor: float) -> SecondOrder:
        """The function times a number."""
        return SecondOrder(factor * self.value, factor * self.gradient, factor * self.curvature)

    def plus(self, other: SecondOrder) -> SecondOrder:
        """The sum of two functions."""
        return SecondOrder(self.value + other.value, self.gradient + other.gradient, self.curvature + other.curvature)


@dataclass(frozen=True, eq=False)
class Density:
    """Log prior and log-likelihoods of a bound model on the training rows of a data set.

    Rows are read as they are needed, from disk too. What is summed over rows is summed in float64 on the host, chunk
    by chunk; within a chunk too, unless the program itself insists on float32.

    Attributes:
        model: bound.
        data: whose train split has the rows.
    """

    model: Model
    data: Dataset

    @property
    def num_data(self) -> int:
        """Number of rows n."""
        return self.data.train.num_data

    @property
    def num_params(self) -> int:
        """Number of parameters d."""
        return self.model.num_params

    @functools.cached_property
    def is_double(self) -> bool:
        """Whether the program runs in float64; one that fixes its types, inside a scan say, may not."""
        x, y = self.rows(np.zeros(1, int))
        try:
            with jax.enable_x64(True):
                jax.eval_shape(lambda v: _value(self.model, v, x, y, np.ones(1)), np.zeros(self.num_params))
        except TypeError:
            return False
        return True

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Where the density is computed: in float64, if the program can."""
        return jax.enable_x64(True) if self.is_double else contextlib.nullcontext()

    def rows(self, index: Any) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of some rows; inputs in float64, with the values that the library computes with."""
        x = np.asarray(ModelInputs.of(self.data.train)[index], np.float32).astype(np.float64)
        y = np.asarray(self.data.train.y[index])
        return x, y if y.dtype.kind in "iu" else y.astype(np.float64)

    def chunks(self, indices: np.ndarray | None, size: int) -> Iterator[tuple[Any, Any, np.ndarray]]:
        """Inputs, targets and weights of rows, ``size`` at a time; the last chunk is filled up, with weights 0."""
        n = self.num_data if indices is None else len(indices)
        size = min(size, n)
        for first in range(0, n, size):
            last = min(first + size, n)
            x, y = self.rows(slice(first, last) if indices is None else indices[first:last])
            weights = np.zeros(size)
            weights[: last - first] = 1.0
            if last - first < size:
                x, y = (np.concatenate([a, np.repeat(a[:1], size - len(a), axis=0)]) for a in (x, y))
            yield x, y, weights

    def prior(self, vector: np.ndarray) -> SecondOrder:
        """The log prior to second order."""
        with self.precision():
            return _hosted(_prior(self.model, jnp.asarray(vector)))

    def priors(self, vectors: np.ndarray) -> np.ndarray:
        """Log priors at several parameter vectors (s, d): (s,)."""
        with self.precision():
            return np.asarray(_priors(self.model, jnp.asarray(vectors)), np.float64)

    def likelihood(self, vector: np.ndarray, indices: np.ndarray | None = None) -> SecondOrder:
        """The sum of the log-likelihoods of rows, all by default, to second order."""
        total = None
        for x, y, weights in self.chunks(indices, _rows_for(self.num_params)):
            with self.precision():
                part = _hosted(_likelihood(self.model, jnp.asarray(vector), x, y, weights))
            total = part if total is None else total.plus(part)
        assert total is not None
        return total

    def values(self, vectors: np.ndarray, indices: np.ndarray | None = None) -> np.ndarray:
        """Sums over rows of the log-likelihoods at several parameter vectors (s, d): (s,)."""
        total = np.zeros(len(vectors))
        for x, y, weights in self.chunks(indices, _rows_for(len(vectors))):
            with self.precision():
                total += np.asarray(_values(self.model, jnp.asarray(vectors), x, y, weights), np.float64)
        return total

    def row_values(self, vectors: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Log-likelihoods of rows at several parameter vectors (s, d): (b, s)."""
        size, found = min(_rows_for(len(vectors)), len(indices)), []
        for x, y, _ in self.chunks(indices, size):
            with self.precision():
                found.append(np.asarray(_row_values(self.model, jnp.asarray(vectors), x, y), np.float64).T)
        return np.concatenate(found)[: len(indices)]

    def scores(self, vector: np.ndarray, indices: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Gradients of the log-likelihoods of rows, chunks (b, d)."""
        n = self.num_data if indices is None else len(indices)
        for number, (x, y, weights) in enumerate(self.chunks(indices, size := _rows_for(self.num_params))):
            with self.precision():
                found = np.asarray(_scores(self.model, jnp.asarray(vector), x, y), np.float64)
            yield found[: min(len(weights), n - number * min(size, n))]

    def curvatures(self, vector: np.ndarray, indices: np.ndarray, directions: np.ndarray) -> Iterator[np.ndarray]:
        """V' C_i V of rows, C_i the negative Hessian of a log-likelihood, directions V (d, r): chunks (b, r, r)."""
        r = directions.shape[1]
        size = min(_rows_for(self.num_params * r), len(indices))
        for number, (x, y, _) in enumerate(self.chunks(indices, size)):
            with self.precision():
                found = _curvatures(self.model, jnp.asarray(vector), jnp.asarray(directions), x, y)
                found = np.asarray(found, np.float64)
            yield found[: len(indices) - number * size]

    def some_rows(self, count: int) -> np.ndarray:
        """Indices of at most ``count`` rows, evenly spread."""
        return spread_indices(self.num_data, count)


@dataclass(frozen=True, eq=False)
class PointDensity(Density):
    """The log density of the same model on weighted points in the place of all rows.

    Attributes:
        points: inputs, targets, weights.
    """

    points: Points

    def likelihood(self, vector: np.ndarray, indices: np.ndarray | None = None) -> SecondOrder:
        """The weighted sum of the log-likelihoods of the points, to second order."""
        assert indices is None
        return second_order_of(self, vector, self.points)

    def values(self, vectors: np.ndarray, indices: np.ndarray | None = None) -> np.ndarray:
        """Weighted sums over points of the log-likelihoods at several parameter vectors (s, d): (s,)."""
        assert indices is None
        return values_of(self, vectors, self.points)


def points_of(coreset: Pseudocoreset) -> Points:
    """Inputs, targets and weights of a coreset, as a ``Density`` computes with them."""
    targets = np.asarray(coreset.targets)
    targets = targets if targets.dtype.kind in "iu" else targets.astype(np.float64)
    return np.asarray(coreset.packed, np.float64), targets, np.asarray(coreset.weights, np.float64)


def second_order_of(density: Density, vector: np.ndarray, points: Points) -> SecondOrder:
    """The weighted log-likelihood of points to second order."""
    with density.precision():
        return _hosted(_likelihood(density.model, jnp.asarray(vector), *points))


def values_of(density: Density, vectors: np.ndarray, points: Points) -> np.ndarray:
    """Weighted log-likelihoods of points at several parameter vectors (s, d): (s,)."""
    with density.precision():
        return np.asarray(_values(density.model, jnp.asarray(vectors), *points), np.float64)


def _rows_for(each: int) -> int:
    return max(16, CHUNK_ELEMENTS // each)


def _hosted(parts: Any) -> SecondOrder:
    value, gradient, curvature = (np.asarray(part, np.float64) for part in parts)
    return SecondOrder(float(value), gradient, (curvature + curvature.T) / 2)


def _value(model: Model, vector: jax.Array, x: Any, y: Any, weights: Any) -> jax.Array:
    each = model.log_likelihood(model.unflatten(vector), jnp.asarray(x), jnp.asarray(y))
    return jnp.sum(jnp.where(weights > 0, weights * each, 0.0))


def _expanded(fn: Any, vector: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    value, gradient = jax.value_and_grad(fn)(vector)
    return value, gradient, -jax.hessian(fn)(vector)


@functools.partial(jax.jit, static_argnums=0)
def _prior(model: Model, vector: jax.Array) -> Any:
    return _expanded(lambda v: model.log_prior(model.unflatten(v)), vector)


@functools.partial(jax.jit, static_argnums=0)
def _priors(model: Model, vectors: jax.Array) -> jax.Array:
    return jax.lax.map(lambda v: model.log_prior(model.unflatten(v)), vectors)


@functools.partial(jax.jit, static_argnums=0)
def _likelihood(model: Model, vector: jax.Array, x: Any, y: Any, weights: Any) -> Any:
    return _expanded(lambda v: _value(model, v, x, y, weights), vector)


@functools.partial(jax.jit, static_argnums=0)
def _values(model: Model, vectors: jax.Array, x: Any, y: Any, weights: Any) -> jax.Array:
    return jax.lax.map(lambda v: _value(model, v, x, y, weights), vectors)


@functools.partial(jax.jit, static_argnums=0)
def _row_values(model: Model, vectors: jax.Array, x: Any, y: Any) -> jax.Array:
    x, y = jnp.asarray(x), jnp.asarray(y)
    return jax.lax.map(lambda v: model.log_likelihood(model.unflatten(v), x, y), vectors)


def _of_row(model: Model, vector: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    return model.log_likelihood(model.unflatten(vector), x[None], y[None])[0]


@functools.partial(jax.jit, static_argnums=0)
def _scores(model: Model, vector: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    return jax.vmap(lambda a, b: jax.grad(lambda v: _of_row(model, v, a, b))(vector))(x, y)


@functools.partial(jax.jit, static_argnums=0)
def _curvatures(model: Model, vector: jax.Array, directions: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    def one(a: jax.Array, b: jax.Array) -> jax.Array:
        def along(steps: jax.Array) -> jax.Array:
            return _of_row(model, vector + directions @ steps, a, b)

        return -jax.hessian(along)(jnp.zeros(directions.shape[1], vector.dtype))

    return jax.vmap(one)(x, y)
