"""A user's arrays as numpy arrays of real numbers: one reading of them, for every door.

What arrives may be a numpy array of any dtype and byte order, a masked array, a list, a frame or series of pandas or
polars, a jax array, or anything with ``__array__``. What has no one meaning as real numbers is refused with a remedy.
"""

from __future__ import annotations

import contextlib
import decimal
import numbers
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pseudocoreset.layout import EXACT_INTEGERS, InputLayout, is_several

__all__ = [
    "as_inputs",
    "as_numbers",
    "as_several",
    "as_weights",
    "column_losses",
    "default_dtype",
    "row_of",
    "warn_of_rounding",
]

RELATIVE_ERROR = 1e-3  # of rounding, in standard deviations of the column, beyond which it is said
DOUBLE_ERROR = 1e-12  # relative spread below which differences of doubles are rounding of their own
COLLAPSED_SHARE = 0.05  # of distinct values that become equal
COLLAPSE_ROWS = 1000  # among which equal values are counted: with millions, some doubles share a float by chance
BLOCK_ELEMENTS = 2**22
SMALL_FLOATS = ("bfloat16", "float8", "float6", "float4", "int4", "uint4", "int2", "uint2")
MISSING_TYPES = ("NAType", "NaTType", "NoneType")


def default_dtype() -> type[np.floating[Any]]:
    """The floating point type that JAX computes in: float32, or float64 where x64 is enabled."""
    return np.float64 if jax.dtypes.canonicalize_dtype(np.float64) == np.float64 else np.float32


def as_numbers(value: Any, name: str, *, words: bool = False) -> np.ndarray:
    """Read real numbers from whatever holds them.

    Args:
        value: array, masked array, list, frame, series, or anything with ``__array__``.
        name: how errors call it.
        words: whether text is returned as it is, an array of ``str``, instead of refused.

    Returns:
        Booleans, integers or floats in the byte order of the machine, float64 at most.

    Raises:
        TypeError: for what holds no real numbers: text, categories, dates, complex numbers, records, objects.
        ValueError: for masked or missing entries, naming the first row of them.
    """
    if hasattr(value, "columns") and hasattr(value, "to_numpy"):
        return _from_frame(value, name, words)
    if hasattr(value, "toarray") and hasattr(value, "nnz"):
        raise TypeError(f"{name} is a sparse matrix; give {name}.toarray()")
    if str(getattr(value, "dtype", "")) in ("category", "Categorical", "Enum") and not words:
        raise TypeError(f"{name} holds categories; turn them into integer codes or one column a category")
    _refuse_missing(value, name)
    array = _as_array(_unmasked(value, name), name)
    kind, type_name = array.dtype.kind, array.dtype.name
    if kind in "UST" or (kind == "O" and array.size and all(isinstance(entry, str) for entry in array.ravel())):
        if words:
            return np.asarray(array.astype(object), dtype=str)
        raise TypeError(
            f"{name} must hold real numbers, got text ({str(array.ravel()[0])!r}, ...); turn numbers written as text "
            f"into numbers ({name}.astype(float)), and categories into integer codes or one column a category"
        )
    if kind == "O":
        return _from_objects(array, name)
    if kind == "V" and type_name.startswith(SMALL_FLOATS):
        return array.astype(np.float32)
    if kind in "mM":
        raise TypeError(
            f"{name} must hold real numbers, got dates or times ({type_name}); give numbers, for instance "
            f"({name} - {name}.min()) / np.timedelta64(1, 's')"
        )
    if kind == "c":
        raise TypeError(f"{name} must hold real numbers, got {type_name}; give .real and .imag as columns")
    if kind == "V":
        raise TypeError(
            f"{name} must hold real numbers, got records of dtype {array.dtype}; "
            "numpy.lib.recfunctions.structured_to_unstructured makes an array of them"
        )
    if kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    if kind == "f" and array.dtype.itemsize > 8:
        return array.astype(np.float64)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def as_several(value: Any, name: str, layout: InputLayout | None = None) -> tuple[np.ndarray, InputLayout]:
    """Read a dictionary or tuple of arrays (n, ...) into one matrix.

    Args:
        value: the arrays, each as ``as_numbers`` takes it. Integers up to 2^24 and booleans are kept exactly.
        name: how errors call them.
        layout: that they must have; None for their own.

    Returns:
        The matrix (n, width) of floats, and its layout.

    Raises:
        TypeError, ValueError: naming the array.
    """
    if not is_several(value):
        raise ValueError(f"{name} must be a dictionary or tuple of arrays, as in training; got {type(value).__name__}")
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    arrays: dict[Any, np.ndarray] = {}
    for key, leaf in items:
        where = f"{name}[{key!r}]"
        array = as_numbers(leaf, where)
        if array.ndim == 0 or array.size == 0:
            raise ValueError(f"{where} must be (n, ...) with at least one row, got shape {array.shape}")
        if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
            raise ValueError(f"{where} must be finite, but is not in row {row_of(~np.isfinite(array))}")
        arrays[key] = array
    whole = arrays if isinstance(value, Mapping) else tuple(arrays.values())
    found = InputLayout.of(whole, name) if layout is None else layout
    # Splits and coresets are float32, whatever JAX computes in.
    packed = found.pack(whole, name, EXACT_INTEGERS)
    for leaf in found.leaves:
        if leaf.is_float:
            key = int(leaf.name) if found.kind == "tuple" else leaf.name
            losses = column_losses(arrays[key].reshape(len(packed), -1), default_dtype())
            warn_of_rounding(f"{name}[{key!r}]", losses, None, "")
    return packed, found


