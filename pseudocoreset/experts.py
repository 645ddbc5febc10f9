"""Expert trajectories: parameters along optimisation paths on the full data.

A set of experts is trained with plain SGD, a snapshot every epoch (Cazenavette et al. 2022; Kim et al. 2023,
appendix C.1). Experts are trained a group at a time, all of a group in one compiled computation; each epoch of a
group is one file on disk, written before the next begins, from which a single snapshot can be read.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from pseudocoreset.arguments import checked, checked_class
from pseudocoreset.augment import Augmentation, resolve_augmentation
from pseudocoreset.checkpoint import Checkpointer
from pseudocoreset.compute.backends import full_precision
from pseudocoreset.compute.devices import Devices
from pseudocoreset.compute.processes import to_host, wait_for_all
from pseudocoreset.compute.progress import progress_bar
from pseudocoreset.data import Dataset, Split
from pseudocoreset.data.doors import bind_to
from pseudocoreset.data.records import StoredImages
from pseudocoreset.device import DeviceData
from pseudocoreset.models import Model, Params
from pseudocoreset.newton import SHRINKAGE
from pseudocoreset.proxies import mean_loss_and_gradient
from pseudocoreset.rows import Rows
from pseudocoreset.schema import (
    COUNT,
    POSITIVE_COUNT,
    RECORD,
    VERSION,
    CorruptFileError,
    check_record,
    every,
    listing,
    optional,
)
from pseudocoreset.storage import (
    array_shapes,
    atomic_directory,
    map_arrays,
    read_json,
    verify,
    write_arrays,
    write_json,
)
from pseudocoreset.validation import check_integer, check_key, check_positive, key_record

__all__ = ["Experts", "train_experts"]

logger = logging.getLogger(__name__)
START_ROWS = 1024  # of the data, at which the loss of a start is looked at
PROPORTION = 100.0  # of losses, beyond which a start is out of all proportion to one nearer to zero
FILE = "snapshots.safetensors"
RECORD_FILE = "experts.json"
SCHEMA = 1
RECORD_FIELDS = {
    "schema": VERSION,
    "num_epochs": POSITIVE_COUNT,
    "groups": listing(POSITIVE_COUNT),
    "metadata": RECORD,
}


@checked_class
@dataclass(frozen=True, eq=False)
class Experts:
    """Snapshots of many training trajectories, in memory or on disk.

    Attributes:
        num_experts: number of trajectories.
        num_epochs: last epoch; there are ``num_epochs + 1`` snapshots, the first at initialisation.
        metadata: how they were trained.
        directory: where the snapshots are, None when they are in memory.
        groups: experts in each group, in order.
        memory: snapshots by (group, epoch) when in memory, each ``{site: (experts in the group, ...)}``.
    """

    num_experts: int
    num_epochs: int
    metadata: dict[str, Any]
    groups: tuple[int, ...]
    directory: pathlib.Path | None = None
    memory: dict[tuple[int, int], dict[str, np.ndarray]] | None = None

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Experts:
        """Experts that ``train_experts`` left in a directory; every file is checked, none is kept in memory.

        Raises:
            FileNotFoundError: if the training did not finish there, or never started.
            CorruptFileError: if a snapshot is missing, truncated or altered.
            ValueError: if a newer version of this package wrote them.
        """
        root = pathlib.Path(directory)
        if not (root / "experts").is_dir():
            raise FileNotFoundError(f"{root} has no finished experts; run train_experts(..., directory={str(root)!r})")
        place = verify(root / "experts", RECORD_FILE) / RECORD_FILE
        record = check_record(read_json(place), {"schema": VERSION}, place)
        if record["schema"] > SCHEMA:
            raise ValueError(
                f"{place} has schema {record['schema']}, this version of pseudocoreset reads up to {SCHEMA}; upgrade it"
            )
        check_record(record, RECORD_FIELDS, place)
        groups, num_epochs = tuple(map(int, record["groups"])), int(record["num_epochs"])
        metadata = check_record(
            record["metadata"],
            {
                "sites": optional(every(listing(COUNT))),
                "num_experts": optional(POSITIVE_COUNT),
                "num_epochs": optional(POSITIVE_COUNT),
            },
            f"{place}, metadata",
        )
        for name, found in (("num_experts", sum(groups)), ("num_epochs", num_epochs)):
            if metadata.get(name, found) != found:
                raise CorruptFileError(f"{place} has {name} {found}, and {metadata[name]} in its metadata")
        sites = metadata.get("sites")
        for group, size in enumerate(groups):
            for epoch in range(num_epochs + 1):
                folder = _snapshot_path(root, group, epoch)
                stored = {name: list(item.shape) for name, item in array_shapes(verify(folder, FILE) / FILE).items()}
                if sites is not None and stored != {name: [size, *shape] for name, shape in sites.items()}:
                    raise CorruptFileError(f"{folder / FILE} has other arrays than {size} experts of this training")
        return cls(sum(groups), num_epochs, metadata, groups, directory=root)

    def snapshot(self, expert: int, epoch: int) -> dict[str, np.ndarray]:
        """Parameters ``{site: array}`` of one expert after one epoch; reads that one from disk.

        Raises:
            IndexError: if there is no such expert or epoch.
        """
        if not (0 <= expert < self.num_experts and 0 <= epoch <= self.num_epochs):
            raise IndexError(
                f"there is no snapshot (expert {expert}, epoch {epoch}): there are {self.num_experts} experts and "
                f"epochs 0 to {self.num_epochs}"
            )
        group, index = 0, expert
        while index >= self.groups[group]:
            index -= self.groups[group]
            group += 1
        if self.memory is not None:
            return {name: array[index] for name, array in self.memory[group, epoch].items()}
        assert self.directory is not None
        path = _snapshot_path(self.directory, group, epoch) / FILE
        try:
            return {name: np.array(array[index]) for name, array in map_arrays(path).items()}
        except IndexError as error:
            raise CorruptFileError(f"{path} has fewer experts than it had; train them again") from error

    def stack(self, choices: Sequence[tuple[int, int]]) -> dict[str, np.ndarray]:
        """Snapshots (expert, epoch) stacked along a leading axis."""
        snapshots = [self.snapshot(expert, epoch) for expert, epoch in choices]
        return {name: np.stack([s[name] for s in snapshots]) for name in snapshots[0]}

    def __repr__(self) -> str:
        place = "in memory" if self.directory is None else f"in {self.directory}"
        return f"Experts({self.num_experts} of {self.num_epochs} epochs, {place})"


class _State(NamedTuple):
    params: Params  # (experts, ...)
    optimizer: Any


@dataclass(frozen=True)
class _Training:
    """One epoch of one expert, as a function of its key; equal settings share one compilation."""

    model: Model
    learning_rate: float
    momentum: float
    weight_decay: float
    batch_size: int
    augment: Augmentation | None

    @property
    def optimizer(self) -> optax.GradientTransformation:
        sgd = optax.sgd(self.learning_rate, momentum=self.momentum or None)
        return optax.chain(optax.add_decayed_weights(self.weight_decay), sgd) if self.weight_decay else sgd

    @functools.partial(jax.jit, static_argnums=0)
    def start(self, keys: jax.Array, data: DeviceData | None) -> _State:
        """Where experts begin; with some data (not for networks) on the way to zero from where the loss is not huge."""
        params = jax.vmap(self.model.init)(keys)
        if data is not None:
            x, y = data.batch(jnp.arange(min(data.num_data, START_ROWS)))
            params = jax.vmap(lambda one: _nearer(self.model, one, x, y))(params)
        return _State(params, jax.vmap(self.optimizer.init)(params))

    @functools.partial(jax.jit, static_argnums=0)
    def epoch(self, state: _State, keys: jax.Array, data: DeviceData) -> tuple[_State, jax.Array]:
        """(state after one pass over the data, mean loss of every expert)."""

        def one(item: tuple[_State, jax.Array], data: DeviceData) -> tuple[_State, jax.Array]:
            return self._one(*item, data)

        return data.devices.map(one, (state, keys), data)

    @functools.partial(jax.jit, static_argnums=(0, 2))
    def orders(self, keys: jax.Array, num_data: int) -> tuple[jax.Array, jax.Array]:
        """Of an epoch of every expert: the data of its batches, (experts, batches, batch size), and a key for each."""
        return jax.vmap(lambda key: self._order(key, num_data))(keys)

    @functools.partial(jax.jit, static_argnums=0)
    def steps(self, state: _State, keys: jax.Array, data: DeviceData) -> tuple[_State, jax.Array]:
        """Steps on data of which every expert has its own, in the order of its batches; losses (experts, steps)."""

        def one(item: tuple[_State, jax.Array, DeviceData]) -> tuple[_State, jax.Array]:
            state, keys, data = item
            return self._along(state, jnp.arange(data.num_data).reshape(len(keys), -1), keys, data)

        return data.devices.map(one, (state, keys, data))

    def _order(self, key: jax.Array, num_data: int) -> tuple[jax.Array, jax.Array]:
        order_key, augment_key = jax.random.split(key)
        num_batches = num_data // self.batch_size
        order = jax.random.permutation(order_key, num_data)[: num_batches * self.batch_size]
        return order.reshape(num_batches, self.batch_size), jax.random.split(augment_key, num_batches)

    def _one(self, state: _State, key: jax.Array, data: DeviceData) -> tuple[_State, jax.Array]:
        state, losses = self._along(state, *self._order(key, data.num_data), data)
        return state, jnp.mean(losses)

    def _along(self, state: _State, order: jax.Array, keys: jax.Array, data: DeviceData) -> tuple[_State, jax.Array]:
        """A step for each row of ``order``, whose data devices may share."""

        def step(state: _State, item: tuple[jax.Array, jax.Array]) -> tuple[_State, jax.Array]:
            indices, k = item
            x, y = data.batch(indices)
            if self.augment is not None:
                x = self.augment(k, x)
            batch = Rows(x, y, jnp.ones(self.batch_size))
            loss, gradient = mean_loss_and_gradient(self.model, state.params, batch, data.devices.within)
            updates, optimizer = self.optimizer.update(gradient, state.optimizer, state.params)
            return _State(optax.apply_updates(state.params, updates), optimizer), loss

        return jax.lax.scan(step, state, (order, keys))


@checked
@full_precision()
def train_experts(
    model: Model,
    data: Dataset,
    *,
    num_experts: int,
    num_epochs: int = 50,
    key: jax.Array,
    learning_rate: float = 0.01,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    batch_size: int = 256,
    augment: Augmentation | str | None = "auto",
    experts_per_group: int = 10,
    directory: str | os.PathLike[str] | None = None,
    progress: bool = True,
    mesh: Mesh | None = None,
) -> Experts:
    """Train experts on the full data by SGD on the mean negative log-likelihood, a snapshot every epoch.

    With a ``directory`` the snapshots go to disk as they are made; a run that was stopped goes on where it was when
    it is called again with the same arguments, and a finished one is returned at once. An epoch is a random pass
    over the data in whole batches. Data on disk (``load_dataset(..., stream=True)``) are read ahead of their use, each
    expert's in its own order, and give the experts that they give in memory, up to rounding.

    Args:
        model: what to train; ``model.init`` gives each expert its own start.
        data: the data set; its train split is used.
        num_experts: number of trajectories.
        num_epochs: passes over the data.
        key: one typed key.
        learning_rate: SGD step size on the mean loss of a batch.
        momentum: heavy-ball momentum in [0, 1).
        weight_decay: coefficient of the decay, as SGD adds it to the gradient.
        batch_size: data a step; at most n.
        augment: ``"auto"``, a strategy, an ``Augmentation``, or None (see ``resolve_augmentation``).
        experts_per_group: experts trained in one computation and stored in one file an epoch.
        directory: where to keep them; in memory if None.
        progress: show a progress bar.
        mesh: devices that share the experts of a group, ``jax.make_mesh((4,), ("devices",))``; the data are on each of
            them. Choose an ``experts_per_group`` that their number divides. Those along an axis named ``"data"`` share
            each minibatch instead: ``jax.make_mesh((4,), ("data",))`` is for one expert. (Of networks with batch norm,
            whose function values depend on the whole minibatch, they share the experts too.) A run in a directory may
            go on with another mesh, or without.

    Raises:
        TypeError, ValueError: for arguments out of range, or a directory that holds other experts.
        FloatingPointError: if the training of an expert diverges.
    """
    check_key(key)
    check_integer(num_experts, "num_experts")
    check_integer(num_epochs, "num_epochs")
    check_integer(experts_per_group, "experts_per_group")
    _check_training(data, learning_rate, momentum, weight_decay, batch_size)
    devices = Devices.of(mesh)
    model = bind_to(model, data)
    devices = devices.sharing_rows(model)
    augmentation = resolve_augmentation(augment, data.train.feature_shape, data.name)
    training = _Training(model, float(learning_rate), float(momentum), float(weight_decay), batch_size, augmentation)
    groups = tuple(min(experts_per_group, num_experts - start) for start in range(0, num_experts, experts_per_group))
    metadata = {
        "model": model.name,
        "num_params": model.num_params,
        "data": data.name,
        "num_data": data.train.num_data,
        "num_experts": num_experts,
        "num_epochs": num_epochs,
        "learning_rate": learning_rate,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "batch_size": batch_size,
        "augment": None if augmentation is None else augmentation.strategy,
        "experts_per_group": experts_per_group,
        "sites": {site.name: list(site.unconstrained_shape) for site in model.sites},
        "preprocessing": fingerprint(data),
        "inputs": data.preprocessing.summary,
        "key": key_record(key),
    }
    root = None if directory is None else pathlib.Path(directory)
    if root is not None and (root / "experts").is_dir():
        return _finished(root, metadata)

    memory: dict[tuple[int, int], dict[str, np.ndarray]] | None = {} if root is None else None
    device = data.train if data.train.is_stored else DeviceData.from_dataset(data, devices)
    first = 0
    with progress_bar("training experts", num_experts * num_epochs, enabled=progress) as advance:
        for group, size in enumerate(groups):
            keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(first, first + size))
            first += size
            if root is None:
                assert memory is not None
                for epoch, state, _, note in _trajectory(training, keys, num_epochs, device, devices, None):
                    memory[group, epoch] = to_host(state.params)
                    advance(size if epoch else 0, note)
                continue
            run = {"group": group, **{name: value for name, value in metadata.items() if name != "inputs"}}
            with Checkpointer(root / f"group-{group:04d}" / "state", run) as checkpoints:
                for epoch, state, fresh, note in _trajectory(training, keys, num_epochs, device, devices, checkpoints):
                    if fresh:
                        params = to_host(state.params)
                        with atomic_directory(_snapshot_path(root, group, epoch)) as folder:
                            write_arrays(folder / FILE, params)
                        checkpoints.save(epoch, state)
                    else:
                        verify(_snapshot_path(root, group, epoch), FILE)
                    advance(size if epoch else 0, note)
    if root is not None:
        with atomic_directory(root / "experts") as folder:
            record = {"schema": SCHEMA, "num_epochs": num_epochs, "groups": list(groups), "metadata": metadata}
            write_json(folder / RECORD_FILE, record)
        wait_for_all("experts are written")
    return Experts(num_experts, num_epochs, metadata, groups, directory=root, memory=memory)


def _check_training(data: Dataset, learning_rate: float, momentum: float, weight_decay: float, batch_size: int) -> None:
    """Refuse settings of SGD that are out of range, by name."""
    check_integer(batch_size, "batch_size")
    check_positive(learning_rate, "learning_rate")
    if batch_size > data.train.num_data:
        raise ValueError(f"batch_size={batch_size} is more than the {data.train.num_data} training data")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1); got {momentum}")
    if weight_decay < 0:
        raise ValueError(f"weight_decay must not be negative; got {weight_decay}")


def _nearer(model: Model, params: Params, x: jax.Array, y: jax.Array) -> Params:
    """``params``, or those nearer to zero where their loss is out of all proportion, as with columns on raw scales."""

    def scaled(factor: jax.Array) -> Params:
        return jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, params)

    factors = jnp.asarray(SHRINKAGE)
    losses = jax.lax.map(lambda factor: -jnp.mean(model.log_likelihood(scaled(factor), x, y)), factors)
    losses = jnp.where(jnp.isfinite(losses), losses, jnp.inf)
    return scaled(factors[jnp.argmax(losses <= jnp.min(losses) + PROPORTION * (1 + jnp.abs(jnp.min(losses))))])


def _trajectory(
    training: _Training,
    keys: jax.Array,
    num_epochs: int,
    data: DeviceData | Split,
    devices: Devices,
    checkpoints: Checkpointer | None,
) -> Any:
    """Yield (epoch, state, whether it is new, note), from the newest checkpoint if there is one."""
    looks_at = data if isinstance(data, DeviceData) and not training.model.is_network else None
    state = training.start(jax.vmap(lambda k: jax.random.fold_in(k, 0))(keys), looks_at)
    saved = None if checkpoints is None else checkpoints.restore(state)
    begin = 0
    if saved is not None:
        begin, state, _ = saved
        logger.info("going on from epoch %d", begin)
        for epoch in range(begin):
            yield epoch, state, False, "resumed"
    yield begin, state, saved is None, ""
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
        yield epoch, state, True, f"loss {losses.mean():.3f}"


def _streamed_epoch(
    training: _Training, state: _State, keys: jax.Array, split: Split, devices: Devices
) -> tuple[_State, jax.Array]:
    """What ``_Training.epoch`` does, with the images read from disk while the device is at those before."""
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


def _snapshot_path(root: pathlib.Path, group: int, epoch: int) -> pathlib.Path:
    return root / f"group-{group:04d}" / f"epoch-{epoch:04d}"


def _finished(root: pathlib.Path, metadata: dict[str, Any]) -> Experts:
    experts = Experts.load(root)
    current = json.loads(json.dumps(metadata))
    # Experts of versions that did not write how their inputs were made are told by the fingerprint alone.
    written = [name for name in current if name != "inputs" or name in experts.metadata]
    different = [name for name in written if current[name] != experts.metadata.get(name)]
    if different:
        raise ValueError(
            f"directory={str(root)!r} holds experts that were trained otherwise (different: {', '.join(different)}); "
            "use another directory, or Experts.load for those"
        )
    return experts


def fingerprint(data: Dataset) -> str:
    """A short hash of what the training data and their preprocessing are, to tell two data sets apart."""
    digest = hashlib.sha256()
    digest.update(json.dumps(data.preprocessing.metadata(), sort_keys=True).encode())
    for array in (
        *data.preprocessing.arrays().values(),
        data.train.y,
        data.train.raw[:: max(1, len(data.train.y) // 64)],
    ):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
