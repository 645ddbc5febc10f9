"""Going through a coreset and its data class by class, as the matching objectives and BACON do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.compute.devices import Devices
from pseudocoreset.data.augmentation import Augmentation
from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.objectives.base import differentiate
from pseudocoreset.rows import Rows

__all__ = ["ClassSlots", "class_batches", "class_slots", "gradient_by_class", "siamese", "weighted_mean"]


class ClassSlots(NamedTuple):
    """Which points of a coreset belong to each class, in a table as wide as the largest class."""

    indices: jax.Array  # (num_classes, k) int32
    mask: jax.Array  # (num_classes, k), one for points and zero for padding


def class_slots(coreset: Rows, num_classes: int | None) -> ClassSlots:
    """The classes of a coreset, before the loop: a point keeps its class even if its target is learned.

    Args:
        coreset: of labels (m,), or class probabilities (m, num_classes), of which the most probable class counts.
        num_classes: None for one class with all points.

    Raises:
        ValueError: for labels out of range.
    """
    targets = np.asarray(coreset.targets)
    if num_classes is None:
        targets, num_classes = np.zeros(len(targets), np.int32), 1
    labels = targets if targets.ndim == 1 else targets.argmax(axis=1)
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"targets of the coreset must be classes from 0 to {num_classes - 1}; got {labels.min()} to {labels.max()}"
        )
    members = [np.flatnonzero(labels == label) for label in range(num_classes)]
    width = max(map(len, members))
    indices, mask = np.zeros((2, num_classes, width), np.int32)
    for row, chosen in enumerate(members):
        indices[row, : len(chosen)] = chosen
        mask[row, : len(chosen)] = 1
    return ClassSlots(jnp.asarray(indices), jnp.asarray(mask, coreset.weights.dtype))


def class_batches(key: jax.Array, data: DeviceData, num_classes: int | None, size: int) -> tuple[jax.Array, jax.Array]:
    """A uniform batch of every class without replacement: the whole class where it has no more than ``size`` data.

    Args:
        key: one typed key.
        data: the data.
        num_classes: None for one class with all data.
        size: data a class.

    Returns:
        Indices (num_classes, b) of the data and a mask of the same shape, zero where a class has fewer.
    """
    n = data.num_data
    labels = jnp.zeros(n, jnp.int32) if num_classes is None else data.y.astype(jnp.int32)
    counts = jnp.bincount(labels, length=num_classes or 1)[:, None]
    order = jnp.lexsort((jax.random.bits(key, (n,)), labels))
    position = jnp.arange(min(size, n))[None, :]
    ends = jnp.cumsum(counts, axis=0)
    within = jnp.clip(ends - counts + jnp.minimum(position, counts - 1), 0, n - 1)
    return order[within], position < counts


def siamese(augment: Augmentation | None, key: jax.Array, images: jax.Array) -> jax.Array:
    """Images augmented with one draw for all of them, a function of the key alone; as they are without ``augment``."""
    return images if augment is None else augment(key, images, shared=True)


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """sum_i w_i v_i / sum_i w_i over the leading axis of (n, ...) and (n,); zero, not NaN, where no weight is left."""
    total = jnp.sum(weights)
    return jnp.tensordot(weights, values, 1) / jnp.where(total > 0, total, 1.0)


def gradient_by_class(
    loss_fn: Callable[..., tuple[jax.Array, dict[str, jax.Array]]],
    coreset: Rows,
    free: tuple[str, ...],
    slots: ClassSlots,
    items: Any,
    *shared: Any,
    devices: Devices,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Gradient of sum_c loss_c and the sums of what is reported, in the memory of one class.

    Args:
        loss_fn: ``(points of a class, item of the class, *shared) -> (loss, scalars to report)``; points that pad a
            class have zero weight, and a class without weight on either side must have zero loss. It closes over no
            traced array.
        coreset: all points.
        free: leaves to differentiate.
        slots: the points of every class.
        items: pytree with a leading axis over classes.
        *shared: other arguments of ``loss_fn``, pytrees.
        devices: that share the classes.

    Returns:
        Gradient in the free leaves, and ``info`` with the loss in it.
    """
    points = coreset.take(slots.indices)

    def one_class(item: Any, *whole: Any) -> Any:
        one, mask, own = item

        def masked(arrays: Rows) -> tuple[jax.Array, dict[str, jax.Array]]:
            return loss_fn(arrays._replace(weights=arrays.weights * mask), own, *whole)

        (loss, info), leaves = differentiate(masked, one, free)
        return leaves, info | {"loss": loss}

    leaves, info = devices.taking(1).map(one_class, (points, slots.mask, items), *shared)

    def scatter(name: str) -> jax.Array:
        # Every point has its own slot; those that pad a class have a zero gradient.
        return jnp.zeros_like(getattr(coreset, name)).at[slots.indices].add(leaves[name])

    return {name: scatter(name) for name in free}, jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), info)
