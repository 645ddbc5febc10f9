"""Differentiable siamese augmentation of images (DSA; Zhao and Bilen 2021), as pure functions of a key.

One group of the strategy is drawn for a whole batch and applied with parameters drawn for each image, or with one
set of parameters for all (``shared=True``, the siamese form). ``color`` is brightness, saturation and contrast
in that order. Images that are not square are turned by angles between pixels; the reference code, which turns
coordinates from -1 to 1 on both axes, shears them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["DIGITS_STRATEGY", "FULL_STRATEGY", "Augmentation", "resolve_augmentation"]

FULL_STRATEGY = "color_crop_cutout_flip_scale_rotate"
DIGITS_STRATEGY = "color_crop_cutout_scale_rotate"
_UNFLIPPABLE = ("digits", "mnist", "svhn")

Draw = Callable[[int, float, float], jax.Array]
MOST_DRAWS = 3  # numbers that a group takes for an image


@dataclass(frozen=True)
class Augmentation:
    """A strategy: groups joined by underscores, out of color, crop, cutout, flip, scale, rotate.

    Attributes:
        strategy: for instance ``"color_crop_cutout_flip_scale_rotate"``.

    Raises:
        ValueError: for an unknown group.
    """

    strategy: str = FULL_STRATEGY

    def __post_init__(self) -> None:
        unknown = [group for group in self.groups if group not in _GROUPS]
        if unknown:
            raise ValueError(f"augment has unknown groups {unknown}; use some of {', '.join(_GROUPS)}, joined by '_'")

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups, in the order written."""
        return tuple(self.strategy.split("_"))

    def __call__(self, key: jax.Array, images: jax.Array, *, shared: bool = False) -> jax.Array:
        """Augment a batch.

        Args:
            key: one typed key.
            images: normalised images (n, height, width, channels).
            shared: one draw of the parameters for all images instead of one for each.

        Returns:
            Images of the same shape; differentiable in ``images``.
        """
        count = 1 if shared else images.shape[0]
        # All random numbers at once: each call of the generator takes longer to compile than all the rest of a group.
        numbers = jax.random.uniform(key, (1 + MOST_DRAWS * count,), images.dtype)
        unit = jnp.broadcast_to(numbers[1:].reshape(MOST_DRAWS, count), (MOST_DRAWS, images.shape[0]))

        def draw(place: int, low: float, high: float) -> jax.Array:
            """Uniform draws (n, 1, 1, 1); a group has them at the places 0, 1, 2."""
            return (low + (high - low) * unit[place])[:, None, None, None]

        branches = [lambda x, group=group: _GROUPS[group](x, draw) for group in self.groups]
        chosen = jnp.floor(len(branches) * numbers[0]).astype(jnp.int32)
        return jax.lax.switch(chosen, branches, images)


def resolve_augmentation(augment: Any, feature_shape: tuple[int, ...], data_name: str = "") -> Augmentation | None:
    """The augmentation that an ``augment`` argument means for a data set.

    Args:
        augment: ``"auto"`` (the full strategy for images of more than 8 pixels a side, without flips for digits; none
            otherwise), a strategy string, an ``Augmentation``, or None.
        feature_shape: shape of one input.
        data_name: name of the data set; digits are never flipped.

    Raises:
        ValueError: if images are wanted and the inputs are not images.
    """
    is_image = len(feature_shape) == 3
    if augment == "auto":
        if not is_image or min(feature_shape[:2]) <= 8:
            return None
        return Augmentation(DIGITS_STRATEGY if data_name.startswith(_UNFLIPPABLE) else FULL_STRATEGY)
    if augment is None:
        return None
    if not is_image:
        raise ValueError(
            f"augment={augment!r} needs images (height, width, channels); the inputs have shape {feature_shape}. "
            "Use augment=None"
        )
    if isinstance(augment, Augmentation):
        return augment
    if isinstance(augment, str):
        return Augmentation(augment)
    raise TypeError(f"augment must be 'auto', a strategy string, an Augmentation or None; got {augment!r}")


def _nearest(number: float) -> int:
    """The nearest whole number, a half upwards as in the reference (``round`` takes 2.5 down and 3.5 up)."""
    return math.floor(number + 0.5)


def _color(x: jax.Array, draw: Draw) -> jax.Array:
    x = x + draw(0, -0.5, 0.5)
    mean = x.mean(axis=3, keepdims=True)
    x = (x - mean) * draw(1, 0.0, 2.0) + mean
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    return (x - mean) * draw(2, 0.5, 1.5) + mean


