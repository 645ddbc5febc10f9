"""Rows: data with their weights, and stored inputs as a model sees them, made as they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.layout import InputLayout

if TYPE_CHECKING:
    from pseudocoreset.data import Split

__all__ = ["ModelInputs", "Rows", "spread_indices"]


class Rows(NamedTuple):
    """Data with their weights: training data, a minibatch, the points of a coreset.

    inputs
        (n, *feature_shape); as they are stored where a preprocessing is applied on the fly.
    targets
        (n, ...), or class probabilities (n, num_classes).
    weights
        (n,) multiplicity of each row in the log-likelihood, not negative.
    """

    inputs: Any
    targets: Any
    weights: Any

    def take(self, indices: Any) -> Rows:
        """The rows at ``indices``, in that order."""
        return jax.tree.map(lambda leaf: leaf[indices], self)


@dataclass(frozen=True, eq=False)
class ModelInputs:
    """Inputs of a split or of arrays, preprocessed where they are indexed: all of them are never held at once.

    Attributes:
        stored: (n, *feature_shape), an array or images on disk.
        preprocessing: applied to the rows asked for; None where they are model inputs already.
        layout: of inputs of several kinds.
    """

    stored: Any
    preprocessing: Any = None
    layout: InputLayout | None = None

    @classmethod
    def of(cls, split: Split) -> ModelInputs:
        """Those of a split."""
        return cls(split.raw, split.preprocessing, split.layout)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, *feature_shape)."""
        return tuple(self.stored.shape)

    @property
    def dtype(self) -> Any:
        """That of the stored inputs."""
        return self.stored.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> jax.Array | np.ndarray:
        rows = np.asarray(self.stored[index])
        return rows if self.preprocessing is None else jnp.asarray(self.preprocessing.apply(rows))


def spread_indices(num_data: int, num_wanted: int) -> np.ndarray:
    """At most ``num_wanted`` distinct indices below ``num_data``, evenly spread and always the same."""
    return np.unique(np.linspace(0, num_data - 1, min(num_data, num_wanted)).round().astype(int))
