"""``train_experts``: experts a group at a time, kept epoch by epoch."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pseudocoreset.arguments import checked
from pseudocoreset.compute.backends import full_precision
from pseudocoreset.compute.devices import Devices
from pseudocoreset.compute.processes import to_host, wait_for_all
from pseudocoreset.compute.progress import progress_bar
from pseudocoreset.data import Dataset
from pseudocoreset.data.augmentation import Augmentation, resolve_augmentation
from pseudocoreset.data.doors import bind_to
from pseudocoreset.data.fingerprints import fingerprint
from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.experts.store import Experts, Folder
from pseudocoreset.experts.trajectory import Epoch, Training, trajectory
from pseudocoreset.files.checkpoints import Checkpointer
from pseudocoreset.models import Model
from pseudocoreset.validation import check_integer, check_key, check_positive, key_record

__all__ = ["train_experts"]


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
    training = Training(model, float(learning_rate), float(momentum), float(weight_decay), batch_size, augmentation)
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
    folder = None if directory is None else Folder(pathlib.Path(directory))
    if folder is not None and folder.is_finished:
        return folder.finished(metadata)
    source = data.train if data.train.is_stored else DeviceData.from_dataset(data, devices)
    memory: dict[tuple[int, int], dict[str, np.ndarray]] = {}
    first = 0
    with progress_bar("training experts", num_experts * num_epochs, enabled=progress) as advance:
        for group, size in enumerate(groups):
            keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(first, first + size))
            first += size
            run = functools.partial(trajectory, training, keys, num_epochs, source, devices)
            if folder is None:
                epochs = _in_memory(run, group, memory)
            else:
                record = {"group": group, **{name: value for name, value in metadata.items() if name != "inputs"}}
                epochs = _on_disk(run, group, folder, record)
            for epoch in epochs:
                advance(size if epoch.number else 0, epoch.note)
    if folder is None:
        return Experts(num_experts, num_epochs, metadata, groups, memory=memory)
    folder.finish(num_epochs, groups, metadata)
    wait_for_all("experts are written")
    return Experts(num_experts, num_epochs, metadata, groups, directory=folder.root)


def _in_memory(run: Callable[..., Iterator[Epoch]], group: int, memory: dict[Any, Any]) -> Iterator[Epoch]:
    """The epochs of a group, each kept on the host."""
    for epoch in run(None):
        memory[group, epoch.number] = to_host(epoch.state.params)
        yield epoch


def _on_disk(
    run: Callable[..., Iterator[Epoch]], group: int, folder: Folder, record: dict[str, Any]
) -> Iterator[Epoch]:
    """The epochs of a group, each written before the next begins, and checked where an earlier run wrote it."""
    with Checkpointer(folder.checkpoints(group), record) as checkpoints:
        for epoch in run(checkpoints):
            if epoch.is_new:
                folder.write_snapshot(group, epoch.number, to_host(epoch.state.params))
                checkpoints.save(epoch.number, epoch.state)
            else:
                folder.verify_snapshot(group, epoch.number)
            yield epoch


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