def _flip(x: jax.Array, draw: Draw) -> jax.Array:
    return jnp.where(draw(0, 0.0, 1.0) < 0.5, x[:, :, ::-1, :], x)


def _crop(x: jax.Array, draw: Draw) -> jax.Array:
    """Shift by whole pixels, at most an eighth of the side; what comes in is zero."""
    _, height, width, _ = x.shape
    shifts = []
    for place, side in enumerate((height, width)):
        most = _nearest(0.125 * side)
        # The draw is uniform over the 2 most + 1 whole shifts.
        shifts.append(jnp.floor(draw(place, -float(most), most + 1.0))[:, 0, 0, 0].astype(jnp.int32))
    down, right = shifts
    rows = jnp.arange(height)[None, :] + down[:, None]
    columns = jnp.arange(width)[None, :] + right[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    image = jnp.arange(x.shape[0])[:, None, None]
    moved = x[image, jnp.clip(rows, 0, height - 1)[:, :, None], jnp.clip(columns, 0, width - 1)[:, None, :]]
    return jnp.where(inside[..., None], moved, 0.0)


def _cutout(x: jax.Array, draw: Draw) -> jax.Array:
    """Zero a rectangle of half the sides, clipped at the border."""
    _, height, width, _ = x.shape
    masks = []
    for place, side in enumerate((height, width)):
        size = _nearest(0.5 * side)
        centre = jnp.floor(draw(place, 0.0, float(side + (1 - size % 2)))[:, 0, 0, 0])
        first = jnp.clip(centre - size // 2, 0, side - 1)[:, None]
        last = jnp.clip(centre - size // 2 + size - 1, 0, side - 1)[:, None]
        position = jnp.arange(side)[None, :]
        masks.append((position >= first) & (position <= last))
    square = masks[0][:, :, None] & masks[1][:, None, :]
    return jnp.where(square[..., None], 0.0, x)


def _scale(x: jax.Array, draw: Draw) -> jax.Array:
    """Zoom each axis by its own factor in [1/1.2, 1.2]; a factor above one shrinks the picture."""
    ratio = 1.2
    sy = draw(0, 1 / ratio, ratio)[:, 0, 0, 0]
    sx = draw(1, 1 / ratio, ratio)[:, 0, 0, 0]
    zero = jnp.zeros_like(sx)
    return _affine(x, jnp.stack([jnp.stack([sx, zero], -1), jnp.stack([zero, sy], -1)], -2))


def _rotate(x: jax.Array, draw: Draw) -> jax.Array:
    """Rotate by an angle in [-15, 15] degrees."""
    angle = draw(0, -15.0, 15.0)[:, 0, 0, 0] * (math.pi / 180.0)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # Coordinates are in units of half a side, an angle is between pixels.
    aspect = max(x.shape[1] - 1, 1) / max(x.shape[2] - 1, 1)
    return _affine(x, jnp.stack([jnp.stack([cos, sin * aspect], -1), jnp.stack([-sin / aspect, cos], -1)], -2))


def _affine(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """Sample images at affinely moved grids: corners at +-1, bilinear, zero outside.

    Args:
        x: images (n, height, width, channels).
        matrix: (n, 2, 2), from output (x, y) coordinates in [-1, 1] to input ones.
    """
    n, height, width, _ = x.shape
    ys, xs = jnp.meshgrid(jnp.linspace(-1, 1, height), jnp.linspace(-1, 1, width), indexing="ij")
    grid = jnp.stack([xs, ys], -1).astype(x.dtype)
    source = jnp.einsum("nij,hwj->nhwi", matrix, grid)
    column = (source[..., 0] + 1) * (width - 1) / 2
    row = (source[..., 1] + 1) * (height - 1) / 2
    left, top = jnp.floor(column), jnp.floor(row)
    image = jnp.arange(n)[:, None, None]
    out = jnp.zeros_like(x)
    for corner_row, row_weight in ((top, 1 - (row - top)), (top + 1, row - top)):
        for corner_column, column_weight in ((left, 1 - (column - left)), (left + 1, column - left)):
            inside = (corner_row >= 0) & (corner_row < height) & (corner_column >= 0) & (corner_column < width)
            i = jnp.clip(corner_row, 0, height - 1).astype(jnp.int32)
            j = jnp.clip(corner_column, 0, width - 1).astype(jnp.int32)
            weight = jnp.where(inside, row_weight * column_weight, 0.0)
            out = out + x[image, i, j] * weight[..., None]
    return out


_GROUPS: dict[str, Callable[[jax.Array, Draw], jax.Array]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