def as_inputs(
    value: Any,
    name: str,
    *,
    dtype: type[np.floating[Any]] = np.float32,
    keeps_losses: bool = False,
    remedy: str = "",
) -> np.ndarray:
    """Read inputs (n, *feature_shape).

    Args:
        value: see ``as_numbers``.
        name: how errors call it.
        dtype: of everything but images of bytes.
        keeps_losses: return float64 where rounding to ``dtype`` would lose a column, instead of warning.
        remedy: what the warning recommends besides subtracting an offset.

    Returns:
        uint8 for arrays of bytes with four axes and more, ``dtype`` for everything else.

    Raises:
        TypeError: not real numbers.
        ValueError: empty, of rank 0 or 1, masked or missing entries, NaN, infinite, or beyond ``dtype``.
    """
    columns = column_names(value)
    array = as_numbers(value, name)
    if array.ndim < 2:
        raise ValueError(
            f"{name} must be (n, *feature_shape), got shape {array.shape}"
            + (f"; for one feature give {name}[:, None]" if array.ndim == 1 else "")
            + ("; integers that index something go into a dictionary, {'group': x}" if array.dtype.kind in "iu" else "")
        )
    if array.size == 0:
        raise ValueError(f"{name} is empty: shape {array.shape}, and there must be at least one row of one feature")
    if array.dtype == np.uint8 and array.ndim == 3:
        raise ValueError(
            f"{name} has shape {array.shape} and dtype uint8; images are (n, height, width, channels): "
            f"for one channel give {name}[..., None]"
        )
    if array.dtype == np.uint8 and array.ndim > 3:
        return array
    rounded = _rounded(array, name, dtype)
    losses = column_losses(array, dtype)
    if losses and keeps_losses:
        return array.astype(np.float64, copy=False)
    warn_of_rounding(name, losses, columns, remedy)
    return rounded


def as_weights(value: Any, name: str, num_data: int) -> np.ndarray:
    """Read weights (n,): floats, finite, not negative, not all zero; anything else is a TypeError or ValueError."""
    array = as_numbers(value, name)
    if array.shape != (num_data,):
        raise ValueError(f"{name} have shape {array.shape}; wanted ({num_data},)")
    weights: np.ndarray[Any, np.dtype[Any]] = array.astype(np.float64 if array.dtype == np.float64 else np.float32)
    if not np.all(np.isfinite(weights)) or np.any(weights < 0):
        row = int(np.argmin(np.isfinite(weights) & (weights >= 0)))
        raise ValueError(f"{name} must be finite and not negative; row {row} has {array[row]}")
    if not np.any(weights > 0):
        raise ValueError(f"{name}: all weights are zero; the posterior would be the prior")
    return weights


def row_of(bad: np.ndarray) -> int:
    """The first row (leading index) where anything is true."""
    return int(np.argmax(bad.reshape(len(bad), -1).any(axis=1)))


def column_names(value: Any) -> Sequence[str] | None:
    """Names of the columns of a frame; None for anything else."""
    return (
        [str(column) for column in value.columns] if hasattr(value, "to_numpy") and hasattr(value, "columns") else None
    )


