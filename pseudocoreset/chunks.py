"""Sums and maps over the data of a batch in the memory of a few of them.

The likelihood of one datum depends on no other datum (``Model.is_separable``), so that a batch of any size can pass
through a network in chunks, the sums of losses and gradients accumulated: the same numbers up to rounding, without the
activations of the whole batch. On CPU a chunk is as small as the weights make sensible, where it also stays near the
caches; an accelerator gets all that fits beside the rest.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.batching import activation_bytes
from pseudocoreset.meshes import all_rows, own_rows, sum_over_data_axis
from pseudocoreset.models import Model

__all__ = ["data_at_once", "even_size", "map_over_data", "over_data", "sum_over_data"]

WEIGHT_COPIES = 6  # a chunk may take as much again as this many copies of the weights, which are read for each


def over_data(
    model: Model,
    fn: Callable[[Any, jax.Array], tuple[Any, Any]],
    data: Any,
    weights: jax.Array,
    *,
    shared: bool = False,
) -> tuple[Any, Any]:
    """``fn(data, weights)``, for a function that gives sums over the data and results of each datum.

    Args:
        model: what ``fn`` evaluates; a model that is not separable gets all data at once.
        fn: ``(data, weights) -> (sums, results)``: a pytree of arrays each a sum of one term a datum times its weight,
            and a pytree of arrays with a leading axis over the data. Called on chunks.
        data: pytree of arrays with leading axis n.
        weights: (n,); what fills up the last chunk has weight zero.
        shared: whether the devices along the axis ``"data"`` share the data, inside ``spread(splits_batches=True)``;
            all of them have the result. For separable models.
    """
    if shared:
        sums, results = over_data(model, fn, *own_rows(data, weights))
        return sum_over_data_axis(sums), all_rows(results, len(weights))
    chunks = _split(model, data, weights)
    if chunks is None:
        return fn(data, weights)
    sums, _ = jax.eval_shape(fn, *jax.tree.map(lambda leaf: leaf[0], chunks))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), sums)

    def add(total: Any, chunk: Any) -> tuple[Any, Any]:
        sums, results = fn(*chunk)
        return jax.tree.map(jnp.add, total, sums), results

    sums, results = jax.lax.scan(add, zeros, chunks)
    return sums, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[: len(weights)], results)


def sum_over_data(
    model: Model, fn: Callable[[Any, jax.Array], Any], data: Any, weights: jax.Array, *, shared: bool = False
) -> Any:
    """The sums of ``over_data``, of a function without other results."""
    return over_data(model, lambda *chunk: (fn(*chunk), ()), data, weights, shared=shared)[0]


def map_over_data(model: Model, fn: Callable[[Any], Any], data: Any, *, shared: bool = False) -> Any:
    """The results of ``over_data``, of a function of the data without sums."""
    n = len(jax.tree.leaves(data)[0])
    return over_data(model, lambda chunk, _: ((), fn(chunk)), data, jnp.ones(n), shared=shared)[1]


def _split(model: Model, data: Any, weights: jax.Array) -> Any:
    """Data and weights with axes (chunks, data of a chunk), None if one chunk holds all."""
    n = len(weights)
    size = even_size(n, data_at_once(model))
    count = math.ceil(n / size)
    if count == 1 or not model.is_separable:
        return None
    index = np.minimum(np.arange(count * size), n - 1)
    padded = jnp.asarray(weights)[index] * (np.arange(count * size) < n)
    # What fills the last chunk up are data, not zeros, at which a likelihood may not be finite.
    filled = data if count * size == n else jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], data)
    return jax.tree.map(lambda leaf: leaf.reshape(count, size, *leaf.shape[1:]), (filled, padded))


def even_size(n: int, most: int) -> int:
    """Rows of a chunk, of n in chunks of at most ``most``: more chunks than are needed where the last is fuller so.

    A chunk is taken to cost as much as one more datum: the weights are read, and their gradient is added, for each.
    """
    fewest = math.ceil(n / most)
    sizes = [math.ceil(n / count) for count in range(fewest, min(2 * fewest, n) + 1)] if fewest > 1 else [n]
    return min(sizes, key=lambda size: (size + 1) * math.ceil(n / size))


@functools.lru_cache(maxsize=64)
def data_at_once(model: Model) -> int:
    """How many data are to pass through a bound model together."""
    params = jax.eval_shape(model.init, jax.random.key(0))

    def kept(n: int) -> int:
        """Bytes that reverse mode keeps between the forward and the backward pass over n data."""
        x, y = (jax.ShapeDtypeStruct((n, *one.shape), one.dtype) for one in (model._bound.x, model._bound.y))

        def pullback(p: Any, x: jax.Array, y: jax.Array) -> Any:
            return jax.vjp(lambda q: model.log_likelihood(q, x, y), p)[1]

        return _bytes(jax.eval_shape(pullback, params, x, y))

    each = kept(2) - kept(1)
    return max(1, (activation_bytes() + WEIGHT_COPIES * _bytes(params)) // max(each, 1))


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
