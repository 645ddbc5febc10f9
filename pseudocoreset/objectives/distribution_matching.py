"""Distribution matching: mean features of the coreset and of the data (DM; Zhao and Bilen 2023).

    L(u) = E_theta sum_c | mean_{x in class c} phi_theta(A_omega x) - mean_{u in class c} phi_theta(A_omega u) |^2

with phi_theta the features of a random network (``Model.features``) and A_omega an augmentation with one draw omega a
class for data and coreset alike, the siamese form. Weights of the coreset enter its means.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pseudocoreset.arguments import checked
from pseudocoreset.data.augmentation import Augmentation
from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.models import Model, Params
from pseudocoreset.objectives.base import Gradient, Objective, check_free
from pseudocoreset.objectives.by_class import (
    ClassSlots,
    class_batches,
    class_slots,
    gradient_by_class,
    siamese,
    weighted_mean,
)
from pseudocoreset.rows import Rows
from pseudocoreset.validation import check_integer

__all__ = ["distribution_matching", "require_features"]


def require_features(name: str, model: Model) -> None:
    """An error if the objective ``name`` cannot use this model.

    Raises:
        ValueError: for a model without features or without classes.
    """
    if not model.has_features:
        raise ValueError(
            f"model: {name} needs features, and the program {model.name!r} has no deterministic site 'features' of "
            "shape (n, d)"
        )
    if model.num_classes is None:
        raise ValueError(f"model: {name} needs classes, and the program {model.name!r} has none. Use gradient_matching")


@checked
def distribution_matching(
    model: Model,
    *,
    batch_size: int = 256,
    augment: Augmentation | None = None,
    free: str | Sequence[str] = ("inputs",),
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

    def init(key: jax.Array, coreset: Rows, data: DeviceData) -> ClassSlots:
        return class_slots(coreset, model.num_classes)

    def gradient(
        key: jax.Array, state: ClassSlots, coreset: Rows, data: DeviceData, snapshots: tuple[Params, ...]
    ) -> Gradient:
        network_key, batch_key, view_key = jax.random.split(key, 3)
        params = model.init(network_key)
        indices, mask = class_batches(batch_key, data, model.num_classes, batch_size)

        loss_fn = functools.partial(_of_class, model, augment)
        items = (indices, mask, jax.random.split(view_key, len(indices)))
        leaves, info = gradient_by_class(loss_fn, coreset, free, state, items, data, params, devices=data.devices)
        return leaves, state, info

    settings = {"batch_size": batch_size, "augment": None if augment is None else augment.strategy}
    return Objective(
        "distribution_matching", model, init, gradient, None, settings, free, "kept by class", loss_is_value=True
    )


def _of_class(
    model: Model, augment: Augmentation | None, points: Rows, item: Any, data: DeviceData, params: Params
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The squared distance of the mean features of points and data of a class; zero where one side has none."""
    chosen, present, key = item

    def mean_features(inputs: jax.Array, weights: jax.Array) -> jax.Array:
        return weighted_mean(model.features(params, siamese(augment, key, inputs)), weights)

    x, _ = data.batch(chosen)
    target = mean_features(x, present.astype(x.dtype))
    difference = mean_features(points.inputs, points.weights) - target
    on_both_sides = jnp.any(present) & (jnp.sum(points.weights) > 0)
    return jnp.where(on_both_sides, jnp.sum(difference**2), 0.0), {}
