"""Free leaves of a coreset as unconstrained numbers for an optimiser, and back.

Inputs and real targets are free as they are, class probabilities through a softmax, weights by projection onto
non-negative numbers after each step (Manousakas et al. 2020).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pseudocoreset.objectives.base import CoresetArrays

__all__ = ["Free", "from_free", "project", "pull_back", "soften", "to_free"]

Free = dict[str, jax.Array]
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


def from_free(arrays: CoresetArrays, free: Free, is_soft: bool) -> CoresetArrays:
    """``arrays`` with the free leaves replaced; ``is_soft`` as in ``to_free``."""
    leaves = dict(free)
    if "targets" in leaves and is_soft:
        leaves["targets"] = jax.nn.softmax(leaves["targets"], axis=-1)
    return arrays._replace(**leaves)


def pull_back(arrays: CoresetArrays, free: Free, gradient: dict[str, jax.Array], is_soft: bool) -> Free:
    """Gradient in the free numbers, from that in the leaves; ``is_soft`` as in ``to_free``."""
    _, pull = jax.vjp(lambda f: {name: getattr(from_free(arrays, f, is_soft), name) for name in f}, free)
    return pull(gradient)[0]


def project(free: Free) -> Free:
    """Weights that a step made negative become zero."""
    return free | {"weights": jnp.maximum(free["weights"], 0.0)} if "weights" in free else free
