"""Greedy k-centres (Sener and Savarese 2018)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from pseudocoreset.subsets.by_features import ByFeatures

__all__ = ["KCentres"]


@dataclass(frozen=True, kw_only=True, eq=False)
class KCentres(ByFeatures):
    """Greedy k-centres (Sener and Savarese 2018): the next point is the datum farthest from all that are chosen.

    The first is the datum nearest the mean. The radius, the largest distance of a datum to its nearest centre, is at
    most twice the smallest that there is with as many centres (Gonzalez 1985). Its history has ``radius``. The key
    serves the random points that the choice is held against; nothing else is random.
    """

    name: ClassVar[str] = "k_centres"
    measure: ClassVar[str] = "radius"

    def pick(self, features: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        return _farthest_first(features, count)


@functools.partial(jax.jit, static_argnums=1)
def _farthest_first(features: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Indices (count,) in the order of choice, and the radius after each."""

    def pick(carry: tuple[jax.Array, jax.Array], _: None) -> Any:
        centre, nearest = carry
        nearest = jnp.minimum(nearest, jnp.sum((features - features[centre]) ** 2, axis=1))
        nearest = nearest.at[centre].set(-1.0)  # below that of a copy of it, which may be chosen, once each
        following = jnp.argmax(nearest)
        return (following, nearest), (centre, jnp.sqrt(jnp.maximum(nearest[following], 0.0)))

    first = jnp.argmin(jnp.sum((features - jnp.mean(features, axis=0)) ** 2, axis=1))
    begin = (first, jnp.full(len(features), jnp.inf, features.dtype))
    return jax.lax.scan(pick, begin, None, length=count)[1]
