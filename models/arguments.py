"""What a program is given: its arguments as the user has them, and as the library keeps them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.layout import InputLayout, is_several
from pseudocoreset.models.structure import datum_shape, widened

__all__ = ["check_signature", "has_no_values", "integers_of", "layout_of", "length", "packed_struct", "widen"]

TARGET_NAMES = ("y", "ys", "obs", "target", "targets", "label", "labels", "response", "y_obs")


def widen(array: Any) -> Any:
    """An array with integers in full width."""
    dtype = jnp.result_type(array)
    return array if widened(dtype) == dtype else jnp.asarray(array).astype(widened(dtype))


def length(x: Any) -> int:
    """Number of data of inputs in either form."""
    return (next(iter(x.values())) if isinstance(x, dict) else x[0] if isinstance(x, tuple) else x).shape[0]


def layout_of(x: Any) -> InputLayout | None:
    """The layout of inputs of several kinds."""
    return InputLayout.of(x) if is_several(x) else getattr(x, "layout", None)


def integers_of(x: Any) -> InputLayout | None:
    """The layout of one array of integers; None for floats and bytes, which are pictures."""
    dtype = getattr(x, "dtype", None)
    if dtype is None or np.dtype(dtype).kind not in "iu" or np.dtype(dtype) == np.uint8:
        return None
    return InputLayout.of(x)


def packed_struct(layout: InputLayout | None, x: Any) -> jax.ShapeDtypeStruct:
    """One datum as the library keeps it."""
    if layout is None or getattr(x, "layout", None) == layout:
        return datum_shape(x, "x")
    if not is_several(x) and tuple(x.shape[1:]) == (layout.width,) and jnp.issubdtype(x.dtype, jnp.floating):
        return datum_shape(x, "x")
    given = InputLayout.of(x)
    wanted = [(leaf.name, leaf.shape) for leaf in layout.leaves]
    if given.kind != layout.kind or sorted((leaf.name, leaf.shape) for leaf in given.leaves) != sorted(wanted):
        raise ValueError(
            f"x has the arrays {[(leaf.name, leaf.shape) for leaf in given.leaves]}; this model was made for {wanted}"
        )
    return jax.ShapeDtypeStruct((layout.width,), jnp.result_type(float))


def has_no_values(x: Any) -> bool:
    """Whether there are shapes in the place of arrays."""
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(x))


def check_signature(program: Callable[..., Any]) -> None:
    """Refuse a program that needs more than x and y."""
    try:
        parameters = list(inspect.signature(program).parameters.values())
    except (TypeError, ValueError):
        return
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    names = [p.name for p in positional]
    beyond = [name for name in required if name not in names[:2]]
    late = [name for name in names[2:] if name.lower() in TARGET_NAMES]
    if len(names) > 1 and names[1].lower() in TARGET_NAMES:
        late = []
    if beyond or late:
        more = beyond or names[1 : names.index(late[0])]
        raise TypeError(
            f"program must take x and y; it takes {', '.join(names)}. Put {', '.join(more)} into x: give a dictionary "
            f"of arrays, x['{more[0]}'] in the program"
        )
    if len(names) > 1 and names[0].lower() in TARGET_NAMES and names[1].lower() not in TARGET_NAMES:
        raise TypeError(
            "program must take the inputs first and the targets second, program(x, y=None); it takes "
            f"{', '.join(names)}"
        )
    if len(names) < 2:
        raise TypeError(
            f"program must take two arguments, program(x, y=None); it takes {', '.join(names) or 'none'}. A program "
            "that observes its inputs leaves y alone"
        )
