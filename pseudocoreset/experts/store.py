"""``Experts``: snapshots of many training trajectories, in memory or on disk."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pseudocoreset.arguments import checked_class
from pseudocoreset.files.schema import (
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
from pseudocoreset.files.storage import (
    array_shapes,
    atomic_directory,
    map_arrays,
    read_json,
    verify,
    write_arrays,
    write_json,
)
from pseudocoreset.models import Params

__all__ = ["Experts", "Folder"]

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
                folder = Folder(root).snapshot(group, epoch)
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
        path = Folder(self.directory).snapshot(group, epoch) / FILE
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


@dataclass(frozen=True)
class Folder:
    """Where experts go as they are trained.

    Attributes:
        root: the directory.
    """

    root: pathlib.Path

    def snapshot(self, group: int, epoch: int) -> pathlib.Path:
        """Where the snapshots of a group after an epoch are."""
        return self.root / f"group-{group:04d}" / f"epoch-{epoch:04d}"

    def checkpoints(self, group: int) -> pathlib.Path:
        """Where a group that is in training has its checkpoint."""
        return self.root / f"group-{group:04d}" / "state"

    @property
    def is_finished(self) -> bool:
        """Whether all experts are there."""
        return (self.root / "experts").is_dir()

    def write_snapshot(self, group: int, epoch: int, params: Params) -> None:
        """Keep the parameters of a group; they are there whole or not at all."""
        with atomic_directory(self.snapshot(group, epoch)) as folder:
            write_arrays(folder / FILE, params)

    def verify_snapshot(self, group: int, epoch: int) -> None:
        """Nothing, if the parameters of a group are as they were written.

        Raises:
            CorruptFileError: if not.
        """
        verify(self.snapshot(group, epoch), FILE)

    def finish(self, num_epochs: int, groups: Sequence[int], metadata: dict[str, Any]) -> None:
        """Say that all experts are there."""
        with atomic_directory(self.root / "experts") as folder:
            record = {"schema": SCHEMA, "num_epochs": num_epochs, "groups": list(groups), "metadata": metadata}
            write_json(folder / RECORD_FILE, record)

    def finished(self, metadata: dict[str, Any]) -> Experts:
        """The experts that are there, if they were trained as ``metadata`` say.

        Raises:
            ValueError: naming what is different.
        """
        experts = Experts.load(self.root)
        current = json.loads(json.dumps(metadata))
        # Experts of versions that did not write how their inputs were made are told by the fingerprint alone.
        written = [name for name in current if name != "inputs" or name in experts.metadata]
        different = [name for name in written if current[name] != experts.metadata.get(name)]
        if different:
            raise ValueError(
                f"directory={str(self.root)!r} holds experts that were trained otherwise (different: "
                f"{', '.join(different)}); use another directory, or Experts.load for those"
            )
        return experts
