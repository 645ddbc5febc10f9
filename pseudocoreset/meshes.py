"""Stacks and data over a mesh of devices, on one host or several.

A stack (experts, chains, draws, classes) is split over the devices of a ``jax.sharding.Mesh``; each device goes through
its part as a single one goes through the whole, by ``jax.shard_map``, and no device waits for another in between. Along
the axis of the mesh that is called ``"data"`` devices may share the data of one item instead: the rows of a sum over
all data, which are split over it, or each minibatch of data that are whole on every device.

On several hosts (``jax.distributed.initialize``) every process runs the same script and holds the same arrays on its
host; process 0 alone writes files, which all of them must be able to read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

__all__ = [
    "all_rows",
    "check_mesh",
    "fill_up",
    "has_data_axis",
    "is_writer",
    "lay_out",
    "own_rows",
    "replicate",
    "same_everywhere",
    "split_rows",
    "spread",
    "sum_over_data_axis",
    "summed_over_data",
    "to_host",
    "wait_for_all",
]

DATA_AXIS = "data"


def check_mesh(mesh: Any) -> Mesh | None:
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


def has_data_axis(mesh: Mesh | None) -> bool:
    """Whether an axis of the mesh is called ``"data"``."""
    return mesh is not None and DATA_AXIS in mesh.axis_names


def _stack_axes(mesh: Mesh, splits_data: bool) -> tuple[Any, ...]:
    return tuple(name for name in mesh.axis_names if not (splits_data and name == DATA_AXIS))


def _num_parts(mesh: Mesh, splits_data: bool) -> int:
    return math.prod(mesh.shape[name] for name in _stack_axes(mesh, splits_data))


def fill_up(stack: Any, mesh: Mesh | None, *, splits_data: bool = False) -> tuple[Any, np.ndarray]:
    """A stack repeated at its end until the devices divide it, and which of its items are not repetitions."""
    size = jax.tree.leaves(stack)[0].shape[0]
    extra = 0 if mesh is None else -size % _num_parts(mesh, splits_data)
    if extra:
        chosen = np.minimum(np.arange(size + extra), size - 1)
        stack = jax.tree.map(lambda leaf: leaf[chosen], stack)
    return stack, np.arange(size + extra) < size


def spread(
    fn: Callable[..., Any],
    mesh: Mesh | None,
    stack: Any,
    *shared: Any,
    splits_data: bool = False,
    splits_batches: bool = False,
) -> Any:
    """``fn(part, *shared)`` on every device for its part of a stack, the results put together along the stack.

    A stack that the devices do not divide is filled up with its last item, and the results of that are dropped.

    Args:
        fn: function of a part of the stack and the shared arguments that closes over no traced array; its results have
            a leading axis over the part.
        mesh: None for ``fn(stack, *shared)``.
        stack: pytree of arrays with the same leading axis.
        *shared: pytrees, whole on every device.
        splits_data: whether the axis ``"data"`` splits not the stack but the rows of the first of ``shared``.
        splits_batches: whether it splits neither, for ``fn`` takes its part of what it computes by ``own_rows``.
    """
    if mesh is None:
        return fn(stack, *shared)
    axes = _stack_axes(mesh, splits_data or splits_batches)
    size = jax.tree.leaves(stack)[0].shape[0]
    filled, is_item = fill_up(stack, mesh, splits_data=splits_data or splits_batches)
    of_shared = [P(DATA_AXIS) if splits_data and i == 0 else P() for i in range(len(shared))]
    mapped = jax.shard_map(
        fn,
        mesh=mesh,
        in_specs=(P(axes), *of_shared),
        out_specs=P(axes),
        check_vma=False,
    )(filled, *shared)
    return mapped if len(is_item) == size else jax.tree.map(lambda leaf: leaf[:size], mapped)


def summed_over_data(fn: Callable[[Any, Any], jax.Array]) -> Callable[[Any, Any], jax.Array]:
    """The sum of ``fn(params, rows)`` over the axis ``"data"``, where ``spread`` splits rows over it.

    Differentiable in ``params`` in reverse mode. JAX's own derivative of the sum is the sum of what comes back to it on
    each device, which is the same on all of them: too large by their number, and of the rows of one.

    Args:
        fn: ``(params, rows) -> scalar`` that closes over no traced array.
    """

    @jax.custom_vjp
    def total(params: Any, rows: Any) -> jax.Array:
        return jax.lax.psum(fn(params, rows), DATA_AXIS)

    def forward(params: Any, rows: Any) -> tuple[jax.Array, Any]:
        return sum_over_data_axis(jax.value_and_grad(fn)(params, rows))

    def backward(slope: Any, cotangent: jax.Array) -> tuple[Any, None]:
        return jax.tree.map(lambda leaf: cotangent * leaf, slope), None

    total.defvjp(forward, backward)
    return total


def sum_over_data_axis(tree: Any) -> Any:
    """Arrays added up over the devices along the axis ``"data"``, inside ``spread``; all in one exchange.

    An exchange an array makes the devices wait for one another as often: on CPU longer than small networks compute.
    """
    if not jax.tree.leaves(tree):
        return tree
    flat, unflatten = ravel_pytree(tree)
    return unflatten(jax.lax.psum(flat, DATA_AXIS))


def own_rows(rows: Any, weights: jax.Array) -> tuple[Any, jax.Array]:
    """A device's part of the rows that the devices along the axis ``"data"`` share, inside ``spread``.

    Args:
        rows: pytree of arrays with leading axis n.
        weights: (n,).

    Returns:
        Arrays with leading axis n over the number of devices, rounded up; what fills up has weight zero.
    """
    size = -(-len(weights) // jax.lax.axis_size(DATA_AXIS))
    index = jax.lax.axis_index(DATA_AXIS) * size + jnp.arange(size)
    chosen = jnp.minimum(index, len(weights) - 1)
    own = jax.tree.map(lambda leaf: leaf[chosen], rows)
    return own, jnp.where(index < len(weights), weights[chosen], 0.0)


def all_rows(own: Any, size: int) -> Any:
    """Arrays of all rows, on every device, out of what each device made of its ``own_rows`` or ``split_rows``.

    Args:
        own: pytree of arrays with a leading axis over the rows of the device.
        size: n, the number of rows; what filled up the last device is left out.
    """
    return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, DATA_AXIS, tiled=True)[:size], own)


@functools.lru_cache(maxsize=16)
def _identity(sharding: NamedSharding) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=sharding)


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays whole on every device; on the default one without a mesh."""
    if mesh is not None:
        return _identity(NamedSharding(mesh, P()))(tree)
    # ``jnp.asarray`` makes two copies of a NumPy array on CPU.
    return jax.tree.map(lambda leaf: jax.device_put(leaf) if isinstance(leaf, np.ndarray) else jnp.asarray(leaf), tree)


