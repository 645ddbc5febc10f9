"""Arrays with a train and a test split, and the preprocessing that turns them into model inputs."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from pseudocoreset.arguments import checked_class
from pseudocoreset.data.coercion import as_inputs, as_numbers, as_several, column_names, row_of
from pseudocoreset.data.images import check_image_shape, check_image_values
from pseudocoreset.data.preprocessing import Preprocessing, are_same, channel_moments, fit_preprocessing
from pseudocoreset.data.sources.records import Inputs, StoredImages
from pseudocoreset.data.targets import (
    as_class_names,
    as_targets,
    check_all_classes,
    check_labels,
    encode_words,
    is_one_hot,
    remedy_for,
)
from pseudocoreset.layout import InputLayout, is_several

__all__ = ["Dataset", "Split"]


def _read_only(array: np.ndarray) -> np.ndarray:
    # A view, so that the array of the user stays writable.
    view = array.view()
    view.setflags(write=False)
    return view


def _taken(raw: Inputs, index: np.ndarray | slice) -> Inputs:
    """Some of the inputs, where they are."""
    return raw.select(index) if isinstance(raw, StoredImages) else raw[index]


@checked_class
@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Inputs as they are stored, their targets, and what turns them into model inputs.

    Args:
        raw: (n, *feature_shape) uint8, float32, or float64 where float32 would lose digits, read-only; or images on
            disk, which are read as it is indexed.
        y: (n,) int32 classes or (n, ...) float32 targets, read-only.
        preprocessing: turns `raw` into `x`.
        layout: of inputs of several kinds, which `raw` holds as one matrix; None for one array.

    Raises:
        ValueError: raw and y differ in length or have another dtype, have masked entries or others that are not finite,
            or there is no datum.
    """

    raw: Inputs
    y: np.ndarray
    preprocessing: Preprocessing
    layout: InputLayout | None = None

    def __post_init__(self) -> None:
        for name in ("raw", "y"):
            if not isinstance(getattr(self, name), StoredImages):
                object.__setattr__(self, name, as_numbers(getattr(self, name), name))
        if self.raw.dtype not in (np.uint8, np.float32, np.float64):
            raise ValueError(f"raw must be uint8 or float32 (or float64), got {self.raw.dtype}")
        if self.y.dtype not in (np.int32, np.float32):
            raise ValueError(f"y must be int32 or float32, got {self.y.dtype}")
        if self.raw.ndim < 2 or self.y.shape[:1] != self.raw.shape[:1]:
            raise ValueError(f"raw {self.raw.shape} must be (n, *feature_shape) and y {self.y.shape} (n,) or (n, ...)")
        if self.y.dtype == np.int32 and self.y.ndim != 1:
            raise ValueError(
                f"y holds classes, so it must be (n,), got {self.y.shape}; several real targets are floats"
            )
        if len(self.raw) == 0:
            raise ValueError(f"a split needs at least one datum, got raw of shape {self.raw.shape}")
        for name in ("raw", "y"):
            array = getattr(self, name)
            if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
                raise ValueError(f"{name} must be finite, but is not in row {row_of(~np.isfinite(array))}")
        if isinstance(self.raw, np.ndarray):
            object.__setattr__(self, "raw", _read_only(self.raw))
        object.__setattr__(self, "y", _read_only(self.y))

    @functools.cached_property
    def packed(self) -> np.ndarray:
        """(n, *feature_shape) float32 model inputs as the library keeps them, read-only, computed once, in memory."""
        return _read_only(self.preprocessing.apply_in_chunks(self.raw))

    @functools.cached_property
    def x(self) -> Any:
        """Model inputs as the program takes them: (n, *feature_shape) float32, or a dictionary or tuple of arrays."""
        return self.packed if self.layout is None else self.layout.unpack(self.packed)

    @property
    def num_data(self) -> int:
        """Number of data."""
        return len(self.raw)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return self.raw.shape[1:]

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the stored inputs."""
        return jax.ShapeDtypeStruct(self.raw.shape, self.raw.dtype)

    @property
    def is_stored(self) -> bool:
        """Whether the inputs are on disk and read as they are asked for."""
        return isinstance(self.raw, StoredImages)

    def in_memory(self) -> "Split":
        """The same split with its inputs in memory; itself if they are there."""
        return dataclasses.replace(self, raw=self.raw[:]) if self.is_stored else self

    def __len__(self) -> int:
        return len(self.raw)

    def subset(self, indices: ArrayLike) -> "Split":
        """Take some of the data.

        Args:
            indices: (k,) integers in [0, n), in the order wanted, or (n,) booleans; at least one datum.

        Returns:
            A split with copies of these data, or with what is stored left on disk.

        Raises:
            ValueError: out of range, not integers or booleans, or nothing left.
        """
        chosen = np.asarray(indices)
        if chosen.ndim != 1 or chosen.dtype.kind not in "biu":
            raise ValueError(f"indices must be (k,) integers or booleans, got {chosen.dtype} {chosen.shape}")
        if chosen.dtype.kind == "b":
            if len(chosen) != len(self):
                raise ValueError(f"indices has {len(chosen)} booleans for {len(self)} data")
            chosen = np.flatnonzero(chosen)
        if len(chosen) == 0:
            raise ValueError("indices must choose at least one datum")
        if chosen.min() < 0 or chosen.max() >= len(self):
            raise ValueError(f"indices must be in [0, {len(self)}), got {chosen.min()} to {chosen.max()}")
        return dataclasses.replace(self, raw=_taken(self.raw, chosen), y=self.y[chosen])

    def head(self, n: int) -> "Split":
        """Take the first n data, or all if there are fewer; n >= 1, otherwise ValueError."""
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        return dataclasses.replace(self, raw=_taken(self.raw, slice(n)), y=self.y[:n])

    def __repr__(self) -> str:
        kind = "classes" if self.y.dtype == np.int32 else "real targets"
        kind += "" if self.y.ndim == 1 else f" of shape {self.y.shape[1:]}"
        place = " on disk" if self.is_stored else ""
        return f"Split({len(self):,} x {self.feature_shape} {self.raw.dtype}{place}, {kind})"


@checked_class
@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test arrays, the preprocessing that makes model inputs of them, and class names.

    `Dataset.from_arrays` checks a user's arrays; `load_dataset` loads known datasets.

    Args:
        name: what it is called.
        train: what a posterior is conditioned on.
        test: held out, or None.
        class_names: one name a class, or None.
        preprocessing: the one of every split, fitted on train alone.
        num_classes: number of classes; None for regression and counts.
        validation: held out from train by `split_validation`, or None.

    Raises:
        ValueError: the splits do not fit each other.
    """

    name: str
    train: Split
    test: Split | None
    class_names: tuple[str, ...] | None
    preprocessing: Preprocessing
    num_classes: int | None
    validation: Split | None = None

    def __post_init__(self) -> None:
        for name in ("test", "validation"):
            split = getattr(self, name)
            if split is None:
                continue
            if not are_same(split.preprocessing.summary, self.train.preprocessing.summary):
                raise ValueError(
                    f"{name} has the preprocessing {split.preprocessing!r}, train {self.train.preprocessing!r}; a "
                    "model would see other inputs in the one than in the other"
                )
            if split.layout != self.train.layout:
                raise ValueError(f"{name} has other arrays in its inputs than train")
            if split.feature_shape != self.train.feature_shape:
                raise ValueError(f"{name} has data of shape {split.feature_shape}, train {self.train.feature_shape}")
            if split.raw.dtype != self.train.raw.dtype:
                raise ValueError(f"{name} has {split.raw.dtype} inputs, train has {self.train.raw.dtype}")
            if split.y.dtype != self.train.y.dtype:
                raise ValueError(f"{name} has {split.y.dtype} targets, train has {self.train.y.dtype}")
            if split.y.shape[1:] != self.train.y.shape[1:]:
                raise ValueError(f"{name} has targets of shape {split.y.shape[1:]}, train {self.train.y.shape[1:]}")
        if (self.num_classes is not None) != (self.train.y.dtype == np.int32):
            raise ValueError(f"num_classes is {self.num_classes} for targets of dtype {self.train.y.dtype}")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(f"class_names has {len(self.class_names)} names for {self.num_classes} classes")

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: ArrayLike | None = None,
        *,
        test: Any = None,
        name: str = "custom",
        class_names: Sequence[str] | None = None,
        normalize: bool = False,
        zca: bool = False,
    ) -> "Dataset":
        """Make a dataset of your own arrays: of numpy, jax, pandas, polars, lists, or anything with `__array__`.

        uint8 arrays of four or more axes are images: they stay uint8 and are scaled by 1/255. Everything else
        becomes float32 and is not scaled. Integer, boolean and text targets are classes; float targets are
        regression targets or counts. Arrays of the right dtype are not copied: do not change them afterwards.

        With `normalize`, values far from zero (timestamps, large identifiers) are centred in float64 before they are
        rounded to float32; without, a warning names the columns that rounding loses.

        Args:
            x: (n, *feature_shape) uint8 images (n, height, width, channels) or real features; or a dictionary or tuple
                of arrays (n, ...), for programs that take one: integers and booleans stay what they are.
            y: (n,) class labels 0 to num_classes - 1, each with at least one example; (n,) words, which become labels
                in the order of the alphabet, or of `class_names`, and give these their default; (n, ...) real targets;
                or None for programs that observe their inputs, whose targets are zeros that nobody reads.
            test: `(x, y)` held out, with the same feature shape, or None.
            name: what the dataset is called.
            class_names: one name a class; then there are that many classes, and whole floats in y are
                labels too.
            normalize: subtract the mean and divide by the deviation of every channel (trailing axis) of x; a
                channel that never varies, an intercept column for instance, stays as it is.
            zca: whiten, fitted on x (after normalising).

        Returns:
            The dataset.

        Raises:
            TypeError: an array holds no numbers, or `test` is no pair.
            ValueError: wrong rank or length, empty, masked, missing, NaN or infinite values, labels that are negative,
                fractional, one-hot or out of range, a class without a training example, a wrong number of class
                names, images with their channels first or of wide integers, or a test split that does not fit.
        """
        layout = None
        if is_several(x):
            if normalize or zca:
                raise ValueError("normalize and zca take one array x; scale the arrays of a dictionary yourself")
            x, layout = as_several(x, "x")
        raw = _inputs("x", x, normalize=normalize)
        names = as_class_names(class_names)
        targets, names = _targets(y, raw, names)
        num_classes = None
        if targets.dtype == np.int32:
            largest = int(targets.max())
            num_classes = largest + 1 if names is None else len(names)
            if largest >= num_classes:
                raise ValueError(f"class_names has {num_classes} names, but y has the label {largest}")
            check_all_classes(targets, num_classes, names)
        held_out = None
        if test is not None:
            if not isinstance(test, tuple | list) or len(test) != 2:
                raise TypeError(f"test must be a pair (x, y), got {type(test).__name__}")
            if layout is not None:
                test = (as_several(test[0], "test x", layout)[0], test[1])
            held_out = _inputs("test x", test[0], normalize=normalize)
            if raw.dtype != held_out.dtype and np.uint8 not in (raw.dtype, held_out.dtype):
                raw, held_out = raw.astype(np.float64), held_out.astype(np.float64)
            if column_names(x) != column_names(test[0]) and None not in (column_names(x), column_names(test[0])):
                raise ValueError(f"test x has the columns {column_names(test[0])}, x has {column_names(x)}")
        scale = 1.0 / 255.0 if raw.dtype == np.uint8 else 1.0
        mean, std = channel_moments(raw, scale) if normalize else (None, None)
        preprocessing = fit_preprocessing(raw, scale=scale, mean=mean, std=std, zca=zca)
        test_split = None
        if test is not None and held_out is not None:
            held_out_y = _held_out_targets(test[1], len(held_out), names, num_classes)
            test_split = Split(held_out, held_out_y, preprocessing, layout)
        return cls(name, Split(raw, targets, preprocessing, layout), test_split, names, preprocessing, num_classes)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return self.train.feature_shape

    def class_counts(self) -> np.ndarray:
        """Count the training examples of every class: (num_classes,) int64; ValueError for regression."""
        if self.num_classes is None:
            raise ValueError(f"{self.name} has real targets, no classes to count")
        return np.bincount(self.train.y, minlength=self.num_classes)

    def split_validation(self, fraction: float, key: jax.Array) -> "Dataset":
        """Move a random part of the training data to `validation`; of every class the same share.

        The preprocessing stays as it is. Both parts keep the order the data had.

        Args:
            fraction: share to move, in (0, 1); of a class of k examples round(fraction * k) move, at most k
                - 1.
            key: a key from `jax.random.key`; the same key moves the same data.

        Returns:
            A dataset with less train and with validation.

        Raises:
            ValueError: fraction out of range, nothing would move, or there is a validation split already.
        """
        if self.validation is not None:
            raise ValueError(f"{self.name} already has a validation split of {len(self.validation)} data")
        if not 0.0 < fraction < 1.0:
            raise ValueError(f"fraction must be in (0, 1), got {fraction}")
        num_data = len(self.train)
        order = np.asarray(jax.random.permutation(key, num_data))
        labels = self.train.y if self.num_classes is not None else np.zeros(num_data, np.int32)
        moved = np.zeros(num_data, bool)
        shuffled = labels[order]
        for label in np.unique(labels):
            members = order[shuffled == label]
            # Half up, not half to even, so that equal classes give equal shares.
            moved[members[: min(math.floor(fraction * len(members) + 0.5), len(members) - 1)]] = True
        if not moved.any():
            raise ValueError(f"fraction {fraction} of {num_data} training data moves nothing to validation")
        return dataclasses.replace(self, train=self.train.subset(~moved), validation=self.train.subset(moved))

    def __repr__(self) -> str:
        sizes = [f"{len(self.train):,} train{' on disk' if self.train.is_stored else ''}"]
        sizes += [f"{len(self.validation):,} validation"] if self.validation is not None else []
        sizes += [f"{len(self.test):,} test"] if self.test is not None else []
        targets = "real targets" if self.num_classes is None else f"{self.num_classes} classes"
        layout = self.train.layout
        stored = f"{self.feature_shape} {self.train.raw.dtype}" if layout is None else str(layout)
        return f"Dataset({self.name!r}: {', '.join(sizes)}; {stored}, {targets}\n  {self.preprocessing!r})"


