"""Distribution matching: mean features of the coreset and of the data (DM; Zhao and Bilen 2023).

    L(u) = E_theta sum_c | mean_{x in class c} phi_theta(A_omega x) - mean_{u in class c} phi_theta(A_omega u) |^2

with phi_theta the features of a random network (``Model.features``) and A_omega an augmentation with one draw omega a
class for data and coreset alike, the siamese form. Weights of the coreset enter its means. The helpers that go through
a coreset class by class serve ``gradient_matching`` and ``bacon`` too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.augment import Augmentation
from pseudocoreset.device import DeviceData
from pseudocoreset.models import Model, Params
from pseudocoreset.objectives.base import CoresetArrays, Gradient, Objective, check_free, differentiate
from pseudocoreset.validation import check_integer

__all__ = [
    "ClassSlots",
    "class_batches",
    "class_slots",
    "distribution_matching",
    "require_features",
    "siamese",
    "sum_over_classes",
    "weighted_mean",
]


class ClassSlots(NamedTuple):
    """Which points of a coreset belong to each class, in a table as wide as the largest class."""

    indices: jax.Array  # (num_classes, k) int32
    mask: jax.Array  # (num_classes, k), one for points and zero for padding


def class_slots(coreset: CoresetArrays, num_classes: int | None) -> ClassSlots:
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


def sum_over_classes(
    loss_fn: Callable[[CoresetArrays, Any], tuple[jax.Array, dict[str, jax.Array]]],
    coreset: CoresetArrays,
    free: tuple[str, ...],
    slots: ClassSlots,
    items: Any,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Gradient of sum_c loss_c and the sums of what is reported, in the memory of one class.

    Args:
        loss_fn: ``(points of a class, item of the class) -> (loss, scalars to report)``; points that pad a class have
            zero weight, and a class without weight on either side must have zero loss.
        coreset: all points.
        free: leaves to differentiate.
        slots: the points of every class.
        items: pytree with a leading axis over classes.

    Returns:
        Gradient in the free leaves, and ``info`` with the loss in it.
    """
    points = jax.tree.map(lambda leaf: leaf[slots.indices], coreset)

    def one_class(_: None, item: Any) -> tuple[None, Any]:
        one, mask, own = item

        def masked(arrays: CoresetArrays) -> tuple[jax.Array, dict[str, jax.Array]]:
            return loss_fn(arrays._replace(weights=arrays.weights * mask), own)

        (loss, info), leaves = differentiate(masked, one, free)
        return None, (leaves, info | {"loss": loss})

    _, (leaves, info) = jax.lax.scan(one_class, None, (points, slots.mask, items))

    def scatter(name: str) -> jax.Array:
        # Every point has its own slot; those that pad a class have a zero gradient.
        return jnp.zeros_like(getattr(coreset, name)).at[slots.indices].add(leaves[name])

    return {name: scatter(name) for name in free}, jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), info)


def require_features(name: str, model: Model) -> None:
    """An error if the objective ``name`` cannot use this model.

    Raises:
        ValueError: for a model without features or without classes.
    """
    if not model.has_features:
        raise ValueError(
            f"{name} needs features; the program {model.name!r} has no deterministic site 'features' of shape (n, d)"
        )
    if model.num_classes is None:
        raise ValueError(f"{name} needs classes; the program {model.name!r} has none. Use gradient_matching")


def distribution_matching(
    model: Model,
    *,
    batch_size: int = 256,
    augment: Augmentation | None = None,
    free: Sequence[str] = ("inputs",),
) -> Objective:
    """DM's objective for one model (Zhao and Bilen 2023): a fresh random network each step, no training of networks.

    A network that normalises by the batch at hand (``ConvNet(norm="batch")``) sees one class at a time here; the
    reference sends all classes through such a network together.

    Args:
        model: a bound model with features and classes.
        batch_size: data of each class a step, without replacement; all of the class where it has fewer.
        augment: of both sides, one draw a class; none by default.
        free: leaves of the coreset to differentiate, ``"inputs"`` or ``"weights"``; targets only choose the class.

    Raises:
        ValueError: for arguments out of range, or a model without features or classes.
    """
    check_integer(batch_size, "batch_size")
    free = check_free(free)
    if "targets" in free:
        raise ValueError(f"free={free}: distribution_matching has no gradient in targets, which only choose the class")
    require_features("distribution_matching", model)

    def init(key: jax.Array, coreset: CoresetArrays, data: DeviceData) -> ClassSlots:
        return class_slots(coreset, model.num_classes)

    def gradient(
        key: jax.Array, state: ClassSlots, coreset: CoresetArrays, data: DeviceData, snapshots: tuple[Params, ...]
    ) -> Gradient:
        network_key, batch_key, view_key = jax.random.split(key, 3)
        params = model.init(network_key)
        indices, mask = class_batches(batch_key, data, model.num_classes, batch_size)

        def loss_fn(points: CoresetArrays, item: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            chosen, present, k = item

            def mean_features(inputs: jax.Array, weights: jax.Array) -> jax.Array:
                return weighted_mean(model.features(params, siamese(augment, k, inputs)), weights)

            x, _ = data.batch(chosen)
            target = mean_features(x, present.astype(x.dtype))
            difference = mean_features(points.inputs, points.weights) - target
            on_both_sides = jnp.any(present) & (jnp.sum(points.weights) > 0)
            return jnp.where(on_both_sides, jnp.sum(difference**2), 0.0), {}

        items = (indices, mask, jax.random.split(view_key, len(indices)))
        leaves, info = sum_over_classes(loss_fn, coreset, free, state, items)
        return leaves, state, info

    settings = {"batch_size": batch_size, "augment": None if augment is None else augment.strategy}
    return Objective("distribution_matching", model, init, gradient, None, settings, free)
