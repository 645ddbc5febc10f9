"""What arrays in the shape of images look like: where the channels are, and how far the values go."""

from __future__ import annotations

import warnings

import numpy as np

__all__ = ["check_image_shape", "check_image_values", "is_channel_first"]

MOST_CHANNELS = 4
LEAST_SIDE = 8  # of a picture that is told by its shape
BRIGHTEST = 10.0  # floats beyond are no pixel values in [0, 1]


def is_channel_first(feature_shape: tuple[int, ...], *, is_bytes: bool = False) -> bool:
    """Whether one datum is an image (channels, height, width) beyond doubt: at most 4 channels, then a picture.

    Bytes are images of any proportions; of floats only squares are told from signals (1, length, channels).
    """
    if len(feature_shape) != 3:
        return False
    first, height, width = feature_shape
    is_picture = first <= MOST_CHANNELS < width and min(height, width) >= LEAST_SIDE
    return is_picture and (is_bytes or height == width)


def check_image_shape(name: str, feature_shape: tuple[int, ...], *, is_bytes: bool = False) -> None:
    """Raise a ValueError for images with their channels first."""
    if is_channel_first(feature_shape, is_bytes=is_bytes):
        raise ValueError(
            f"{name} has images of shape {feature_shape}, channels first, as torch keeps them; wanted are channels "
            f"last, (height, width, channels): give np.moveaxis({name.rpartition(' ')[2]}, 1, -1)"
        )


def check_image_values(name: str, array: np.ndarray, *, normalize: bool) -> None:
    """Refuse images of wide integers, and warn of images that go far beyond [0, 1], unless they are normalised.

    Args:
        name: how messages call them.
        array: (n, ...) as the user gave them.
        normalize: whether their channels are standardised, after which their range does not matter.

    Raises:
        ValueError: for integers of more than 8 bits with values beyond 255 in the shape of images.
    """
    looks_like_images = array.ndim == 4 and array.shape[-1] <= MOST_CHANNELS and min(array.shape[1:3]) >= LEAST_SIDE
    if array.dtype == np.uint8 or normalize or not looks_like_images:
        return
    low, high = float(array.min()), float(array.max())
    given = name.rpartition(" ")[2]
    if array.dtype.kind in "iu" and low >= 0 and high > 255:
        most = 65535 if array.dtype == np.uint16 else int(high)
        raise ValueError(
            f"{name} has the shape of images and dtype {array.dtype} with values up to {high:g}; networks want values "
            f"of order one: give ({given} / {most}).astype('float32'), uint8 images, which are scaled by 1/255, or "
            f"normalize=True. Counts for another model stay as they are with {given}.astype('float32')"
        )
    if low >= 0 and high > BRIGHTEST:
        # Beyond 255 bytes wrap, and fractions would be cut off.
        are_bytes = high <= 255 and (array.dtype.kind in "iu" or np.array_equal(array, np.round(array)))
        as_bytes = f"{given}.astype('uint8'), which is scaled by 1/255, " if are_bytes else ""
        warnings.warn(
            f"{name} looks like images with values from {low:g} to {high:g}, which stay as they are; networks want "
            f"values of order one: give {as_bytes}{given} / {high:g}, or normalize=True",
            stacklevel=3,
        )
