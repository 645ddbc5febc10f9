"""Free leaves of a coreset as unconstrained numbers for an optimiser, and back.

Inputs and real targets are free as they are, class probabilities through a softmax, weights by projection onto
non-negative numbers after each step (Manousakas et al. 2020), and where the objective does not determine their mass
onto those of the mass that they began with.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pseudocoreset.objectives.base import MASSES, CoresetArrays

__all__ = ["Free", "KeptMass", "from_free", "kept_mass", "project", "pull_back", "soften", "to_free"]

Free = dict[str, jax.Array]


class KeptMass(NamedTuple):
    """The masses that learned weights keep: one in all, or one of each class."""

    groups: jax.Array  # (m,) int32, of every point
    totals: jax.Array  # (number of groups,)

    def sums(self, weights: jax.Array) -> jax.Array:
        """The mass of each group."""
        return jnp.zeros_like(self.totals).at[self.groups].add(weights)

    def impose(self, weights: jax.Array) -> jax.Array:
        """The weights, scaled so that each group has its mass; a group without weight stays without."""
        sums = self.sums(weights)
        return weights * jnp.where(sums > 0, self.totals / jnp.where(sums > 0, sums, 1.0), 0.0)[self.groups]

    def is_imposed(self, weights: jax.Array) -> jax.Array:
        """Whether every group that has a mass has weight left."""
        return jnp.all((self.sums(weights) > 0) | (self.totals == 0))


def kept_mass(arrays: CoresetArrays, masses: Iterable[str]) -> KeptMass | None:
    """What to keep of the weights at the start, None for nothing.

    Args:
        arrays: the coreset at the start.
        masses: ``Objective.mass`` of every objective; what one of them does not determine is kept.
    """
    strictest = max(masses, key=MASSES.index)
    if strictest == "learned":
        return None
    groups, count = jnp.zeros(len(arrays.weights), jnp.int32), 1
    if strictest == "kept by class":
        labels = arrays.targets if arrays.targets.ndim == 1 else jnp.argmax(arrays.targets, axis=1)
        groups, count = labels.astype(jnp.int32), int(labels.max()) + 1
    kept = KeptMass(groups, jnp.zeros(count, arrays.weights.dtype))
    return kept._replace(totals=kept.sums(arrays.weights))


LABEL_PROBABILITY = 0.9  # a softmax at 0 or 1 has no gradient


def soften(targets: jax.Array, num_classes: int | None) -> jax.Array:
    """Labels (m,) as class probabilities (m, num_classes), 0.9 on the label; anything else as it is."""
    if num_classes is None or targets.ndim == 2:
        return targets
    rest = (1 - LABEL_PROBABILITY) / (num_classes - 1)
    hot = jax.nn.one_hot(targets, num_classes)
    return hot * LABEL_PROBABILITY + (1 - hot) * rest


def to_free(arrays: CoresetArrays, names: tuple[str, ...], is_soft: bool) -> Free:
    """What an optimiser acts on.

    Args:
        arrays: of the coreset; free class targets must be probabilities already (``soften``).
        names: of the free leaves.
        is_soft: whether free targets are class probabilities.
    """
    free = {name: getattr(arrays, name) for name in names}
    if "targets" in free and is_soft:
        free["targets"] = jnp.log(jnp.clip(arrays.targets, 1e-6))
    return free


def from_free(arrays: CoresetArrays, free: Free, is_soft: bool, kept: KeptMass | None = None) -> CoresetArrays:
    """``arrays`` with the free leaves replaced; ``is_soft`` as in ``to_free``."""
    leaves = dict(free)
    if "weights" in leaves and kept is not None:
        leaves["weights"] = kept.impose(leaves["weights"])
    if "targets" in leaves and is_soft:
        leaves["targets"] = jax.nn.softmax(leaves["targets"], axis=-1)
    return arrays._replace(**leaves)


def pull_back(
    arrays: CoresetArrays, free: Free, gradient: dict[str, jax.Array], is_soft: bool, kept: KeptMass | None = None
) -> Free:
    """Gradient in the free numbers, from that in the leaves; ``is_soft`` as in ``to_free``."""
    _, pull = jax.vjp(lambda f: {name: getattr(from_free(arrays, f, is_soft, kept), name) for name in f}, free)
    return pull(gradient)[0]


def project(free: Free, kept: KeptMass | None = None) -> Free:
    """Weights that a step made negative become zero, and the others share the mass that is kept."""
    if "weights" not in free:
        return free
    weights = jnp.maximum(free["weights"], 0.0)
    return free | {"weights": weights if kept is None else kept.impose(weights)}
