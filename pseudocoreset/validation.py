"""Checks of arguments that several front doors share; all run before anything is compiled."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["check_choice", "check_integer", "check_key", "check_positive", "key_record", "uses_x64"]


def check_key(key: Any, argument: str = "key") -> jax.Array:
    """One typed JAX key, or an error that names the remedy.

    Raises:
        TypeError: for an integer or a raw ``uint32`` key.
        ValueError: for a batch of keys.
    """
    if not isinstance(key, jax.Array) or not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        given = f"an array of dtype {key.dtype}" if hasattr(key, "dtype") else f"{type(key).__name__} {key!r}"
        raise TypeError(
            f"{argument} must be a typed key, jax.random.key(seed) (or jax.random.wrap_key_data for a raw key); "
            f"got {given}"
        )
    if key.shape:
        raise ValueError(f"{argument} must be one key; got a batch of shape {key.shape}, take one with {argument}[i]")
    return key


def key_record(key: jax.Array) -> Any:
    """What identifies a key in the settings of a run: its numbers, and its implementation where it is not JAX's own."""
    numbers = np.asarray(jax.random.key_data(key)).tolist()
    implementation = str(jax.random.key_impl(key))
    return numbers if implementation == "threefry2x32" else {"implementation": implementation, "data": numbers}


def uses_x64() -> bool:
    """Whether JAX computes in double precision here."""
    return jnp.result_type(float) == jnp.float64


def check_integer(value: Any, argument: str, minimum: int = 1) -> int:
    """An integer of at least ``minimum``."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{argument} must be an integer; got {type(value).__name__} {value!r}")
    if int(value) < minimum:
        raise ValueError(f"{argument} must be at least {minimum}; got {int(value)}")
    return int(value)


def check_positive(value: Any, argument: str) -> float:
    """A finite number above zero."""
    number = float(value)
    if not 0.0 < number < float("inf"):
        raise ValueError(f"{argument} must be a positive number; got {value!r}")
    return number


def check_choice(value: Any, argument: str, choices: Iterable[str]) -> str:
    """One of a few names."""
    names = tuple(choices)
    if value not in names:
        raise ValueError(f"{argument}={value!r} is unknown; use one of {', '.join(map(repr, names))}")
    return value
