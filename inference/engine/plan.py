"""What chains are to do: ``Plan``, which compiled code depends on, and ``Run``, all that was asked of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import jax

from pseudocoreset.compute.devices import Devices
from pseudocoreset.data.augmentation import Augmentation
from pseudocoreset.inference.data import (
    draw_indices,
    draw_minibatch,
    gradient_estimator,
    log_density_estimator,
    log_density_terms,
)
from pseudocoreset.inference.engine.kernel import Density, Kernel
from pseudocoreset.models import Model, Params
from pseudocoreset.rows import Rows

__all__ = ["ON_DISK", "Plan", "Run"]

ON_DISK = "data: the training data are on disk and come in minibatches"  # how errors about it begin


@dataclass(frozen=True)
class Plan:
    """What compiled code depends on besides arrays; equal plans share one compilation.

    Attributes:
        model: a bound model.
        kernel: its ``compiled_form``.
        num_data: number of training data n.
        batch_size: rows of a minibatch, None for all data.
        preprocessing: applied to the stored inputs, None where that is done.
        held_out_preprocessing: as ``preprocessing``, for the held-out inputs.
        held_out_chunk_size: rows of held-out data evaluated at once.
        keep_weights: whether draws hold all sites, or the small ones only.
        augment: a new augmentation of the inputs for each gradient, None for the inputs as they are.
        devices: that share the chains, and where a gradient is a sum over all rows, those; with the rows of training
            data that are evaluated at once.
    """

    model: Model
    kernel: Kernel
    num_data: int
    batch_size: int | None
    preprocessing: Any
    held_out_preprocessing: Any
    held_out_chunk_size: int
    keep_weights: bool
    augment: Augmentation | None = None
    devices: Devices = field(default_factory=Devices)

    @property
    def has_exact_density(self) -> bool:
        """Whether gradients and log densities are those of all data as they are."""
        return self.batch_size is None and self.augment is None

    def density(self, data: Rows, drawn: Rows | None = None) -> Density:
        """The target given its data; every minibatch is ``drawn``, if that was done beforehand (``batch_indices``)."""
        augment, size = self.augment, self.batch_size
        form: dict[str, Any] = {
            # What is augmented is preprocessed first, where the minibatch is made.
            "preprocessing": self.preprocessing if augment is None else None,
            "devices": self.devices.within,
        }

        def minibatch(key: jax.Array) -> Rows:
            batch_key, view_key = self._batch_and_view(key)
            rows = drawn
            if rows is None:
                rows = data if size is None else draw_minibatch(batch_key, data, size)
            if augment is None:
                return rows
            inputs = rows.inputs if self.preprocessing is None else self.preprocessing.apply(rows.inputs)
            return rows._replace(inputs=augment(view_key, inputs))

        return Density(
            log_density=log_density_estimator(self.model, self.num_data, **form),
            gradient=gradient_estimator(self.model, self.num_data, **form),
            minibatch=minibatch,
            data=data,
            terms=log_density_terms(self.model, num_data=self.num_data, **form),
        )

    def batch_indices(self, key: jax.Array) -> jax.Array:
        """The data that ``density(data).minibatch(key)`` draws, (batch_size,)."""
        assert self.batch_size is not None
        return draw_indices(self._batch_and_view(key)[0], self.num_data, self.batch_size)

    def _batch_and_view(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys of the rows of a minibatch and of their augmentation."""
        if self.augment is None:
            return key, key
        batch_key, view_key = jax.random.split(key)
        return batch_key, view_key


@dataclass(frozen=True)
class Run:
    """What was asked of chains, checked against the model and the shapes of the data.

    Attributes:
        plan: what compiled code depends on.
        kernel: with the values of all its options.
        step_size: as given.
        temperature: T.
        num_chains: chains, or simulations of one chain each.
        num_warmup: steps of a chain before the first draw.
        num_samples: draws of a chain.
        thinning: steps from draw to draw.
        init_params: given starting points of every chain.
        is_on_disk: whether the data are read from disk, minibatch by minibatch.
    """

    plan: Plan
    kernel: Kernel
    step_size: float | None
    temperature: float
    num_chains: int
    num_warmup: int
    num_samples: int
    thinning: int
    init_params: Params | None = None
    is_on_disk: bool = False

    @functools.cached_property
    def shapes(self) -> dict[str, Any]:
        """Shapes of the sites of one chain."""
        return jax.eval_shape(self.plan.model.init, jax.random.key(0))

    @property
    def is_centred(self) -> bool:
        """Whether the start of the chains depends on the data."""
        return self.kernel.is_centred(self)
