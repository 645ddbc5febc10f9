"""Free leaves of a coreset as unconstrained numbers for an optimiser, and back.

Inputs and real targets are free as they are, class probabilities through a softmax, weights by projection onto
non-negative numbers after each step (Manousakas et al. 2020), and where the objective does not determine their mass
onto those of the mass that they began with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.objectives.base import MASSES
from pseudocoreset.rows import Rows

if TYPE_CHECKING:
    from pseudocoreset.data import Split

__all__ = [
    "Box",
    "Free",
    "KeptMass",
    "from_free",
    "hold_still",
    "kept_mass",
    "project",
    "pull_back",
    "soften",
    "to_free",
]

Free = dict[str, jax.Array]


class Box(NamedTuple):
    """Where learned inputs may go: which columns move, and between which bounds."""

    moves: jax.Array  # of one input, booleans
    lower: jax.Array
    upper: jax.Array

    @classmethod
    def of(cls, split: Split, start: jax.Array, fixed: Sequence[str | int], *, is_bounded: bool) -> Box | None:
        """The box of a training split; None where every column may go anywhere.

        Integers and booleans never move: they are chosen with the points. A column whose data are all positive stays at
        or above half of its least datum, so that an exposure or a standard error never reaches zero, and one that is
        nowhere negative at or above zero; where the start has a value below that, the least value of the start is the
        bound, so that the box alone moves no start. Of columns that are nowhere positive the same holds from above.

        Args:
            split: the training data.
            start: inputs of the points of the start, packed (m, *shape).
            fixed: names of arrays, or of columns of one array by their positions, to hold as they are.
            is_bounded: whether columns keep their sides.

        Raises:
            TypeError, ValueError: for unknown names.
        """
        shape = split.feature_shape
        layout = split.layout
        moves = _columns_but(fixed, shape) if layout is None else layout.is_learned(tuple(map(str, fixed)))
        if not is_bounded:
            return None if moves.all() else cls(*map(jnp.asarray, (moves, -np.inf, np.inf)))
        least, most = split.packed.min(axis=0), split.packed.max(axis=0)
        first, last = np.min(start, axis=0), np.max(start, axis=0)
        lower = np.where(least >= 0, np.minimum(least / 2, first), -np.inf)
        upper = np.where(most <= 0, np.maximum(most / 2, last), np.inf)
        if moves.all() and np.isinf(lower).all() and np.isinf(upper).all():
            return None
        return cls(jnp.asarray(moves), *(jnp.asarray(bound, split.packed.dtype) for bound in (lower, upper)))

    def slope(self, gradient: jax.Array) -> jax.Array:
        """The gradient, zero where nothing moves."""
        return jnp.where(self.moves, gradient, 0.0)

    def enter(self, inputs: jax.Array, before: jax.Array) -> jax.Array:
        """Inputs after a step, back in the box."""
        return jnp.where(self.moves, jnp.clip(inputs, self.lower, self.upper), before)


def hold_still(inputs: jax.Array, before: jax.Array, gradient: jax.Array) -> jax.Array:
    """Inputs after a step, but as they were in the columns of a table (m, p) where no point has a gradient.

    The likelihood does not see such a column move, as one that holds codes of groups: what an optimiser does by itself,
    as weight decay, would make other groups of it.
    """
    return jnp.where(jnp.any(gradient != 0, axis=0), inputs, before) if inputs.ndim == 2 else inputs


def _columns_but(fixed: Sequence[str | int], shape: tuple[int, ...]) -> np.ndarray:
    """All columns but some, by position."""
    moves = np.ones(shape, bool)
    for column in fixed:
        if not isinstance(column, int | np.integer) or len(shape) != 1:
            raise TypeError(
                "fixed must name arrays of a dictionary of inputs, or columns of inputs (n, p) by position; got "
                f"{column!r}"
            )
        if not -shape[0] <= column < shape[0]:
            raise ValueError(f"fixed names column {column}; the inputs have {shape[0]}")
        moves[column] = False
    return moves


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


def kept_mass(arrays: Rows, masses: Iterable[str]) -> KeptMass | None:
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


def to_free(arrays: Rows, names: tuple[str, ...], is_soft: bool) -> Free:
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


def from_free(arrays: Rows, free: Free, is_soft: bool, kept: KeptMass | None = None) -> Rows:
    """``arrays`` with the free leaves replaced; ``is_soft`` as in ``to_free``."""
    leaves = dict(free)
    if "weights" in leaves and kept is not None:
        leaves["weights"] = kept.impose(leaves["weights"])
    if "targets" in leaves and is_soft:
        leaves["targets"] = jax.nn.softmax(leaves["targets"], axis=-1)
    return arrays._replace(**leaves)


def pull_back(
    arrays: Rows, free: Free, gradient: dict[str, jax.Array], is_soft: bool, kept: KeptMass | None = None
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
