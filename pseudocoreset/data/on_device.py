"""The training data on the device: uint8 as they are stored, preprocessed as batches are gathered, floats as inputs.

With several devices they are whole on each.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from pseudocoreset.compute.devices import Devices
from pseudocoreset.data.preprocessing import Preprocessing

if TYPE_CHECKING:
    from pseudocoreset.data import Dataset, Split

__all__ = ["DeviceData", "check_in_memory"]


# One object, because compiled functions are kept by it.
INPUTS = Preprocessing()


def _stays_raw(split: Split) -> bool:
    return split.raw.dtype == np.uint8 and split.preprocessing.zca_matrix is None


def check_in_memory(split: Split) -> None:
    """Raise a ValueError if the inputs of a training split are on disk."""
    if split.is_stored:
        raise ValueError(
            f"data: the {split.num_data} training data are on disk, where train_experts, and sample with minibatches, "
            "read them; here they are drawn from on the device. Give data in memory, or a train split of "
            "train.subset(...).in_memory()"
        )


@functools.partial(jax.tree_util.register_dataclass, data_fields=["raw", "y"], meta_fields=["preprocessing", "devices"])
@dataclass(frozen=True)
class DeviceData:
    """Arrays of one split on the device, a pytree.

    Attributes:
        raw: (n, *feature_shape) uint8 as stored, or float32 model inputs.
        y: (n, ...) targets.
        preprocessing: turns ``raw`` into model inputs.
        devices: those that have them.
    """

    raw: jax.Array
    y: jax.Array
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    devices: Devices = field(default_factory=Devices)

    @classmethod
    def from_split(cls, split: Split, devices: Devices) -> DeviceData:
        """Put a split on the device or devices.

        Images of bytes stay bytes; whitened data are model inputs, since whitening costs more than a batch, and so are
        floats, some of which the device could not hold without a loss.
        """
        check_in_memory(split)
        raw, y = devices.replicate((split.raw if _stays_raw(split) else split.packed, split.y))
        return cls(raw, y, split.preprocessing if _stays_raw(split) else INPUTS, devices)

    @classmethod
    def from_dataset(cls, data: Dataset, devices: Devices | None = None) -> DeviceData:
        """The train split; on the default device where none are given."""
        return cls.from_split(data.train, Devices() if devices is None else devices)

    @classmethod
    def shapes_of(cls, data: Dataset, devices: Devices) -> DeviceData:
        """The shapes of the arrays that ``from_dataset`` would put on the device."""
        split = data.train
        raw: Any = jax.ShapeDtypeStruct(split.raw.shape, np.uint8 if _stays_raw(split) else np.float32)
        y: Any = jax.ShapeDtypeStruct(split.y.shape, split.y.dtype)
        return cls(raw, y, split.preprocessing if _stays_raw(split) else INPUTS, devices)

    @property
    def num_data(self) -> int:
        """Number of data n."""
        return self.raw.shape[0]

    def batch(self, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Model inputs and targets of the data at ``indices`` (b,)."""
        return self.preprocessing.apply(self.raw[indices]), self.y[indices]

    def sample(self, key: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        """A uniform batch of ``size`` data, with replacement."""
        return self.batch(jax.random.randint(key, (size,), 0, self.num_data))
