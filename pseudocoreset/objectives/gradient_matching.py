"""Gradient matching: DC (Zhao et al. 2021), with siamese augmentation DSA (Zhao and Bilen 2021).

    L(u) = E_theta sum_c D( grad_theta mean_{x in class c} -log p(y | A_omega x, theta),
                            grad_theta mean_{u in class c} -log p(y | A_omega u, theta) )

over the parameters theta on the path of a network that is trained on the coreset itself. D sums, over the kernels and
over their output units, one minus the cosine of the two gradients; or it is the squared distance of the whole
gradients. The squared distance is, up to a factor, the reverse KL divergence between equal isotropic Gaussians around
one gradient step on the coreset and one on the data (Kim et al. 2022).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pseudocoreset.arguments import checked
from pseudocoreset.data.augmentation import Augmentation
from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.models import Model, Params
from pseudocoreset.objectives.base import Gradient, Objective, SnapshotWindow, check_free
from pseudocoreset.objectives.by_class import (
    ClassSlots,
    class_batches,
    class_slots,
    gradient_by_class,
    siamese,
)
from pseudocoreset.objectives.posteriors import InnerTraining
from pseudocoreset.proxies import mean_loss
from pseudocoreset.rows import Rows
from pseudocoreset.validation import check_choice, check_integer, check_positive

__all__ = ["cosine_distance", "gradient_matching", "squared_distance"]

EPSILON = 1e-6  # in the denominator of the cosine, as in the reference


def cosine_distance(one: Params, other: Params, outputs_last: bool = True) -> jax.Array:
    """Sum over kernels and their output units of 1 - <g, h> / (|g| |h| + 1e-6).

    Args:
        one: gradients by site. Vectors do not count, which biases and scales of norms are; those of layer norms have an
            entry for each pixel, (height, width, channels), and count by channel, as in the reference.
        other: gradients of the same sites.
        outputs_last: whether a kernel is (..., inputs, outputs), as in flax, or (outputs, inputs, ...), as in equinox.
    """
    total = jnp.zeros(())
    for name, left in one.items():
        if not _is_kernel(left.shape):
            continue
        g, h = (jnp.moveaxis(a, -1 if outputs_last else 0, -1) for a in (left, other[name]))
        g, h = (a.reshape(-1, a.shape[-1]) for a in (g, h))
        total = total + jnp.sum(1.0 - jnp.sum(g * h, axis=0) / (_norm(g) * _norm(h) + EPSILON))
    return total


def _is_kernel(shape: tuple[int, ...]) -> bool:
    """Two axes or more, and not (outputs, 1, 1), a bias of a convolution in equinox."""
    return len(shape) == 2 or (len(shape) > 2 and math.prod(shape[1:]) > 1)


def squared_distance(one: Params, other: Params) -> jax.Array:
    """Sum of the squared differences of all entries of all sites."""
    return sum((jnp.sum((one[name] - other[name]) ** 2) for name in one), jnp.zeros(()))


def _norm(columns: jax.Array) -> jax.Array:
    # A unit that is never active has a zero gradient, where the plain norm has no derivative.
    squares = jnp.sum(columns**2, axis=0)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


DISTANCES = ("cosine", "squared")
FAR = 1e4  # no parameter of a trained network is so large


class _Training(NamedTuple):
    """The network that is trained on the coreset between matches."""

    slots: ClassSlots
    params: Params
    matched: jax.Array  # matches since it was drawn


def _network(key: jax.Array, model: Model, inner: InnerTraining, state: _Training, coreset: Rows) -> Params:
    """The network of this step: a new one, or that of the last step after training on the coreset."""

    def trained(params: Params) -> Params:
        after = inner.train(key, model, params, coreset)
        # Points on raw scales, or a noise near zero, can throw a network out: then a new one, not the same again.
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(after)]))
        return jax.lax.cond(largest < FAR, lambda: after, lambda: model.init(key))  # false of what is no number

    return jax.lax.cond(state.matched == 0, lambda _: model.init(key), trained, state.params)


@checked
def gradient_matching(
    model: Model,
    *,
    distance: str = "cosine",
    num_inner_steps: int = 50,
    inner_learning_rate: float = 0.01,
    num_outer: int = 10,
    batch_size: int = 256,
    by_class: bool = True,
    augment: Augmentation | None = None,
    window: SnapshotWindow | None = None,
    free: str | Sequence[str] = ("inputs",),
) -> Objective:
    """DC's and DSA's objective for one model, differentiated through both gradients.

    A network is drawn afresh and matched; before each further match it is trained on the coreset as it is then, and
    after ``num_outer`` matches the next is drawn. Classes are summed and the coreset moves once a step, as in the
    reference code. The defaults are those of 10 images a class. A network that normalises by the batch at hand sees one
    class at a time; the reference freezes such statistics at those of a real batch.

    Args:
        model: a bound model.
        distance: ``"cosine"``, by output units (``cosine_distance``), or ``"squared"``, of whole gradients.
        num_inner_steps: steps of gradient descent on all points of the coreset between two matches; augmented anew for
            each image where there is an augmentation.
        inner_learning_rate: their step size on the mean loss.
        num_outer: matches before the network is drawn afresh.
        batch_size: data of each class a step, without replacement; all of the class where it has fewer.
        by_class: match the gradients of each class; otherwise those of a batch of ``batch_size`` data and of all
            points, which needs no classes.
        augment: of both sides, one draw a class and the same for all of its images (DSA); None is DC.
        window: take expert snapshots as the networks instead, one a step; nothing is trained then.
        free: leaves of the coreset to differentiate.

    Raises:
        ValueError: for arguments out of range or that do not suit the model.
    """
    check_integer(num_inner_steps, "num_inner_steps")
    check_positive(inner_learning_rate, "inner_learning_rate")
    check_integer(num_outer, "num_outer")
    check_integer(batch_size, "batch_size")
    _check(model, distance, by_class, window)
    inner = InnerTraining(num_steps=num_inner_steps, learning_rate=inner_learning_rate, augment=augment)
    free = check_free(free)
    num_classes = model.num_classes if by_class else None

    def init(key: jax.Array, coreset: Rows, data: DeviceData) -> ClassSlots | _Training:
        slots = class_slots(coreset, num_classes)
        return slots if window is not None else _Training(slots, model.init(key), jnp.zeros((), jnp.int32))

    def gradient(
        key: jax.Array,
        state: ClassSlots | _Training,
        coreset: Rows,
        data: DeviceData,
        snapshots: tuple[Params, ...],
    ) -> Gradient:
        network_key, batch_key, view_key = jax.random.split(key, 3)
        report = {}
        if isinstance(state, _Training):
            slots, params = state.slots, _network(network_key, model, inner, state, jax.lax.stop_gradient(coreset))
            report["inner_rounds"] = state.matched
            state = _Training(slots, params, (state.matched + 1) % num_outer)
        else:
            slots, (params,) = state, snapshots
        indices, mask = class_batches(batch_key, data, num_classes, batch_size)

        loss_fn = functools.partial(_of_class, model, distance, augment)
        items = (indices, mask, jax.random.split(view_key, len(indices)))
        leaves, info = gradient_by_class(loss_fn, coreset, free, slots, items, data, params, devices=data.devices)
        return leaves, state, info | report

    mass = "kept by class" if by_class else "kept"  # gradients are those of weighted means
    settings = {
        "distance": distance,
        "num_inner_steps": num_inner_steps,
        "inner_learning_rate": inner_learning_rate,
        "num_outer": num_outer,
        "batch_size": batch_size,
        "by_class": by_class,
        "augment": None if augment is None else augment.strategy,
        "window": None if window is None else [window.first, window.last],
    }
    return Objective("gradient_matching", model, init, gradient, window, settings, free, mass)


def _of_class(
    model: Model, distance: str, augment: Augmentation | None, points: Rows, item: Any, data: DeviceData, params: Params
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The distance of the gradients at points and data of a class; zero where one side has none."""
    chosen, present, key = item
    x, y = data.batch(chosen)
    weights = present.astype(x.dtype)
    on_both_sides = jnp.any(present) & (jnp.sum(points.weights) > 0)

    def slope(inputs: jax.Array, targets: jax.Array, masses: jax.Array) -> Params:
        safe = jnp.where(on_both_sides, masses, 1.0)  # a mean over nothing is not a number
        return jax.grad(mean_loss, argnums=1)(model, params, (siamese(augment, key, inputs), targets, safe))

    target = jax.lax.stop_gradient(slope(x, y, weights))
    own = slope(points.inputs, points.targets, points.weights)
    value = cosine_distance(own, target, model.outputs_last) if distance == "cosine" else squared_distance(own, target)
    return jnp.where(on_both_sides, value, 0.0), {}


def _check(model: Model, distance: str, by_class: bool, window: SnapshotWindow | None) -> None:
    """Refuse settings that do not suit the model."""
    check_choice(distance, "distance", DISTANCES)
    if by_class and model.num_classes is None:
        raise ValueError(f"by_class=True needs classes; the program {model.name!r} has none. Use by_class=False")
    if distance == "cosine" and not any(_is_kernel(site.unconstrained_shape) for site in model.sites):
        raise ValueError(
            f"distance='cosine' compares sites of two or more axes; the program {model.name!r} has none. "
            "Use distance='squared'"
        )
    if window is not None and window.ahead is not None:
        raise ValueError(f"window must name one snapshot, without ahead; got {window}")