def column_losses(array: np.ndarray, dtype: type[np.floating[Any]] = np.float32) -> dict[int, tuple[float, float]]:
    """Columns (entries of the trailing axis) that rounding to ``dtype`` loses.

    A column is lost where rounding moves a value by more than 1e-3 of the standard deviation, or makes more than a
    twentieth of the distinct values among 1,000 rows equal.

    Args:
        array: (n, ...) numbers; the trailing axis is the column.
        dtype: what is rounded to.

    Returns:
        Of each lost column the largest rounding error and the standard deviation.
    """
    exact = array.dtype.kind == "b" or array.dtype.itemsize <= 2 or array.dtype == np.float32
    if exact or dtype == np.float64 or (array.dtype.kind in "iu" and _magnitude(array) <= 2**24):
        return {}
    flat = array.reshape(-1, array.shape[-1])
    largest, deviation = _spread(flat)
    varies = deviation > DOUBLE_ERROR * largest
    picked = flat[np.linspace(0, len(flat) - 1, min(COLLAPSE_ROWS, len(flat))).astype(int)].astype(np.float64)
    ordered = np.sort(picked, axis=0)
    apart = np.diff(ordered, axis=0) > DOUBLE_ERROR * largest
    with np.errstate(over="ignore"):
        equal = apart & (np.diff(ordered.astype(dtype), axis=0) == 0)
    collapses = equal.sum(axis=0) > COLLAPSED_SHARE * np.maximum(apart.sum(axis=0), 1)
    # Half a unit in the last place is the most that rounding can move; most columns need no look at their values.
    bound = largest * np.finfo(dtype).eps / 2 + float(np.finfo(dtype).smallest_subnormal)
    losses = {}
    for column in np.flatnonzero(varies & (collapses | (bound > RELATIVE_ERROR * deviation))):
        values = flat[:, column].astype(np.float64)
        error = float(np.max(np.abs(values - values.astype(dtype))))
        if collapses[column] or error > RELATIVE_ERROR * deviation[column]:
            losses[int(column)] = error, float(deviation[column])
    return losses


def warn_of_rounding(
    name: str, losses: dict[int, tuple[float, float]], columns: Sequence[str] | None = None, remedy: str = ""
) -> None:
    """Warn of the columns that ``column_losses`` found."""
    if not losses:
        return
    shown = "; ".join(
        f"column {column if columns is None else repr(columns[column])}, which it moves by up to {error:.3g} where the "
        f"standard deviation is {deviation:.3g}"
        for column, (error, deviation) in list(losses.items())[:3]
    )
    more = f"; and {len(losses) - 3} more" if len(losses) > 3 else ""
    warnings.warn(
        f"{name}: rounding to float32 loses the digits that values differ in ({shown}{more}). Subtract "
        f"an offset in float64 first ({name} - {name}.mean(axis=0)){', or ' if remedy else ''}{remedy}",
        stacklevel=4,
    )


def _unmasked(value: Any, name: str) -> Any:
    """What holds masked entries is refused; a mask without any is dropped."""
    if isinstance(value, list | tuple) and any(np.ma.isMaskedArray(entry) for entry in value):
        value = np.ma.stack([np.ma.asarray(entry) for entry in value])
    mask = np.ma.getmaskarray(value) if np.ma.isMaskedArray(value) else getattr(value, "mask", None)
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != np.shape(value):
        return value
    if mask.any():
        rows = mask.reshape(len(mask), -1).any(axis=1) if mask.ndim else mask[None]
        variable = name.rpartition(" ")[2]
        reduced = "" if mask.ndim < 2 else f".any(axis={1 if mask.ndim == 2 else tuple(range(1, mask.ndim))})"
        raise ValueError(
            f"{name} has masked entries in {int(rows.sum())} rows, the first of them row {int(np.argmax(rows))}; drop "
            f"these rows from all arrays (keep = ~np.ma.getmaskarray({variable}){reduced}), or fill them "
            f"({variable}.filled(value))"
        )
    return np.ma.getdata(value) if np.ma.isMaskedArray(value) else np.asarray(value)