def _inputs(name: str, x: ArrayLike, *, normalize: bool) -> np.ndarray:
    raw = as_inputs(x, name, keeps_losses=normalize, remedy="give normalize=True, which centres in float64")
    check_image_shape(name, raw.shape[1:], is_bytes=raw.dtype == np.uint8)
    if raw.ndim == 4 and raw.dtype != np.uint8:
        check_image_values(name, as_numbers(x, name), normalize=normalize)
    return raw


def _targets(
    y: ArrayLike | None, raw: np.ndarray, names: tuple[str, ...] | None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Training targets, and the names of their classes where there are any."""
    if y is None:
        return np.zeros(len(raw), np.float32), names
    targets = as_targets(y, "y", len(raw), classification=None if names is None else True, words=True)
    if targets.dtype.kind == "U":
        names = tuple(map(str, np.unique(targets))) if names is None else names
        return encode_words(targets, "y", names), names
    if is_one_hot(targets):
        raise ValueError("y is one-hot, a one and zeros in each row; give the labels, y.argmax(axis=1)")
    if targets.dtype == np.int32 and targets.ndim != 1:
        column = "give y[:, 0]" if targets.shape[1:] == (1,) else "several real targets or counts are floats"
        raise ValueError(f"y must have one axis (n,) for class labels, got shape {targets.shape}; {column}")
    if targets.dtype == np.int32 and targets.min() < 0:
        raise ValueError(
            f"y holds integers, so classes counted from 0, but has the label {targets.min()}; for regression or counts "
            f"give floats: y.astype('float32'){remedy_for(targets, None)}"
        )
    return targets, names


def _held_out_targets(
    y: ArrayLike, num_data: int, names: tuple[str, ...] | None, num_classes: int | None
) -> np.ndarray:
    """Targets of the kind that train has."""
    is_classes = num_classes is not None
    targets = as_targets(y, "test y", num_data, classification=is_classes, words=is_classes and names is not None)
    if targets.dtype.kind == "U":
        assert names is not None
        return encode_words(targets, "test y", names)
    return targets if num_classes is None else check_labels(targets, num_classes, "test y", "the training data")
