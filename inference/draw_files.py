"""A sampling run in a directory: draws on disk as they are made, the state of the chains beside them.

The draws fill a safetensors file whose header and size are known before the first one, through a memory map, so a run
is bounded by the disk and not by memory. After each block the file is synced, then the state of the chains is
checkpointed; what a stopped run wrote after its last checkpoint is made again, to the same bits. A finished directory
is what ``Posterior.save`` writes. Of several processes the first writes, and all read what is finished.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pseudocoreset.checkpoint import Checkpointer, different_settings
from pseudocoreset.inference.posterior import ARRAYS_FILE, RECORD_FILE, Posterior, split_arrays
from pseudocoreset.meshes import is_writer, wait_for_all
from pseudocoreset.storage import create_arrays, map_arrays, read_json, seal, verify, write_json

if TYPE_CHECKING:
    from pseudocoreset.data import Split

__all__ = ["DrawFiles", "digest_of"]

CHECKPOINTS = "checkpoint"


def digest_of(*arrays: Any) -> str:
    """Sixteen hexadecimal digits that tell arrays apart; an array may be None."""
    digest = hashlib.sha256()
    for array in arrays:
        values = np.asarray([] if array is None else array)
        digest.update(f"{values.shape} {values.dtype}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()[:16]


class DrawFiles:
    """The directory of one run; a context manager that holds a lock on it.

    Args:
        directory: made if absent.
        run: what identifies the run, JSON-able.
        predict_on: the split that draws are evaluated on, or None; it stands in the same file.

    Raises:
        ValueError: if the directory holds another run, or something else.
        BlockingIOError: if another process is using it.
    """

    def __init__(self, directory: str | os.PathLike[str], run: dict[str, Any], predict_on: Split | None) -> None:
        self.directory = pathlib.Path(directory)
        found = sorted(path.name for path in self.directory.iterdir()) if self.directory.is_dir() else []
        if found and not {CHECKPOINTS, RECORD_FILE} & set(found):
            raise ValueError(f"directory: {self.directory} holds something else ({found[0]}); give an empty one")
        self.run, self.predict_on = run, predict_on
        self._arrays: dict[str, Any] = {}
        self._checkpoints = Checkpointer(self.directory / CHECKPOINTS, run)

    def __enter__(self) -> DrawFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpoints.__exit__()
        if is_writer() and self.is_finished:
            shutil.rmtree(self.directory / CHECKPOINTS, ignore_errors=True)

    @property
    def is_finished(self) -> bool:
        """Whether all draws are there; the manifest is written last."""
        return (self.directory / RECORD_FILE).is_file() and (self.directory / "manifest.json").is_file()

    def load(self) -> Posterior:
        """The finished run, its arrays mapped from disk.

        Raises:
            ValueError: if it has other settings.
            CorruptFileError: if a file is damaged.
        """
        saved = read_json(verify(self.directory) / RECORD_FILE).get("run")
        if saved is None:
            raise ValueError(f"directory: {self.directory} holds a posterior that was saved there; give another one")
        if different := different_settings(saved, self.run):
            raise ValueError(f"directory: {self.directory} holds another run; give another one. Different: {different}")
        return Posterior.load(self.directory, memory_map=True)

    def restore(self, template: Any) -> tuple[int, Any, dict[str, float]] | None:
        """Steps done, state and seconds at the newest whole checkpoint whose draws are there, None to begin."""
        restored = self._checkpoints.restore(template)
        if restored is None:
            return None
        done, state, extra = restored
        return done, state, {name: float(value) for name, value in extra.items()}

    def save(self, done: int, state: Any, seconds: Mapping[str, float]) -> None:
        """Checkpoint the chains after ``done`` steps and draws; what they wrote goes to the disk first."""
        for array in self._arrays.values():
            array.flush()
            if hasattr(array, "_mmap") and hasattr(mmap, "MADV_DONTNEED"):
                array._mmap.madvise(mmap.MADV_DONTNEED)  # else written pages would count as memory of this process
        self._checkpoints.save(done, state, {name: np.asarray(value) for name, value in seconds.items()})

    def create(self, shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Make the file of the draws, to be written through the arrays that come back: none for who does not write.

        Args:
            shapes: ``{name: anything with shape and dtype}`` of whole arrays.

        Raises:
            OSError: if the disk has no room for all of them.
        """
        if not is_writer():
            return {}
        split = {} if self.predict_on is None else split_arrays(self.predict_on)
        create_arrays(self.directory / ARRAYS_FILE, {**shapes, **split})
        arrays = self.reopen()
        for name, values in split.items():
            arrays[name][...] = values
        return arrays

    def reopen(self) -> dict[str, np.ndarray]:
        """The arrays of the file that a stopped run left, mapped for writing."""
        self._arrays = map_arrays(self.directory / ARRAYS_FILE, writable=True) if is_writer() else {}
        return self._arrays

    def finish(self, metadata: dict[str, Any]) -> Posterior:
        """Declare the draws complete, and read them."""
        self._arrays = {}
        write_json(self.directory / RECORD_FILE, Posterior.record(metadata, self.predict_on, self.run))
        seal(self.directory, [ARRAYS_FILE, RECORD_FILE])
        wait_for_all("draws are written")
        return Posterior.load(self.directory, memory_map=True)