def lay_out(stack: Any, mesh: Mesh | None, *, splits_data: bool = False) -> Any:
    """A stack where ``spread`` leaves its results, so that what takes it is compiled once."""
    if mesh is None:
        return stack
    fits = jax.tree.leaves(stack)[0].shape[0] % _num_parts(mesh, splits_data) == 0
    return _identity(NamedSharding(mesh, P(_stack_axes(mesh, splits_data)) if fits else P()))(stack)


def split_rows(arrays: Any, mesh: Mesh | None) -> Any:
    """Arrays of the host by rows over the axis ``"data"``, filled up with zeros to what it divides."""
    assert mesh is not None

    def placed(array: np.ndarray) -> jax.Array:
        array = np.asarray(array, jax.dtypes.canonicalize_dtype(array.dtype))
        extra = -len(array) % mesh.shape[DATA_AXIS]
        padded = np.pad(array, [(0, extra)] + [(0, 0)] * (array.ndim - 1))
        sharding = NamedSharding(mesh, P(DATA_AXIS))
        return jax.make_array_from_callback(padded.shape, sharding, lambda index: padded[index])

    return jax.tree.map(placed, arrays)


def to_host(tree: Any) -> Any:
    """The arrays of a tree as NumPy's, whole on every process; all processes must ask for them."""
    leaves, structure = jax.tree.flatten(tree)
    # What spans processes is made whole on each device first, all of it in one computation.
    spread_out: dict[int, Any] = {
        i: leaf
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)
    }
    if spread_out:
        for i, leaf in replicate(spread_out, next(iter(spread_out.values())).sharding.mesh).items():
            leaves[i] = leaf
    return jax.tree.unflatten(structure, [np.asarray(leaf) for leaf in leaves])


def is_writer() -> bool:
    """Whether this process writes files: the only one, or the first of several."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Return when all processes have come here."""
    if jax.distributed.is_initialized():
        multihost_utils.sync_global_devices(name)


def same_everywhere(number: int) -> bool:
    """Whether all processes have the same number."""
    return not jax.distributed.is_initialized() or bool(np.all(multihost_utils.process_allgather(number) == number))
