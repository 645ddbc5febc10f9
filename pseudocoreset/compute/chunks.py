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
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from pseudocoreset.compute.backends import on_cpu
from pseudocoreset.compute.limits import MEBIBYTE, Limits
from pseudocoreset.compute.memory import tree_bytes

if TYPE_CHECKING:
    from pseudocoreset.models import Model

__all__ = ["even_size", "in_chunks", "rows_at_once"]


def in_chunks(fn: Callable[[Any, jax.Array], tuple[Any, Any]], rows: Any, size: int) -> tuple[Any, Any]:
    """``fn(rows, is_new)`` of a few rows at a time: what it sums is added up, and what it has of each row put in order.

    Args:
        fn: ``(rows, is_new) -> (sums, results)``: a pytree of arrays each a sum of one term a row, and a pytree of
            arrays with a leading axis over the rows. ``is_new`` (size,) is False for rows that an earlier chunk had,
            which the sums are to leave out: the last chunk is as long as the others.
        rows: pytree of arrays with leading axis n.
        size: rows in a chunk, at most.
    """
    n = len(jax.tree.leaves(rows)[0])
    if n <= size:
        return fn(rows, jnp.ones(n, bool))
    size = even_size(n, size)
    count = math.ceil(n / size)

    @jax.jit  # traced once, for the shapes and for the loop
    def chunk(first: jax.Array) -> tuple[Any, Any]:
        start = jnp.minimum(first, n - size)
        some = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), rows)
        return fn(some, start + jnp.arange(size) >= first)

    firsts = size * jnp.arange(count)
    sums, _ = jax.eval_shape(chunk, firsts[0])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), sums)

    def add(total: Any, first: jax.Array) -> tuple[Any, Any]:
        sums, results = chunk(first)
        return jax.tree.map(jnp.add, total, sums), results

    def joined(leaf: jax.Array) -> jax.Array:
        return jnp.concatenate([leaf[:-1].reshape(-1, *leaf.shape[2:]), leaf[-1, count * size - n :]])

    sums, results = jax.lax.scan(add, zeros, firsts)
    return sums, jax.tree.map(joined, results)


def even_size(n: int, most: int) -> int:
    """Rows of a chunk, of n in chunks of at most ``most``: more chunks than are needed where the last is fuller so.

    A chunk is taken to cost as much as one more datum: the weights are read, and their gradient is added, for each.
    """
    fewest = math.ceil(n / most)
    sizes = [math.ceil(n / count) for count in range(fewest, min(2 * fewest, n) + 1)] if fewest > 1 else [n]
    return min(sizes, key=lambda size: (size + 1) * math.ceil(n / size))


def rows_at_once(model: Model, limits: Limits) -> int:
    """How many data are to pass through a bound model together."""
    if limits.rows is not None:
        return limits.rows
    affordable = limits.activation_bytes
    if affordable is None:
        affordable = 6 * MEBIBYTE if on_cpu() else 1024 * MEBIBYTE
    return _rows_within(model, affordable, limits.weight_copies)


@functools.lru_cache(maxsize=64)
def _rows_within(model: Model, num_bytes: int, weight_copies: int) -> int:
    params = jax.eval_shape(model.init, jax.random.key(0))

    def kept(n: int) -> int:
        """Bytes that reverse mode keeps between the forward and the backward pass over n data."""
        x, y = (jax.ShapeDtypeStruct((n, *one.shape), one.dtype) for one in model.datum_structs)

        def pullback(p: Any, x: jax.Array, y: jax.Array) -> Any:
            return jax.vjp(lambda q: model.log_likelihood(q, x, y), p)[1]

        return tree_bytes(jax.eval_shape(pullback, params, x, y))

    each = kept(2) - kept(1)
    return max(1, (num_bytes + weight_copies * tree_bytes(params)) // max(each, 1))
