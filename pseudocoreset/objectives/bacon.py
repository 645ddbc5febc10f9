"""BACON: Bayesian optimal condensation (Zhou et al. 2024).

The abstract and figures state the frame: the coreset minimises the risk of a Bayesian estimate, approximated by a
Gaussian likelihood and a "TV-CLIP" prior whose two parts are mixed by lambda. The released code states the loss that
was run. Both are here; ``bacon`` says which parts of the first are our reading.
"""

from __future__ import annotations

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
    weighted_mean,
)
from pseudocoreset.objectives.distribution_matching import require_features
from pseudocoreset.rows import Rows
from pseudocoreset.validation import check_choice, check_integer, check_positive

__all__ = ["bacon", "decode", "encode", "out_of_range", "total_variation"]

VARIANTS = ("paper", "released")
RELEASED_CROSS_ENTROPY = 0.5


@checked
def decode(images: jax.Array, factor: int = 2) -> jax.Array:
    """The images that stored images are made of: crops on a grid, enlarged bilinearly.

    All upper left crops come first, then the lower left, upper right and lower right ones, so that labels and weights
    of the result are ``jnp.tile(labels, factor**2)``.

    Args:
        images: (m, height, width, channels), sides divisible by ``factor``.
        factor: crops along a side.

    Returns:
        (factor**2 * m, height, width, channels).

    Raises:
        ValueError: if the images cannot be cut so.
    """
    m, height, width, channels = _check_grid(images.shape, factor)
    grid = images.reshape(m, factor, height // factor, factor, width // factor, channels)
    crops = grid.transpose(3, 1, 0, 2, 4, 5).reshape(-1, height // factor, width // factor, channels)
    return jax.image.resize(crops, (len(crops), height, width, channels), "bilinear")


def encode(images: jax.Array, factor: int = 2) -> jax.Array:
    """Stored images of ``factor**2`` images each, every one averaged down to its place on the grid.

    Args:
        images: (factor**2 * m, height, width, channels), in the order that ``decode`` gives.
        factor: images along a side.

    Returns:
        (m, height, width, channels).

    Raises:
        ValueError: if the sides or the number of images are not divisible.
    """
    n, height, width, channels = _check_grid(images.shape, factor)
    if n % factor**2:
        raise ValueError(f"images: factor={factor} takes a multiple of {factor**2} images; got {n}")
    small = images.reshape(n, height // factor, factor, width // factor, factor, channels).mean(axis=(2, 4))
    grid = small.reshape(factor, factor, n // factor**2, height // factor, width // factor, channels)
    return grid.transpose(2, 1, 3, 0, 4, 5).reshape(n // factor**2, height, width, channels)


def _check_grid(shape: tuple[int, ...], factor: int) -> tuple[int, ...]:
    check_integer(factor, "factor")
    if len(shape) != 4 or shape[1] % factor or shape[2] % factor:
        raise ValueError(
            f"images must be (n, height, width, channels) with sides divisible by {factor}; got shape {shape}"
        )
    return shape


def total_variation(images: jax.Array) -> jax.Array:
    """Anisotropic total variation: mean absolute difference of vertical and, added, of horizontal neighbours.

    Args:
        images: (m, height, width, channels), sides of two pixels at least.

    Returns:
        Array (m,); a mean over pixels, so that it does not grow with the size of the images.
    """
    vertical = jnp.mean(jnp.abs(images[:, 1:] - images[:, :-1]), axis=(1, 2, 3))
    return vertical + jnp.mean(jnp.abs(images[:, :, 1:] - images[:, :, :-1]), axis=(1, 2, 3))


def out_of_range(images: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Mean squared distance of the pixels from the range [low, high] of their channel.

    Args:
        images: (m, height, width, channels).
        low: (channels,).
        high: (channels,).

    Returns:
        Array (m,).
    """
    return jnp.mean((images - jnp.clip(images, low, high)) ** 2, axis=(1, 2, 3))


def _pixel_range(data: DeviceData) -> tuple[jax.Array, jax.Array]:
    """Least and greatest model input of each channel: what 0 and 255 become, or those of the data for floats."""
    raw, channels = data.raw, data.raw.shape[-1]
    if raw.dtype == jnp.uint8:
        ends = jnp.broadcast_to(jnp.asarray([[0.0], [255.0]]), (2, channels))
    else:
        ends = jnp.stack([raw.min(axis=(0, 1, 2)), raw.max(axis=(0, 1, 2))])
    low, high = data.preprocessing.apply(ends[:, None, None, :])[:, 0, 0]
    return low, high


class _State(NamedTuple):
    slots: ClassSlots
    pixel_range: tuple[jax.Array, jax.Array] | None  # of the variant "paper"


@checked
def bacon(
    model: Model,
    *,
    variant: str = "paper",
    weight: float = 0.8,
    likelihood_scale: float = 1.0,
    cross_entropy: float | None = None,
    batch_size: int = 256,
    formation: int = 1,
    augment: Augmentation | None = None,
    window: SnapshotWindow | None = None,
    free: str | Sequence[str] = ("inputs",),
) -> Objective:
    """BACON's objective for one model, summed over classes; means are weighted, features those of one random network.

    ``variant="paper"``: -log N(mean phi(u); mean phi(x), s^2 I) + lambda TV(u) + (1 - lambda) CLIP(u). A Gaussian
    likelihood, a prior of total variation and clipping, and lambda are stated in the abstract and figures. The formulae
    of the paper are not at hand: that the Gaussian is one of mean features with a fixed scale s, that TV is the
    anisotropic total variation of the images (``total_variation``), that CLIP is their squared deviation from the range
    of pixels (``out_of_range``), and that both are means over pixels and over the points of a class, is our reading.

    ``variant="released"``: what the code runs. With delta_d the difference of the mean features and
    sigma_d = exp(standard deviation of the real features),

        sum_d [log sigma_d + (delta_d / sigma_d)^2 / 2 + log(2 pi) / 2] + lambda sum_d |delta_d| / 2 + gamma a CE(u)

    Its "TV" term is that distance of mean features. Its CLIP term compares the means over all features of two softmax
    vectors, which are both one over their number: it is zero, and so is its gradient. a is the accuracy of the network
    in percent and CE the mean cross-entropy of the coreset. The code draws networks from a pool in training on the
    data, for which expert snapshots (``window``) stand in here; and it moves the coreset after each class.

    Args:
        model: a bound model with features and classes.
        variant: ``"paper"`` or ``"released"``.
        weight: lambda, from 0 to 1.
        likelihood_scale: s, of the variant ``"paper"``.
        cross_entropy: gamma; 0.5 by default for the released loss on expert snapshots and 0 otherwise, as the code
            gives networks that were not trained yet no say.
        batch_size: data of each class a step, without replacement, and data that the accuracy is measured on.
        formation: 2 if every stored image holds 2 x 2 images of half the size, which are decoded first (``decode``).
        augment: of both sides, one draw a class; none by default. The prior sees images as they are.
        window: take expert snapshots as networks, one a step; fresh random networks by default.
        free: leaves of the coreset to differentiate; targets have a gradient from the cross-entropy alone.

    Raises:
        ValueError: for arguments out of range or that do not suit the model.
    """
    scale = check_positive(likelihood_scale, "likelihood_scale")
    gamma = RELEASED_CROSS_ENTROPY if variant == "released" and window is not None else 0.0
    gamma = gamma if cross_entropy is None else float(cross_entropy)
    free = check_free(free)
    _check(model, variant, weight, gamma, batch_size, formation, window, free)

    def init(key: jax.Array, coreset: Rows, data: DeviceData) -> _State:
        slots = class_slots(coreset, model.num_classes)
        return _State(slots, _pixel_range(data) if variant == "paper" else None)

    def gradient(
        key: jax.Array, state: _State, coreset: Rows, data: DeviceData, snapshots: tuple[Params, ...]
    ) -> Gradient:
        network_key, batch_key, view_key, accuracy_key = jax.random.split(key, 4)
        params = model.init(network_key) if window is None else snapshots[0]
        indices, mask = class_batches(batch_key, data, model.num_classes, batch_size)
        percent = 100.0 * _accuracy(model, params, *data.sample(accuracy_key, batch_size)) if gamma else 0.0

        def loss_fn(
            points: Rows, item: Any, data: DeviceData, params: Params, pixel_range: Any, percent: Any
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
            chosen, present, k = item
            points = _decoded(points) if formation == 2 else points
            on_both_sides = jnp.any(present) & (jnp.sum(points.weights) > 0)
            x, _ = data.batch(chosen)
            real = jax.lax.stop_gradient(model.features(params, siamese(augment, k, x)))
            counted = present.astype(real.dtype)
            target = weighted_mean(real, counted)
            seen = siamese(augment, k, points.inputs)
            difference = weighted_mean(model.features(params, seen), points.weights) - target
            if pixel_range is not None:
                sigma = jnp.full_like(target, scale)
                variation = weighted_mean(total_variation(points.inputs), points.weights)
                clip = weighted_mean(out_of_range(points.inputs, *pixel_range), points.weights)
            else:
                spread = jnp.tensordot(counted, (real - target) ** 2, 1) / jnp.maximum(jnp.sum(counted) - 1, 1)
                sigma = jnp.exp(jnp.sqrt(spread))
                variation = 0.5 * jnp.sum(jnp.abs(difference))
                clip = jnp.zeros_like(variation)
            log_density = jnp.log(sigma) + 0.5 * (difference / sigma) ** 2 + 0.5 * math.log(2 * math.pi)
            parts = {"likelihood": jnp.sum(log_density), "variation": variation, "clip": clip}
            loss = parts["likelihood"] + weight * variation + (1 - weight) * clip
            if gamma:
                log_likelihood = model.log_likelihood(params, seen, points.targets)
                parts["cross_entropy"] = -weighted_mean(log_likelihood, points.weights)
                loss = loss + gamma * percent * parts["cross_entropy"]
            loss, parts = jax.tree.map(lambda leaf: jnp.where(on_both_sides, leaf, 0.0), (loss, parts))
            return loss, parts

        items = (indices, mask, jax.random.split(view_key, len(indices)))
        leaves, info = gradient_by_class(
            loss_fn, coreset, free, state.slots, items, data, params, state.pixel_range, percent, devices=data.devices
        )
        return leaves, state, info

    settings = {
        "variant": variant,
        "weight": weight,
        "likelihood_scale": likelihood_scale,
        "cross_entropy": gamma,
        "batch_size": batch_size,
        "formation": formation,
        "augment": None if augment is None else augment.strategy,
        "window": None if window is None else [window.first, window.last],
    }
    return Objective("bacon", model, init, gradient, window, settings, free, "kept by class")


def _decoded(points: Rows) -> Rows:
    """The four images of every stored one, each with its target and weight."""
    repeats = (4,) + (1,) * (points.targets.ndim - 1)
    return Rows(decode(points.inputs), jnp.tile(points.targets, repeats), jnp.tile(points.weights, 4))


def _accuracy(model: Model, params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    probabilities = model.function_probabilities(params, model.apply(params, x), x)
    return jnp.mean(jnp.argmax(probabilities, axis=-1) == y)


def _check(
    model: Model,
    variant: str,
    weight: float,
    gamma: float,
    batch_size: int,
    formation: int,
    window: SnapshotWindow | None,
    free: tuple[str, ...],
) -> None:
    """Refuse settings that are out of range or do not suit the model."""
    check_choice(variant, "variant", VARIANTS)
    check_integer(batch_size, "batch_size")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be from 0 to 1; got {weight}")
    if not 0 <= gamma < math.inf:
        raise ValueError(f"cross_entropy must not be negative; got {gamma}")
    if formation not in (1, 2):
        raise ValueError(f"formation must be 1 or 2; got {formation!r}")
    if window is not None and window.ahead is not None:
        raise ValueError(f"window must name one snapshot, without ahead; got {window}")
    if "targets" in free and not gamma:
        raise ValueError(f"free={free}: without cross_entropy there is no gradient in targets")
    require_features("bacon", model)
    if gamma and not model.has_function:
        raise ValueError(f"cross_entropy={gamma} needs function values; the program {model.name!r} has no site 'f'")
    shape = model.datum_shape
    if (variant == "paper" or formation == 2) and (len(shape) != 3 or min(shape[:2]) < 2):
        raise ValueError(f"variant='paper' and formation=2 need images (height, width, channels); inputs are {shape}")
    if formation == 2:
        _check_grid((1, *shape), formation)
