"""Subsets chosen by features, class by class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.compute.progress import progress_bar
from pseudocoreset.coreset import class_weights
from pseudocoreset.data import Dataset
from pseudocoreset.methods.base import Callback, Problem, is_table
from pseudocoreset.methods.optimizers import column_scales
from pseudocoreset.subsets.base import Choice, Subset, quota_of, subset_of

__all__ = ["ByFeatures", "Features"]

# None for the inputs themselves, (inputs (b, *feature_shape)) -> (b, d), or (n, d) for the training data in order.
Features = Callable[[jax.Array], Any] | np.ndarray | jax.Array | None
CHUNK = 4096  # data whose features are computed together


@dataclass(frozen=True, kw_only=True, eq=False)
class ByFeatures(Subset):
    """A method that chooses by features phi of the inputs, in each class on its own or in the whole.

    Attributes:
        features: phi: None for the flattened model inputs (tables: what ``of_table`` makes of them), a function
            of inputs (b, *feature_shape) that returns (b, d), row by row, or an array (n, d) for the training data in
            their order.
    """

    measure: ClassVar[str]  # what the history reports, one value for each point

    features: Features = None

    def pick(self, features: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        """Indices (count,) of features (n, d) in the order of choice, and the measure after each."""
        raise NotImplementedError(f"{type(self).__name__} must define pick(features, count)")

    def of_table(self, data: Dataset) -> np.ndarray | None:
        """Features (n, d) of a table where none are given; None for columns over their standard deviation."""
        return None

    def choose(self, problem: Problem, callbacks: tuple[Callback, ...], progress: bool) -> Choice:
        data, features, mass = problem.data, self.features, self.mass(problem)
        groups, quota = quota_of(problem)
        kind = "inputs" if features is None else "function" if callable(features) else "array"
        if features is None and problem.is_table:
            features = self.of_table(data)
        if features is not None and not callable(features):
            features = _checked_features(features, data.train.num_data)
        indices, measures = [], []
        parts = int(groups.max()) + 1
        with progress_bar("choosing the subset", parts, enabled=progress) as advance:
            for group in range(parts):
                members = np.flatnonzero(groups == group)
                picks, values = self.pick(jnp.asarray(_features(data, features, members)), quota)
                indices.append(members[np.asarray(picks)])
                measures.append(np.asarray(values))
                advance(1)
        chosen = np.concatenate(indices)
        is_balanced = problem.images_per_class is not None
        points = class_weights(data, chosen) if is_balanced else np.ones(parts * quota, np.float32)
        coreset = subset_of(data, chosen, points).with_mass(mass)
        return Choice(coreset, {self.measure: np.concatenate(measures)}, {"mass": mass, "features": kind})


def _checked_features(features: Any, rows: int) -> np.ndarray:
    array = np.asarray(features)
    if array.ndim != 2 or len(array) != rows:
        raise ValueError(f"features must have shape ({rows}, d), one row a datum; got {array.shape}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"features has {int(np.sum(~np.isfinite(array)))} values that are not finite")
    return array


def _features(data: Dataset, features: Features, members: np.ndarray) -> np.ndarray:
    """(len(members), d), of these data alone: those of a large data set need not fit in memory together."""
    if features is not None and not callable(features):
        return np.asarray(features)[members]
    chunks = []
    scales = column_scales(data) if features is None and is_table(data) else None
    for start in range(0, len(members), CHUNK):
        x = data.preprocessing.apply(data.train.raw[members[start : start + CHUNK]])
        if scales is not None:
            x = x / np.where(scales > 0, scales, 1.0)  # no column counts for more because of its unit
        chunks.append(_checked_features(x.reshape(len(x), -1) if features is None else features(x), len(x)))
    return np.concatenate(chunks)
