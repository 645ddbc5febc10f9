"""Convolution with 3x3 filters in Winograd's form F(4x4, 3x3) (Winograd 1980; Lavin and Gray 2016).

A tile of 4x4 outputs is a 3x3 correlation of 6x6 inputs. With the transforms B, G and A of Lavin and Gray,

    y = A^T [ (G w G^T) * (B^T x B) ] A,

a channel's 144 multiplications become 36, each of the 36 places of a tile is one matrix product over channels, and
the tiles hold 2.25 times as many numbers as the images, where unfolding for one matrix product takes nine times
as many. In float32 the relative error is about 1e-5, ten times that of the direct sum.

The two transforms of images are linear maps with transposes of their own (``image_maps``). A bias is one more product
at the place (1, 1), which A adds to every output of a tile: no pass over the images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.kernels.transforms import FILTER, INPUT, OUTPUT, TILE, combine, mirrored
from pseudocoreset.models.image_maps import ImageMap

__all__ = ["winograd"]


def winograd(x: jax.Array, filters: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """Correlation of images with 3x3 filters, a frame of one zero around the images.

    Args:
        x: images (n, height, width, channels), float32 or float64.
        filters: (3, 3, channels, num_filters).
        bias: (num_filters,), added at every place.

    Returns:
        Images (n, height, width, num_filters).
    """
    shape = x.shape[1], x.shape[2]
    channels, num_filters = filters.shape[2:]
    factors = jnp.asarray(np.kron(FILTER, FILTER), filters.dtype) @ filters.reshape(9, channels * num_filters)
    tiles = ImageMap(_cut, _cut_adjoint, shape, after=2)(x)
    places = tiles.shape[2:5]
    products = tiles.reshape(36, math.prod(places), channels) @ factors.reshape(36, channels, num_filters)
    products = products.reshape(6, 6, *places, num_filters)
    join = ImageMap(_join, _join_adjoint, shape, before=2)
    return join(products) if bias is None else join(products, bias)


def _num_tiles(size: int) -> int:
    return -(-size // TILE)


def _cut(shape: tuple[int, int], x: jax.Array) -> jax.Array:
    """B^T x B of every tile: (n, height, width, c) -> (6, 6, n, rows, columns, c)."""
    rows, columns = map(_num_tiles, shape)
    frame = [(1, TILE * (count + 1) - 1 - size) for count, size in zip((rows, columns), shape, strict=True)]
    x = jnp.pad(x, ((0, 0), *frame, (0, 0)))
    x = x.reshape(len(x), rows + 1, TILE, *x.shape[2:])
    x = jnp.stack(mirrored(combine(INPUT, _overlapping(x, 1))))
    x = x.reshape(*x.shape[:3], columns + 1, TILE, x.shape[-1])
    return jnp.stack(mirrored(combine(INPUT, _overlapping(x, 3))), axis=1)


def _cut_adjoint(shape: tuple[int, int], tiles: jax.Array) -> jax.Array:
    rows, columns = map(_num_tiles, shape)
    n, channels = tiles.shape[2], tiles.shape[-1]
    x = jnp.stack(_overlapping_adjoint(combine(INPUT.T, mirrored([tiles[:, j] for j in range(6)])), 3), axis=4)
    x = x.reshape(6, n, rows, TILE * (columns + 1), channels)
    x = jnp.stack(_overlapping_adjoint(combine(INPUT.T, mirrored(list(x))), 1), axis=2)
    x = x.reshape(n, TILE * (rows + 1), TILE * (columns + 1), channels)
    return x[:, 1 : 1 + shape[0], 1 : 1 + shape[1]]


def _overlapping(x: jax.Array, axis: int) -> list[jax.Array]:
    """The six slices of tiles from blocks of four, the two first of the next block among them.

    ``x`` has blocks along ``axis`` and the places in a block along the next.
    """
    place = [jax.lax.index_in_dim(x, i, axis + 1, keepdims=False) for i in range(TILE)]
    count = x.shape[axis] - 1
    here = [jax.lax.slice_in_dim(p, 0, count, axis=axis) for p in place]
    return here + [jax.lax.slice_in_dim(p, 1, count + 1, axis=axis) for p in place[:2]]


def _overlapping_adjoint(slices: Sequence[jax.Array], axis: int) -> list[jax.Array]:
    """The four places of blocks from the six slices of tiles."""

    def padded(x: jax.Array, before: int, after: int) -> jax.Array:
        return jnp.pad(x, [(before, after) if a == axis else (0, 0) for a in range(x.ndim)])

    places = [padded(x, 0, 1) for x in slices[:TILE]]
    return [p + padded(x, 1, 0) for p, x in zip(places, slices[TILE:], strict=False)] + places[2:]


def _join(shape: tuple[int, int], products: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """A^T m A of every tile: (6, 6, n, rows, columns, c) -> (n, height, width, c); ``bias`` (c,) goes to m[1, 1]."""
    _, _, n, rows, columns, channels = products.shape
    x = jnp.stack(combine(OUTPUT.T, mirrored([products[:, j] for j in range(6)])), axis=4)
    x = x.reshape(6, n, rows, TILE * columns, channels)
    parts = list(x)
    if bias is not None:
        parts[1] = parts[1] + bias
    x = jnp.stack(combine(OUTPUT.T, mirrored(parts)), axis=2)
    return x.reshape(n, TILE * rows, TILE * columns, channels)[:, : shape[0], : shape[1]]


def _join_adjoint(shape: tuple[int, int], y: jax.Array) -> jax.Array:
    rows, columns = map(_num_tiles, shape)
    y = jnp.pad(y, ((0, 0), (0, TILE * rows - shape[0]), (0, TILE * columns - shape[1]), (0, 0)))
    n, channels = len(y), y.shape[-1]
    y = y.reshape(n, rows, TILE, TILE * columns, channels)
    y = jnp.stack(mirrored(combine(OUTPUT, [y[:, :, i] for i in range(TILE)])))
    y = y.reshape(6, n, rows, columns, TILE, channels)
    return jnp.stack(mirrored(combine(OUTPUT, [y[..., i, :] for i in range(TILE)])), axis=1)
