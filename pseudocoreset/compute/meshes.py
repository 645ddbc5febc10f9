"""Arrays over the devices of a mesh: where they lie, and what devices that share rows exchange.

``Devices`` is what the rest of the library uses.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

__all__ = ["DATA_AXIS", "all_rows", "checked_mesh", "filled_up", "laid_out", "own_rows", "replicated", "split", "total"]

DATA_AXIS = "data"


def checked_mesh(mesh: Any) -> Mesh | None:
    """The mesh as this package uses it, with the axes that ``shard_map`` takes over, or None.

    Raises:
        TypeError: for anything but a mesh of devices.
    """
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        raise TypeError(
            "mesh must be a jax.sharding.Mesh, jax.make_mesh((jax.device_count(),), ('devices',)) for all devices, or "
            f"None; got {type(mesh).__name__} {mesh!r}"
        )
    return Mesh(mesh.devices, mesh.axis_names)


def filled_up(stack: Any, mesh: Mesh, axes: tuple[Any, ...]) -> tuple[Any, np.ndarray]:
    """A stack repeated at its end until the axes divide it, and which of its items are not repetitions."""
    size = jax.tree.leaves(stack)[0].shape[0]
    extra = -size % math.prod(mesh.shape[name] for name in axes)
    if extra:
        chosen = np.minimum(np.arange(size + extra), size - 1)
        stack = jax.tree.map(lambda leaf: leaf[chosen], stack)
    return stack, np.arange(size + extra) < size


def total(tree: Any) -> Any:
    """Arrays added up over the devices along the axis ``"data"``, inside ``shard_map``; all in one exchange.

    An exchange an array makes the devices wait for one another as often: on CPU longer than small networks compute.
    """
    if not jax.tree.leaves(tree):
        return tree
    flat, unflatten = ravel_pytree(tree)
    return unflatten(jax.lax.psum(flat, DATA_AXIS))


def own_rows(rows: Any) -> tuple[Any, jax.Array]:
    """A device's part of the rows that the devices along the axis ``"data"`` share, inside ``shard_map``.

    Args:
        rows: pytree of arrays with leading axis n.

    Returns:
        Arrays with leading axis n over the number of devices, rounded up, and which rows do not only fill up.
    """
    n = jax.tree.leaves(rows)[0].shape[0]
    size = -(-n // jax.lax.axis_size(DATA_AXIS))
    index = jax.lax.axis_index(DATA_AXIS) * size + jnp.arange(size)
    chosen = jnp.minimum(index, n - 1)
    return jax.tree.map(lambda leaf: leaf[chosen], rows), index < n


def all_rows(own: Any, size: int) -> Any:
    """Arrays of all rows, on every device, out of what each device made of its own, inside ``shard_map``.

    Args:
        own: pytree of arrays with a leading axis over the rows of the device.
        size: n, the number of rows; what filled up the last device is left out.
    """
    return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, DATA_AXIS, tiled=True)[:size], own)


@functools.lru_cache(maxsize=16)
def _identity(sharding: NamedSharding) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=sharding)


def replicated(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays whole on every device; on the default one without a mesh."""
    if mesh is not None:
        return _identity(NamedSharding(mesh, P()))(tree)
    # ``jnp.asarray`` makes two copies of a NumPy array on CPU.
    return jax.tree.map(lambda leaf: jax.device_put(leaf) if isinstance(leaf, np.ndarray) else jnp.asarray(leaf), tree)


def laid_out(stack: Any, mesh: Mesh, axes: tuple[Any, ...]) -> Any:
    """A stack split over the axes, where they divide it."""
    fits = jax.tree.leaves(stack)[0].shape[0] % math.prod(mesh.shape[name] for name in axes) == 0
    return _identity(NamedSharding(mesh, P(axes) if fits else P()))(stack)


def split(arrays: Any, mesh: Mesh) -> Any:
    """Arrays of the host by rows over the axis ``"data"``, filled up with zeros to what it divides."""

    def placed(array: np.ndarray) -> jax.Array:
        array = np.asarray(array, jax.dtypes.canonicalize_dtype(array.dtype))
        extra = -len(array) % mesh.shape[DATA_AXIS]
        padded = np.pad(array, [(0, extra)] + [(0, 0)] * (array.ndim - 1))
        sharding = NamedSharding(mesh, P(DATA_AXIS))
        return jax.make_array_from_callback(padded.shape, sharding, lambda index: padded[index])

    return jax.tree.map(placed, arrays)