def _refuse_missing(series: Any, name: str) -> None:
    """Missing entries of a series of pandas or polars, which an array would show as NaN."""
    find = getattr(series, "isna", None) or getattr(series, "is_null", None)
    if not callable(find):
        return
    missing = np.asarray(find())
    if missing.shape == np.shape(series) and missing.any():
        _raise_missing(name, np.flatnonzero(missing)[0])


def _raise_missing(name: str, row: int) -> None:
    raise ValueError(f"{name} has a missing value in row {row}; drop such rows from all arrays, or fill them")


def _as_array(value: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except jax.errors.JAXTypeError:
        raise
    except Exception as error:
        raise TypeError(f"{name} cannot be read as an array: {error}") from error


def _from_frame(frame: Any, name: str, words: bool) -> np.ndarray:
    """A frame, column by column: one array of them would make objects of columns of different kinds."""
    names = column_names(frame) or []
    if not names or not len(frame):
        return np.zeros((len(frame), len(names)))
    columns = []
    for place, column in enumerate(names):
        series = frame.iloc[:, place] if hasattr(frame, "iloc") else frame[:, place]
        columns.append(as_numbers(series, f"{name} column {column!r}", words=words))
    if any(column.dtype.kind == "U" for column in columns) and not all(column.dtype.kind == "U" for column in columns):
        raise TypeError(f"{name} has columns of text beside columns of numbers")
    return np.stack(columns, axis=1)


def _is_missing(entry: Any) -> bool:
    return type(entry).__name__ in MISSING_TYPES or (isinstance(entry, float | np.floating) and bool(entry != entry))


def _from_objects(array: np.ndarray, name: str) -> np.ndarray:
    """Objects that are numbers, as numbers."""
    if array.ndim == 0:
        raise TypeError(f"{name} must be an array of real numbers, got {type(array.item()).__name__}")
    accepted = numbers.Real | np.bool_ | decimal.Decimal
    kinds = {type(entry) for entry in array.ravel()}
    if not all(issubclass(kind, accepted) for kind in kinds):
        _refuse_objects(array, name, accepted)
    if kinds and all(issubclass(kind, bool | np.bool_) for kind in kinds):
        return array.astype(bool)
    if kinds and all(issubclass(kind, numbers.Integral | np.bool_) for kind in kinds):
        with contextlib.suppress(OverflowError):
            return array.astype(np.int64)
    return array.astype(np.float64)


def _refuse_objects(array: np.ndarray, name: str, accepted: Any) -> None:
    """Name the first entry that is missing, or the first that is no number."""
    for index, entry in np.ndenumerate(array):
        if _is_missing(entry):
            _raise_missing(name, index[0])
    index, entry = next(item for item in np.ndenumerate(array) if not isinstance(item[1], accepted))
    place = "" if len(index) == 1 else f", column {', '.join(map(str, index[1:]))}"
    shown = "an array" if hasattr(entry, "shape") or isinstance(entry, list | tuple) else repr(entry)
    raise TypeError(
        f"{name} must hold real numbers, got {shown} in row {index[0]}{place}; turn categories into integer codes or "
        "one column a category, and give rows of one length"
    )


def _rounded(array: np.ndarray, name: str, dtype: type[np.floating[Any]]) -> np.ndarray:
    """The array in ``dtype``, where it must be finite."""
    with np.errstate(over="ignore"):
        values = array.astype(dtype, copy=False)
    finite = np.isfinite(values)
    if not finite.all():
        where = tuple(map(int, np.argwhere(~finite)[0]))
        raise ValueError(
            f"{name} must be finite in {np.dtype(dtype).name}, got {array[where]} at index {where}, "
            f"and {int((~finite).sum())} such values in all"
        )
    return values


def _magnitude(array: np.ndarray) -> int:
    return max(abs(int(array.min())), abs(int(array.max())))


def _spread(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each column the largest size and the standard deviation, block by block."""
    origin = flat[0].astype(np.float64)
    block = max(1, BLOCK_ELEMENTS // flat.shape[1])
    largest, first, second = np.zeros_like(origin), np.zeros_like(origin), np.zeros_like(origin)
    for start in range(0, len(flat), block):
        values = flat[start : start + block].astype(np.float64)
        largest = np.maximum(largest, np.abs(values).max(axis=0))
        values -= origin
        first += values.sum(axis=0)
        second += np.square(values).sum(axis=0)
    mean = first / len(flat)
    return largest, np.sqrt(np.maximum(second / len(flat) - mean**2, 0.0))
