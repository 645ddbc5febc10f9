"""``Pseudocoreset``: a few weighted synthetic data, and everything needed to use them later."""

from __future__ import annotations

import hashlib
import os
import pathlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from pseudocoreset.arguments import checked, checked_class
from pseudocoreset.data.coercion import as_numbers, as_several
from pseudocoreset.data.levels import stratified
from pseudocoreset.data.preprocessing import Preprocessing
from pseudocoreset.files.schema import (
    COUNT,
    FLAG,
    POSITIVE_COUNT,
    RECORD,
    TEXT,
    VERSION,
    Field,
    check_record,
    fits_together,
    listing,
    maybe,
    optional,
)
from pseudocoreset.files.storage import (
    CorruptFileError,
    atomic_directory,
    read_arrays,
    read_json,
    verify,
    write_arrays,
    write_json,
)
from pseudocoreset.layout import InputLayout, is_several
from pseudocoreset.validation import check_choice, check_integer, check_key

if TYPE_CHECKING:
    from pseudocoreset.data import Dataset

__all__ = ["Pseudocoreset", "class_weights", "coreset_names", "load_coreset", "mass_note"]

SCHEMA = 2
SHIPPED = pathlib.Path(__file__).with_name("coresets")
MASSES = ("ones", "data")
RECORD_FIELDS = {
    "schema": VERSION,
    "num_data": COUNT,
    "class_names": maybe(listing(TEXT)),
    "preprocessing": RECORD,
    "metadata": RECORD,
    "holds_probabilities": optional(maybe(FLAG)),
}
METADATA_FIELDS: dict[str, Field] = {
    "steps": optional(maybe(COUNT)),
    "steps_done": optional(COUNT),
    "outcome": optional(TEXT),
    "images_per_class": optional(maybe(POSITIVE_COUNT)),
}


