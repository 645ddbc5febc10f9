"""Inputs of several kinds: a dictionary or tuple of arrays that share their first axis, kept as one matrix.

Inside the library the inputs of n data are one array of floats. ``InputLayout`` says which of its columns are which
array of the user, and of what type: a program gets back the arrays that its user gave, integers as integers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["InputLayout", "Leaf", "is_several"]

EXACT_INTEGERS = 2**24  # a float32 holds every integer up to here
KINDS = ("dict", "tuple", "array")


def is_several(x: Any) -> bool:
    """Whether inputs are a dictionary or a tuple of arrays rather than one array."""
    return isinstance(x, Mapping | tuple)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array among the inputs.

    Attributes:
        name: its key, or its position in a tuple.
        shape: of one datum.
        dtype: what the program sees: ``"float"``, ``"int"`` or ``"bool"``, of the width that JAX has.
        start: its first column.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int

    @property
    def width(self) -> int:
        """Number of columns."""
        return math.prod(self.shape)

    @property
    def columns(self) -> slice:
        """Its columns."""
        return slice(self.start, self.start + self.width)

    @property
    def is_float(self) -> bool:
        """Whether it holds floats, which can be learned; integers and booleans can only be chosen."""
        return self.dtype == "float"

    @property
    def seen_dtype(self) -> Any:
        """The type that the program sees."""
        return np.dtype(bool) if self.dtype == "bool" else jnp.result_type({"float": float, "int": int}[self.dtype])


@dataclasses.dataclass(frozen=True)
class InputLayout:
    """How the arrays of a dictionary, a tuple, or one array of integers lie in a matrix (n, width).

    Attributes:
        kind: ``"dict"``, ``"tuple"`` or ``"array"``.
        leaves: the arrays, in the order of their columns.

    Example:
        >>> layout = InputLayout.of({"z": np.zeros((4, 2), np.float32), "group": np.array([0, 1, 1, 2])})
        >>> layout.width, [leaf.name for leaf in layout.leaves if not leaf.is_float]
        (3, ['group'])
    """

    kind: str
    leaves: tuple[Leaf, ...]

    @classmethod
    def of(cls, x: Any, argument: str = "x") -> InputLayout:
        """The layout of inputs, which are arrays or their shapes.

        Args:
            x: a dictionary with names as keys, a tuple, or one array, of arrays (n, ...).
            argument: how errors call them.

        Raises:
            TypeError: if a key is not a string, or a value has neither shape nor numbers.
            ValueError: if there is no array, or they differ in length.
        """
        if isinstance(x, Mapping):
            # In the order of their names, so that dictionaries of one content have one layout.
            kind, items = "dict", sorted(x.items(), key=lambda item: str(item[0]))
        elif isinstance(x, tuple):
            kind, items = "tuple", [(str(i), leaf) for i, leaf in enumerate(x)]
        else:
            kind, items = "array", [("x", x)]
        if not items:
            raise ValueError(f"{argument} is empty; it needs at least one array (n, ...)")
        leaves: list[Leaf] = []
        lengths: dict[str, int] = {}
        for name, value in items:
            if not isinstance(name, str):
                raise TypeError(f"{argument}: keys must be strings; got {name!r}")
            leaf = value if hasattr(value, "shape") and hasattr(value, "dtype") else np.asarray(value)
            if len(leaf.shape) < 1:
                raise ValueError(f"{argument}[{name!r}] must have a leading axis over data; got a scalar")
            lengths[name] = leaf.shape[0]
            start = leaves[-1].columns.stop if leaves else 0
            leaves.append(Leaf(name, tuple(leaf.shape[1:]), _seen_dtype(leaf.dtype, f"{argument}[{name!r}]"), start))
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{argument}: its arrays must have one length; got {lengths}")
        return cls(kind, tuple(leaves))

    @property
    def width(self) -> int:
        """Number of columns of the matrix."""
        return self.leaves[-1].columns.stop

    def structs(self, n: int) -> Any:
        """The shapes and types of n data, in the form of the user."""
        return self._assembled([jax.ShapeDtypeStruct((n, *leaf.shape), leaf.seen_dtype) for leaf in self.leaves])

    def pack(self, x: Any, argument: str = "x", most: int | None = None) -> np.ndarray:
        """The matrix (n, width) of inputs in the form of the user, float32 (float64 where JAX has it).

        Args:
            x: the inputs.
            argument: how errors call them.
            most: the largest integer that may be among them; None for what the matrix holds exactly.

        Raises:
            ValueError: if they have other names or shapes, integers beyond ``most``, or other values than 0 and 1 for
                booleans.
        """
        arrays = [np.asarray(leaf) for leaf in self._items(x, argument)]
        dtype = jnp.result_type(float)
        packed = np.empty((len(arrays[0]), self.width), dtype)
        most = most or (EXACT_INTEGERS if dtype == np.float32 else 2**53)
        for leaf, array in zip(self.leaves, arrays, strict=True):
            where = argument if self.kind == "array" else f"{argument}[{leaf.name!r}]"
            if array.shape[1:] != leaf.shape or len(array) != len(packed):
                raise ValueError(f"{where} has shape {array.shape}; wanted {(len(packed), *leaf.shape)}")
            if not leaf.is_float:
                if array.dtype.kind == "f" and not np.array_equal(array, np.round(array)):
                    raise ValueError(f"{where} must hold integers, as in the data that the model was bound to")
                if array.size and (array.min() < -most or array.max() > most):
                    raise ValueError(
                        f"{where} has integers beyond {most}, which are not kept exactly; number categories from 0, "
                        "np.unique(values, return_inverse=True)[1], or give measurements as floats"
                    )
            if leaf.dtype == "bool" and not np.all((array == 0) | (array == 1)):
                raise ValueError(f"{where} must hold booleans, or 0 and 1, as in the data that came first")
            packed[:, leaf.columns] = array.reshape(len(array), leaf.width)
        return packed

    def traced(self, x: Any, argument: str = "x") -> jax.Array:
        """``pack`` of arrays that may be traced by JAX; their values are not looked at."""
        arrays = [jnp.asarray(leaf) for leaf in self._items(x, argument)]
        dtype = jnp.result_type(float)
        return jnp.concatenate(
            [a.astype(dtype).reshape(a.shape[0], leaf.width) for leaf, a in zip(self.leaves, arrays, strict=True)],
            axis=1,
        )

    def unpack(self, packed: Any) -> Any:
        """Inputs in the form of the user, of a matrix (n, width) of NumPy's or JAX's; floats keep its type."""
        library = np if isinstance(packed, np.ndarray) else jnp
        arrays = []
        for leaf in self.leaves:
            columns = packed[:, leaf.columns].reshape(packed.shape[0], *leaf.shape)
            if not leaf.is_float:
                columns = library.round(columns).astype(leaf.seen_dtype)
            arrays.append(columns)
        return self._assembled(arrays)

    def by_name(self, x: Any) -> dict[str, Any]:
        """The arrays of inputs in the form of the user, by their names."""
        return dict(zip((leaf.name for leaf in self.leaves), self._items(x, "x"), strict=True))

    def is_learned(self, fixed: tuple[str, ...] = ()) -> np.ndarray:
        """Which columns (width,) an optimiser may move: those of floats that are not named in ``fixed``."""
        self.check_names(fixed)
        moved = np.zeros(self.width, bool)
        for leaf in self.leaves:
            moved[leaf.columns] = leaf.is_float and leaf.name not in fixed
        return moved

    def check_names(self, names: tuple[str, ...], argument: str = "fixed") -> None:
        """Refuse names that no array has."""
        known = [leaf.name for leaf in self.leaves]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"{argument} names {unknown}; the inputs are {known}")

    def metadata(self) -> dict[str, Any]:
        """JSON-able; ``from_metadata`` reads it."""
        leaves = [[leaf.name, list(leaf.shape), leaf.dtype] for leaf in self.leaves]
        return {"kind": self.kind, "leaves": leaves}

    @classmethod
    def from_metadata(cls, record: Mapping[str, Any]) -> InputLayout:
        """The layout that ``metadata`` describes."""
        leaves: list[Leaf] = []
        # In the stored order, which is that of the columns: by name the position "10" would come before "2".
        for name, shape, dtype in record["leaves"]:
            start = leaves[-1].columns.stop if leaves else 0
            leaves.append(Leaf(str(name), tuple(map(int, shape)), _seen_dtype(np.dtype(dtype), repr(name)), start))
        if not leaves or record["kind"] not in KINDS:
            raise ValueError(f"a layout must be of kind {', '.join(KINDS)} with at least one array; got {dict(record)}")
        return cls(record["kind"], tuple(leaves))

    def __str__(self) -> str:
        return ", ".join(f"{leaf.name} {leaf.shape} {leaf.dtype}" for leaf in self.leaves)

    def _items(self, x: Any, argument: str) -> list[Any]:
        if self.kind == "dict":
            names = [leaf.name for leaf in self.leaves]
            if not isinstance(x, Mapping) or set(x) != set(names):
                given = sorted(map(str, x)) if isinstance(x, Mapping) else type(x).__name__
                raise ValueError(f"{argument} must be a dictionary of the arrays {names}; got {given}")
            return [x[name] for name in names]
        if self.kind == "tuple":
            if not isinstance(x, tuple) or len(x) != len(self.leaves):
                given = f"{len(x)} arrays" if isinstance(x, tuple) else type(x).__name__
                raise ValueError(f"{argument} must be a tuple of {len(self.leaves)} arrays; got {given}")
            return list(x)
        if is_several(x):
            raise ValueError(f"{argument} must be one array, as in the data that the model was bound to")
        return [x]

    def _assembled(self, arrays: list[Any]) -> Any:
        if self.kind == "dict":
            return {leaf.name: array for leaf, array in zip(self.leaves, arrays, strict=True)}
        return tuple(arrays) if self.kind == "tuple" else arrays[0]


def _seen_dtype(dtype: Any, argument: str) -> str:
    """The type that a program sees."""
    kind = np.dtype(dtype).kind
    if kind == "b":
        return "bool"
    if kind in "iu":
        return "int"
    if kind == "f" or jnp.issubdtype(dtype, jnp.floating):
        return "float"
    raise TypeError(f"{argument} must hold numbers; got dtype {dtype}")
