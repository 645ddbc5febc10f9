"""The training of a group of experts, epoch by epoch."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pseudocoreset.compute.devices import Devices
from pseudocoreset.compute.processes import to_host
from pseudocoreset.data import Split
from pseudocoreset.data.augmentation import Augmentation
from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.data.sources.records import StoredImages
from pseudocoreset.files.checkpoints import Checkpointer
from pseudocoreset.models import Model, Params
from pseudocoreset.newton import SHRINKAGE
from pseudocoreset.proxies import mean_loss_and_gradient
from pseudocoreset.rows import Rows

__all__ = ["Epoch", "State", "Training", "trajectory"]

logger = logging.getLogger(__name__)
START_ROWS = 1024  # of the data, at which the loss of a start is looked at
PROPORTION = 100.0  # of losses, beyond which a start is out of all proportion to one nearer to zero


class State(NamedTuple):
    """Parameters of a group and what its optimiser keeps; leaves have a leading axis over experts."""

    params: Params
    optimizer: Any


@dataclass(frozen=True)
class Training:
    """One epoch of one expert, as a function of its key; equal settings share one compilation."""

    model: Model
    learning_rate: float
    momentum: float
    weight_decay: float
    batch_size: int
    augment: Augmentation | None

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """SGD with its momentum and weight decay."""
        sgd = optax.sgd(self.learning_rate, momentum=self.momentum or None)
        return optax.chain(optax.add_decayed_weights(self.weight_decay), sgd) if self.weight_decay else sgd

    @functools.partial(jax.jit, static_argnums=0)
    def start(self, keys: jax.Array, data: DeviceData | None) -> State:
        """Where experts begin; with some data (not for networks) on the way to zero from where the loss is not huge."""
        params = jax.vmap(self.model.init)(keys)
        if data is not None:
            x, y = data.batch(jnp.arange(min(data.num_data, START_ROWS)))
            params = jax.vmap(lambda one: _nearer(self.model, one, x, y))(params)
        return State(params, jax.vmap(self.optimizer.init)(params))

    @functools.partial(jax.jit, static_argnums=0)
    def epoch(self, state: State, keys: jax.Array, data: DeviceData) -> tuple[State, jax.Array]:
        """(state after one pass over the data, mean loss of every expert)."""

        def one(item: tuple[State, jax.Array], data: DeviceData) -> tuple[State, jax.Array]:
            return self._one(*item, data)

        return data.devices.map(one, (state, keys), data)

    @functools.partial(jax.jit, static_argnums=(0, 2))
    def orders(self, keys: jax.Array, num_data: int) -> tuple[jax.Array, jax.Array]:
        """Of an epoch of every expert: the data of its batches, (experts, batches, batch size), and a key for each."""
        return jax.vmap(lambda key: self._order(key, num_data))(keys)

    @functools.partial(jax.jit, static_argnums=0)
    def steps(self, state: State, keys: jax.Array, data: DeviceData) -> tuple[State, jax.Array]:
        """Steps on data of which every expert has its own, in the order of its batches; losses (experts, steps)."""

        def one(item: tuple[State, jax.Array, DeviceData]) -> tuple[State, jax.Array]:
            state, keys, data = item
            return self._along(state, jnp.arange(data.num_data).reshape(len(keys), -1), keys, data)

        return data.devices.map(one, (state, keys, data))

    def _order(self, key: jax.Array, num_data: int) -> tuple[jax.Array, jax.Array]:
        order_key, augment_key = jax.random.split(key)
        num_batches = num_data // self.batch_size
        order = jax.random.permutation(order_key, num_data)[: num_batches * self.batch_size]
        return order.reshape(num_batches, self.batch_size), jax.random.split(augment_key, num_batches)

    def _one(self, state: State, key: jax.Array, data: DeviceData) -> tuple[State, jax.Array]:
        state, losses = self._along(state, *self._order(key, data.num_data), data)
        return state, jnp.mean(losses)

    def _along(self, state: State, order: jax.Array, keys: jax.Array, data: DeviceData) -> tuple[State, jax.Array]:
        """A step for each row of ``order``, whose data devices may share."""

        def step(state: State, item: tuple[jax.Array, jax.Array]) -> tuple[State, jax.Array]:
            indices, k = item
            x, y = data.batch(indices)
            if self.augment is not None:
                x = self.augment(k, x)
            batch = Rows(x, y, jnp.ones(self.batch_size))
            loss, gradient = mean_loss_and_gradient(self.model, state.params, batch, data.devices.within)
            updates, optimizer = self.optimizer.update(gradient, state.optimizer, state.params)
            return State(optax.apply_updates(state.params, updates), optimizer), loss

        return jax.lax.scan(step, state, (order, keys))


class Epoch(NamedTuple):
    """A group of experts after an epoch.

    Attributes:
        number: of the epoch, 0 for the start.
        state: of all of them.
        is_new: whether it was computed now, and not by a run that goes on.
        note: for the progress bar.
    """

    number: int
    state: State
    is_new: bool
    note: str


def trajectory(
    training: Training,
    keys: jax.Array,
    num_epochs: int,
    data: DeviceData | Split,
    devices: Devices,
    checkpoints: Checkpointer | None,
) -> Iterator[Epoch]:
    """Yield every epoch, from the newest checkpoint if there is one."""
    looks_at = data if isinstance(data, DeviceData) and not training.model.is_network else None
    state = training.start(jax.vmap(lambda k: jax.random.fold_in(k, 0))(keys), looks_at)
    saved = None if checkpoints is None else checkpoints.restore(state)
    begin = 0
    if saved is not None:
        begin, state, _ = saved
        logger.info("going on from epoch %d", begin)
        for epoch in range(begin):
            yield Epoch(epoch, state, False, "resumed")
    yield Epoch(begin, state, saved is None, "")
    state = devices.lay_out(state)
    for epoch in range(begin + 1, num_epochs + 1):
        epoch_keys = jax.vmap(lambda k, e=epoch: jax.random.fold_in(k, e))(keys)
        if isinstance(data, DeviceData):
            state, losses = training.epoch(state, epoch_keys, data)
        else:
            state, losses = _streamed_epoch(training, state, epoch_keys, data, devices)
        losses = to_host(losses)
        if not np.all(np.isfinite(losses)):
            raise FloatingPointError(
                f"the loss of experts {np.flatnonzero(~np.isfinite(losses)).tolist()} of this group is not finite in "
                f"epoch {epoch}; use a smaller learning_rate"
            )
        yield Epoch(epoch, state, True, f"loss {losses.mean():.3f}")


def _streamed_epoch(
    training: Training, state: State, keys: jax.Array, split: Split, devices: Devices
) -> tuple[State, jax.Array]:
    """What ``Training.epoch`` does, with the images read from disk while the device is at those before."""
    assert isinstance(split.raw, StoredImages)
    orders, step_keys = training.orders(keys, split.num_data)
    num_experts, num_steps, batch_size = orders.shape
    affordable = devices.limits.streamed_bytes // (num_experts * batch_size * math.prod(split.feature_shape))
    at_once = max(d for d in range(1, max(1, min(affordable, num_steps)) + 1) if num_steps % d == 0)
    blocks = np.asarray(orders).reshape(num_experts, -1, at_once * batch_size).swapaxes(0, 1)
    losses: list[jax.Array] = []
    for number, images in enumerate(split.raw.stream([chosen.ravel() for chosen in blocks])):
        chosen = blocks[number]
        images = images.reshape(*chosen.shape, *split.feature_shape)
        arrays = jnp.asarray(images), jnp.asarray(split.y[chosen])
        raw, y = devices.lay_out(arrays)
        data = DeviceData(raw, y, split.preprocessing, devices)
        state, loss = training.steps(state, step_keys[:, number * at_once : (number + 1) * at_once], data)
        losses.append(loss)
        # Two blocks at most are on the device, one of them waiting.
        jax.block_until_ready(losses[max(0, number - 1)])
    return state, jnp.mean(jnp.concatenate(losses, axis=1), axis=1)


def _nearer(model: Model, params: Params, x: jax.Array, y: jax.Array) -> Params:
    """``params``, or those nearer to zero where their loss is out of all proportion, as with columns on raw scales."""

    def scaled(factor: jax.Array) -> Params:
        return jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, params)

    factors = jnp.asarray(SHRINKAGE)
    losses = jax.lax.map(lambda factor: -jnp.mean(model.log_likelihood(scaled(factor), x, y)), factors)
    losses = jnp.where(jnp.isfinite(losses), losses, jnp.inf)
    return scaled(factors[jnp.argmax(losses <= jnp.min(losses) + PROPORTION * (1 + jnp.abs(jnp.min(losses))))])