@checked_class
@dataclass(frozen=True, eq=False)
class Pseudocoreset:
    """Weighted synthetic data (u_j, y_j, w_j), j = 1..m.

    Its posterior is proportional to prior(theta) * prod_j p(y_j | u_j, theta) ** w_j. The sum of the weights, the
    *mass*, sets how concentrated that posterior is: n (``"data"``) is the scale of the full-data posterior, m
    (``"ones"``) the convention of the network papers.

    Attributes:
        inputs: (m, *feature_shape) float32, or a dictionary or tuple of arrays, as the program takes them: preprocessed
            already.
        targets: (m,) labels, (m, ...) real values, or (m, num_classes) class probabilities.
        weights: (m,) float32, non-negative.
        preprocessing: what turned stored data into model inputs; ``invert`` gives pictures. By default not known, and
            compared with that of no data.
        num_data: n, the size of the data set that this stands for.
        class_names: names of the classes, if there are classes.
        metadata: objective, hyperparameters, versions, key: JSON-able.
        holds_probabilities: whether targets (m, d) are class probabilities, not real values; None for yes where every
            row is non-negative and sums to one.
        layout: of inputs of several kinds; None for one array. With a layout ``inputs`` may be given as its matrix.
    """

    inputs: Any
    targets: Any
    weights: Any
    preprocessing: Preprocessing = field(default_factory=lambda: Preprocessing(is_known=False))
    num_data: int = 0
    class_names: tuple[str, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    holds_probabilities: bool | None = None
    layout: InputLayout | None = None

    def __post_init__(self) -> None:
        if is_several(self.inputs):
            matrix, layout = as_several(self.inputs, "inputs", self.layout)
            object.__setattr__(self, "inputs", matrix)
            object.__setattr__(self, "layout", layout)
        for name in ("inputs", "targets", "weights"):
            array = as_numbers(getattr(self, name), name)
            if array.ndim == 0:
                raise ValueError(f"{name} must have one entry a point, got a scalar")
            object.__setattr__(self, name, array)
        self._check()
        object.__setattr__(self, "packed", self.inputs)
        if self.layout is not None:
            object.__setattr__(self, "inputs", self.layout.unpack(self.inputs))

    def _check(self) -> None:
        if self.layout is not None and self.inputs.shape[1:] != (self.layout.width,):
            raise ValueError(f"inputs have shape {self.inputs.shape}; their layout wants (m, {self.layout.width})")
        if self.inputs.dtype.kind != "f":
            raise TypeError(
                f"inputs must be floating point, as the model sees them; got {self.inputs.dtype}: "
                "preprocessing.apply(inputs) makes model inputs of stored images"
            )
        m = len(self.inputs)
        if m == 0:
            raise ValueError("inputs is empty; a coreset has at least one point")
        if len(self.targets) != m or self.weights.shape != (m,):
            raise ValueError(
                f"inputs, targets and weights must agree in length; got {m}, {len(self.targets)} and weights of shape "
                f"{self.weights.shape}"
            )
        for name, array in (("inputs", self.inputs), ("targets", self.targets), ("weights", self.weights)):
            if not np.all(np.isfinite(array)):
                raise ValueError(f"{name} has {int(np.sum(~np.isfinite(array)))} values that are not finite")
        if np.any(self.weights < 0) or not np.any(self.weights > 0):
            raise ValueError("weights must be non-negative and not all zero")

    @classmethod
    def from_data(
        cls,
        data: Dataset,
        *,
        images_per_class: int | None = None,
        size: int | None = None,
        key: jax.Array,
        mass: str = "ones",
        stratify: str | None = None,
    ) -> Pseudocoreset:
        """A coreset of real data chosen at random: the usual starting point, and the baseline to beat.

        With ``images_per_class`` the weights carry the masses of the classes: those of class c sum to n_c at mass n,
        so that classes that are rare in the data stay rare. All are equal where all classes are.

        Args:
            data: the data set; the choice is made from its train split, without replacement.
            images_per_class: points of every class, ordered by class; for classes only.
            size: number of points in all, chosen uniformly; give this or ``images_per_class``.
            key: one typed key.
            mass: ``"ones"`` or ``"data"``, the sum of the weights m or n.
            stratify: an array of integers among the inputs, by name: every one of its levels has a point at least, more
                in proportion to its data, and the points of a level share its mass.

        Raises:
            ValueError: if both or neither of ``images_per_class`` and ``size`` are given, or there are fewer data.
        """
        check_key(key)
        check_choice(mass, "mass", MASSES)
        if stratify is None:
            indices = _choose(data, images_per_class, size, key)
            weights = class_weights(data, indices) if size is None else np.ones(len(indices), np.float32)
        else:
            if size is None:
                raise ValueError("stratify goes with size, the number of points in all")
            if images_per_class is not None:
                raise ValueError(f"give one of images_per_class and size; got {images_per_class} and {size}")
            indices, weights = stratified(data, stratify, check_integer(size, "size"), key)
        coreset = cls(
            inputs=np.asarray(data.preprocessing.apply(data.train.raw[indices]), np.float32),
            layout=data.train.layout,
            targets=np.asarray(data.train.y[indices]),
            weights=weights,
            preprocessing=data.preprocessing,
            num_data=data.train.num_data,
            class_names=data.class_names,
            metadata={"objective": "random", "data": data.name, "images_per_class": images_per_class},
            holds_probabilities=False if data.train.y.ndim == 2 else None,
        )
        return coreset.with_mass(mass)

    # (m, *feature_shape) inputs as the library keeps them: those of a dictionary or tuple in one matrix.
    packed: np.ndarray = field(init=False, repr=False)

    @property
    def size(self) -> int:
        """Number of points m."""
        return len(self.packed)

    @property
    def mass(self) -> float:
        """Sum of the weights."""
        return float(np.sum(self.weights, dtype=np.float64))

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of its inputs and targets: the same at every mass."""
        digest = hashlib.sha256()
        for array in (self.packed, self.targets):
            digest.update(f"{array.shape} {array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    @property
    def is_soft(self) -> bool:
        """Whether the targets are class probabilities (m, num_classes)."""
        if self.targets.ndim != 2:
            return False
        if self.holds_probabilities is not None:
            return self.holds_probabilities
        return bool(np.all(self.targets >= 0) and np.allclose(self.targets.sum(axis=1), 1, atol=1e-3))

    def with_mass(self, mass: str | float) -> Pseudocoreset:
        """The same points with weights rescaled to a total.

        Args:
            mass: ``"ones"`` (m), ``"data"`` (n), or a positive number.
        """
        if isinstance(mass, str):
            check_choice(mass, "mass", MASSES)
            if mass == "data" and self.num_data < 1:
                raise ValueError("mass='data' needs the size of the data set; this coreset does not know num_data")
            total = float(self.size if mass == "ones" else self.num_data)
        else:
            total = float(mass)
            if not 0 < total < np.inf:
                raise ValueError(f"mass must be 'ones', 'data' or a positive number; got {mass!r}")
        weights = self.weights * np.float32(total / self.mass)
        metadata = {**self.metadata, "mass": mass}
        if not np.isclose(total, self.mass):
            metadata.pop("verdict", None)  # it was that of another posterior
        return replace(self, weights=weights, metadata=metadata)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a directory: ``coreset.safetensors``, ``coreset.json``, ``manifest.json``; whole or not at all."""
        preprocessing = {f"preprocessing/{name}": a for name, a in self.preprocessing.arrays().items()}
        with atomic_directory(path) as folder:
            arrays = {"inputs": self.packed, "targets": self.targets, "weights": self.weights}
            write_arrays(folder / "coreset.safetensors", arrays | preprocessing)
            record = {
                # Versions that read schema 1 alone take all targets (m, d) for class probabilities.
                "schema": SCHEMA if self.layout is not None or (self.targets.ndim != 1 and not self.is_soft) else 1,
                "holds_probabilities": self.holds_probabilities,
                "num_data": self.num_data,
                "class_names": None if self.class_names is None else list(self.class_names),
                "preprocessing": self.preprocessing.metadata(),
                "layout": None if self.layout is None else self.layout.metadata(),
                "metadata": self.metadata,
            }
            write_json(folder / "coreset.json", record)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Pseudocoreset:
        """Read what ``save`` wrote, verified.

        Raises:
            FileNotFoundError: if there is nothing at ``path``.
            CorruptFileError: if a file is missing, truncated or altered.
            ValueError: if a newer version of this package wrote it.
        """
        folder = verify(path, "coreset.json", "coreset.safetensors")
        record = check_record(read_json(folder / "coreset.json"), {"schema": VERSION}, folder / "coreset.json")
        if record["schema"] > SCHEMA:
            raise ValueError(
                f"{path} has schema {record['schema']}, this version of pseudocoreset reads up to {SCHEMA}; upgrade it"
            )
        check_record(record, RECORD_FIELDS, folder / "coreset.json")
        check_record(record["metadata"], METADATA_FIELDS, f"{folder / 'coreset.json'}, metadata")
        arrays = read_arrays(folder / "coreset.safetensors")
        missing = {"inputs", "targets", "weights"} - arrays.keys()
        if missing:
            raise CorruptFileError(f"{path} lacks {', '.join(sorted(missing))}")
        prefix = "preprocessing/"
        parts = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
        with fits_together(folder):
            preprocessing = Preprocessing.from_parts(parts, record["preprocessing"])
            if "holds_probabilities" not in record and preprocessing.summary == {"scale": 1.0}:
                # Before that record existed, this was the default of coresets whose preprocessing nobody told.
                preprocessing = replace(preprocessing, is_known=False)
            return cls(
                inputs=arrays["inputs"],
                targets=arrays["targets"],
                weights=arrays["weights"],
                preprocessing=preprocessing,
                num_data=int(record["num_data"]),
                class_names=None if record["class_names"] is None else tuple(record["class_names"]),
                metadata=record["metadata"],
                holds_probabilities=record.get("holds_probabilities"),
                layout=None if record.get("layout") is None else InputLayout.from_metadata(record["layout"]),
            )

    def __repr__(self) -> str:
        shape = f"shape {'x'.join(map(str, self.packed.shape[1:]))}" if self.layout is None else str(self.layout)
        kind = "soft targets" if self.is_soft else "targets"
        return (
            f"Pseudocoreset({self.size} points of {shape}, {kind}, mass {self.mass:g} for {self.num_data} data, "
            f"objective {self.metadata.get('objective', 'unknown')!r})"
        )


def class_weights(data: Dataset, indices: np.ndarray) -> np.ndarray:
    """Weights of chosen data (m,), of sum m, that give every class its share of the data."""
    labels = np.asarray(data.train.y)
    members, chosen = np.bincount(labels), np.bincount(labels[indices], minlength=labels.max() + 1)
    own = labels[indices]
    present = members[chosen > 0].sum()
    return (members[own] * len(indices) / (chosen[own] * present)).astype(np.float32)


def mass_note(mass: float, num_data: int) -> str:
    """What to know of a mass far from that of the data; empty if it is near, or the data are not known."""
    if num_data < 1 or mass > num_data / 2:
        return ""
    return (
        f"mass {mass:.4g} stands for {num_data} data: the posterior is wider than the full-data one, as if there were "
        f"{mass:.4g} of them. coreset.with_mass('data') (the command's --mass data) gives it their scale"
    )


def coreset_names() -> tuple[str, ...]:
    """Names of the learned coresets that come with the package, for ``load_coreset``."""
    return tuple(sorted(path.parent.name for path in SHIPPED.glob("*/coreset.json")))


@checked
def load_coreset(name: str) -> Pseudocoreset:
    """A learned coreset that comes with the package: no data set and no training are needed to use it.

    ``metadata["card"]`` says what it was learned with, and how it scored by which protocol on which network.

    Args:
        name: one of ``coreset_names()``, such as ``"digits-fbpc-1"``: data, method, images a class.

    Raises:
        ValueError: for another name.
    """
    return Pseudocoreset.load(SHIPPED / check_choice(name, "name", coreset_names()))


def _choose(data: Dataset, images_per_class: int | None, size: int | None, key: jax.Array) -> np.ndarray:
    if (images_per_class is None) == (size is None):
        raise ValueError(f"give one of images_per_class and size; got {images_per_class} and {size}")
    if size is not None:
        check_integer(size, "size")
        if size > data.train.num_data:
            raise ValueError(f"size={size} is more than the {data.train.num_data} training data")
        return np.asarray(jax.random.choice(key, data.train.num_data, (size,), replace=False))
    count = check_integer(images_per_class, "images_per_class")
    if data.num_classes is None:
        raise ValueError("images_per_class needs classes; these targets are real numbers, give size instead")
    chosen = []
    for label, k in enumerate(jax.random.split(key, data.num_classes)):
        members = np.flatnonzero(data.train.y == label)
        if len(members) < count:
            raise ValueError(f"images_per_class={count}, but class {label} has {len(members)} training data")
        chosen.append(members[np.asarray(jax.random.permutation(k, len(members)))[:count]])
    return np.concatenate(chosen)
