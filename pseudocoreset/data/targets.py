"""Targets: class labels, words, real values; and what a model with so many classes can take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pseudocoreset.data.coercion import as_numbers, column_losses, row_of, warn_of_rounding

__all__ = [
    "as_class_names",
    "as_targets",
    "check_all_classes",
    "check_labels",
    "encode_words",
    "is_one_hot",
    "remedy_for",
]

CODES = "names, y = np.unique(y, return_inverse=True)"


def as_class_names(class_names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Names of classes as a tuple of different strings.

    Raises:
        TypeError: if they are no strings.
        ValueError: if two are the same.
    """
    if class_names is None:
        return None
    names = tuple(class_names)
    if isinstance(class_names, str) or not names or not all(isinstance(entry, str) for entry in names):
        raise TypeError(f"class_names must be strings, one a class, got {class_names!r}")
    if len(set(names)) != len(names):
        raise ValueError(f"class_names must differ from each other, got {names}")
    return names


def encode_words(words: np.ndarray, name: str, class_names: Sequence[str]) -> np.ndarray:
    """Words (n,) as their places among the names of the classes, int32; an unknown word is a ValueError."""
    places = {word: place for place, word in enumerate(class_names)}
    unknown = np.flatnonzero([word not in places for word in words])
    if len(unknown):
        shown = ", ".join(map(repr, list(class_names)[:10])) + (", ..." if len(class_names) > 10 else "")
        raise ValueError(
            f"{name} has the label {str(words[unknown[0]])!r} in row {unknown[0]}, which is none of the classes {shown}"
        )
    return np.array([places[word] for word in words], np.int32)


def as_targets(
    value: Any,
    name: str,
    num_data: int,
    *,
    classification: bool | None = None,
    words: bool = False,
    dtype: type[np.floating[Any]] = np.float32,
    remedy: str = "",
) -> np.ndarray:
    """Read targets: integers and booleans mean classes, floats mean real targets or counts.

    Args:
        value: (n, ...); see ``as_numbers``.
        name: how errors call them.
        num_data: n, the length of the inputs.
        classification: whether they must be labels; None lets the dtype decide.
        words: whether text is returned as it is.
        dtype: of real targets.
        remedy: what a warning of lost digits recommends besides subtracting an offset.

    Returns:
        int32 for integers and booleans, ``dtype`` for floats, ``str`` for words.

    Raises:
        TypeError: not numbers.
        ValueError: wrong length, masked or missing entries, NaN, infinite, labels that are no whole numbers.
    """
    try:
        array = as_numbers(value, name, words=True)
    except TypeError as error:
        raise TypeError(str(error).replace("must hold real numbers", "must be an array of numbers")) from error
    if array.ndim == 0:
        raise ValueError(f"{name} must have one entry a datum, got a scalar")
    if len(array) != num_data:
        raise ValueError(f"{name} has {len(array)} entries for {num_data} inputs")
    if array.dtype.kind == "U":
        return _as_words(array, name, is_welcome=words)
    if array.dtype.kind in "biu":
        return _as_integers(array, name) if classification is not False else array.astype(dtype)
    with np.errstate(over="ignore"):
        floats = array.astype(dtype)
    finite = np.isfinite(floats)
    if not finite.all():
        row = row_of(~finite)
        raise ValueError(f"{name} must be finite in {np.dtype(dtype).name}, got {array[row]} at index {row}")
    if classification:
        if array.ndim != 1 or not np.all(array == np.floor(array)):
            row = row_of(array != np.floor(array))
            raise ValueError(f"{name} must hold class labels 0, 1, ..., got {array[row]} at index {row}")
        return _as_integers(array.astype(np.int64), name)
    columns = array.reshape(num_data, -1)
    warn_of_rounding(name, column_losses(columns, dtype) if columns.shape[1] else {}, None, remedy)
    return floats


def _as_words(array: np.ndarray, name: str, *, is_welcome: bool) -> np.ndarray:
    if is_welcome and array.ndim == 1 and not _all_numbers(array):
        return array
    if _all_numbers(array):
        advice = f"{name}.astype(float), or .astype(int) for class labels"
    elif array.ndim > 1:
        advice = f"one word a datum, shape (n,); it has shape {array.shape}"
    else:
        advice = f"integer codes: {CODES}"
    raise TypeError(f"{name} must be an array of numbers, got text ({str(array.ravel()[0])!r}, ...); give {advice}")


def _all_numbers(words: np.ndarray) -> bool:
    try:
        words.astype(float)
    except ValueError:
        return False
    return True


def _as_integers(array: np.ndarray, name: str) -> np.ndarray:
    limits = np.iinfo(np.int32)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        raise ValueError(
            f"{name} has the integer {array.max() if array.max() > limits.max else array.min()}, beyond int32; real "
            f"targets and counts are floats: {name}.astype('float64')"
        )
    return array.astype(np.int32)


def is_one_hot(array: np.ndarray) -> bool:
    """Whether targets (n, k), k > 1, hold a one and zeros in each row."""
    return (
        array.ndim == 2
        and array.shape[1] > 1
        and bool(np.all((array == 0) | (array == 1)) and np.all(array.sum(1) == 1))
    )


def remedy_for(labels: np.ndarray, num_classes: int | None) -> str:
    """What to do with labels that do not count from 0 to K - 1, as a clause; empty where nothing suggests itself."""
    present = np.unique(labels)
    if len(present) == 2 and present[0] == -1 and present[1] == 1:
        return "; for labels -1 and 1 give (y > 0).astype(int)"
    count = len(present) if num_classes is None else num_classes
    if present[0] == 1 and present[-1] <= count:
        return "; they seem to count from 1: give y - 1"
    if len(present) <= count and np.all(present == np.round(present)):
        return f"; integer codes without gaps are made by {CODES}"
    return ""


def check_labels(labels: np.ndarray, num_classes: int, name: str, owner: str = "the model") -> np.ndarray:
    """Labels that a model of ``num_classes`` classes can score, as int32.

    Raises:
        ValueError: for fractions, labels below 0 or of more classes than there are, naming both numbers and a remedy.
    """
    bad = ((labels < 0) | (labels >= num_classes) | (labels != np.round(labels))).reshape(len(labels), -1).any(axis=1)
    if not bad.any():
        return labels.astype(np.int32)
    row = int(np.argmax(bad))
    more = remedy_for(labels, num_classes)
    if not more and labels.min() >= 0 and np.all(labels == np.round(labels)):
        more = f", so there are {int(labels.max()) + 1} classes where {owner} has {num_classes}"
    raise ValueError(
        f"{name}: labels must be integers from 0 to {num_classes - 1}, the {num_classes} classes of {owner}; row {row} "
        f"has {labels[row]}{more}"
    )


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
        f"and counts or regression targets are given as floats{remedy_for(labels, None)}"
    )
