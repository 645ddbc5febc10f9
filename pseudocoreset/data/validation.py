"""Checks of a user's arrays, made once at the boundary."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["check_all_classes", "check_classes", "check_inputs", "check_targets"]


def check_inputs(name: str, x: ArrayLike) -> np.ndarray:
    """Check inputs and bring them to the dtype they are stored in.

    Args:
        name: what errors call them.
        x: (n, *feature_shape): uint8 images (n, height, width, channels), or real features of rank 2 and
            more.

    Returns:
        uint8 for images, float32 for everything else.

    Raises:
        TypeError: not numbers.
        ValueError: empty, wrong rank, NaN, infinite, or beyond float32.
    """
    array = np.asarray(x)
    if not (array.dtype.kind in "biuf" or array.dtype.name == "bfloat16"):
        raise TypeError(f"{name} must be an array of real numbers, got dtype {array.dtype}")
    if array.ndim < 2:
        raise ValueError(
            f"{name} must be (n, *feature_shape), got shape {array.shape}"
            + (f"; for one feature give {name}[:, None]" if array.ndim == 1 else "")
        )
    if array.size == 0:
        raise ValueError(f"{name} is empty: shape {array.shape}")
    if array.dtype == np.uint8 and array.ndim == 3:
        raise ValueError(
            f"{name} has shape {array.shape} and dtype uint8; images are (n, height, width, channels): "
            f"for one channel give {name}[..., None]"
        )
    if array.dtype == np.uint8 and array.ndim > 3:
        return array
    with np.errstate(over="ignore"):
        values = array.astype(np.float32, copy=False)
    finite = np.isfinite(values)
    if not finite.all():
        where = np.argwhere(~finite)[0]
        raise ValueError(
            f"{name} must be finite in float32, got {array[tuple(where)]} at index {tuple(map(int, where))}, "
            f"and {int((~finite).sum())} such values in all"
        )
    return values


def check_targets(name: str, y: ArrayLike, num_data: int, *, classification: bool | None = None) -> np.ndarray:
    """Check targets; integers mean classes, floats mean regression or counts.

    Args:
        name: what errors call them.
        y: (n,).
        num_data: n, the length of the inputs.
        classification: what they must be; None lets the dtype decide.

    Returns:
        (n,) int32 for classes, float32 otherwise.

    Raises:
        TypeError: not numbers.
        ValueError: wrong rank or length, NaN, infinite; for classes: negative or not whole numbers.
    """
    array = np.asarray(y)
    if not (array.dtype.kind in "biuf" or array.dtype.name == "bfloat16"):
        raise TypeError(f"{name} must be an array of numbers, got dtype {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name} must have one axis (n,), got shape {array.shape}")
    if len(array) != num_data:
        raise ValueError(f"{name} has {len(array)} entries for {num_data} inputs")
    with np.errstate(over="ignore"):
        floats = array.astype(np.float32)
    finite = np.isfinite(floats)
    if not finite.all():
        where = int(np.argmin(finite))
        raise ValueError(f"{name} must be finite in float32, got {array[where]} at index {where}")
    integral = array.dtype.kind in "biu"
    if classification is None:
        classification = integral
    if not classification:
        return floats
    if not integral and not np.all(array == np.floor(array)):
        where = int(np.argmax(array != np.floor(array)))
        raise ValueError(f"{name} must hold class labels 0, 1, ..., got {array[where]} at index {where}")
    if array.min() < 0 or array.max() > np.iinfo(np.int32).max:
        extreme = array.min() if array.min() < 0 else array.max()
        raise ValueError(
            f"{name} holds integers, so classes counted from 0, but has the label {extreme}; "
            f"for regression or counts give floats: {name}.astype('float32')"
        )
    return array.astype(np.int32)


def check_classes(name: str, labels: np.ndarray, num_classes: int) -> None:
    """Raise a ValueError unless every label is below num_classes."""
    largest = int(labels.max())
    if largest >= num_classes:
        raise ValueError(f"{name} has the label {largest}; the {num_classes} classes are 0 to {num_classes - 1}")


def check_all_classes(labels: np.ndarray, num_classes: int, class_names: Sequence[str] | None) -> None:
    """Raise a ValueError that names the classes without a training example."""
    present = np.unique(labels)
    if len(present) == num_classes:
        return
    # The first gaps only: a stray label of a billion must not allocate a billion booleans.
    missing = np.setdiff1d(np.arange(min(num_classes, len(present) + 5)), present)[:5]
    shown = ", ".join(f"{label} ({class_names[label]})" if class_names else str(label) for label in missing)
    raise ValueError(
        f"y has no training example of {num_classes - len(present)} of the {num_classes} classes "
        f"(0 to {num_classes - 1}), among them class {shown}; labels count from 0 without gaps, "
        "and counts or regression targets are given as floats"
    )
