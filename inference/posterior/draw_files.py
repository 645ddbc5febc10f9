"""A sampling run in a directory: draws on disk as they are made, the state of the chains beside them.

The draws fill a safetensors file whose header and size are known before the first one, through a memory map, so a run
is bounded by the disk and not by memory. After each block the file is synced, then the state of the chains is
checkpointed; what a stopped run wrote after its last checkpoint is made again, to the same bits. Each checkpoint holds
the checksums of all draws before it, which are compared before a run goes on; draws of versions that wrote none are
taken as they are. A finished directory is what ``Posterior.save`` writes. Of several processes the first writes, and
all read what is finished.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pseudocoreset.compute.processes import is_writer, wait_for_all
from pseudocoreset.files.checkpoints import Checkpointer, different_settings
from pseudocoreset.files.schema import RECORD, CorruptFileError, check_record, fits_together, maybe
from pseudocoreset.files.storage import (
    MANIFEST,
    check_replaceable,
    create_arrays,
    map_arrays,
    read_json,
    seal,
    verify,
    write_json,
)
from pseudocoreset.inference.posterior.draws import Posterior
from pseudocoreset.inference.posterior.files import ARRAYS_FILE, RECORD_FILE, record_of, split_arrays
from pseudocoreset.validation import uses_x64

if TYPE_CHECKING:
    from pseudocoreset.data import Split

__all__ = ["DrawFiles", "digest_of"]

logger = logging.getLogger(__name__)
CHECKPOINTS = "checkpoint"
DRAWN = "drawn"  # among the extra arrays of a checkpoint: draws before each block, and their end
DIGESTS = "digests"
STATS = "sample_stats/"


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
        CorruptFileError: if a finished run has lost its manifest, or other things are in the place of its files.
        BlockingIOError: if another process is using it.
    """

    def __init__(self, directory: str | os.PathLike[str], run: dict[str, Any], predict_on: Split | None) -> None:
        self.directory = pathlib.Path(directory)
        found = sorted(path.name for path in self.directory.iterdir()) if self.directory.is_dir() else []
        if found and not {CHECKPOINTS, RECORD_FILE} & set(found):
            raise ValueError(f"directory: {self.directory} holds something else ({found[0]}); give an empty one")
        self.run, self.predict_on = run, predict_on
        self._arrays: dict[str, Any] = {}
        self._blocks: list[tuple[int, int, bytes]] = []  # first and last draw, SHA-256
        self._checkpoints = Checkpointer(self.directory / CHECKPOINTS, run)
        if RECORD_FILE in found and not self.is_finished and not self._checkpoints.has_steps:
            self._checkpoints.__exit__()
            raise CorruptFileError(
                f"{self.directory} has a {RECORD_FILE}, but neither a {MANIFEST} nor checkpoints: it is damaged; "
                "remove it, or give another directory"
            )

    def __enter__(self) -> DrawFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpoints.__exit__()
        if is_writer() and self.is_finished:
            shutil.rmtree(self.directory / CHECKPOINTS, ignore_errors=True)

    @property
    def is_finished(self) -> bool:
        """Whether all draws are there; the manifest is written last."""
        return os.path.lexists(self.directory / MANIFEST)

    def load(self) -> Posterior:
        """The finished run, its arrays mapped from disk.

        Raises:
            ValueError: if it has other settings.
            CorruptFileError: if a file is damaged.
        """
        place = verify(self.directory, RECORD_FILE, ARRAYS_FILE) / RECORD_FILE
        saved = check_record(read_json(place), {"run": maybe(RECORD)}, place)["run"]
        if saved is None:
            raise ValueError(f"directory: {self.directory} holds a posterior that was saved there; give another one")
        # Versions that did not write the precision left runs that are read in any.
        if different := different_settings({"enable_x64": uses_x64(), **saved}, self._settings()):
            raise ValueError(f"directory: {self.directory} holds another run; give another one. Different: {different}")
        return Posterior.load(self.directory, memory_map=True)

    def _settings(self) -> dict[str, Any]:
        """What a finished run is identified by; a checkpoint has the precision beside the run."""
        return {**self.run, "enable_x64": uses_x64()}

    def restore(self, template: Any) -> tuple[int, Any, dict[str, float]] | None:
        """Steps done, state and seconds at the newest whole checkpoint whose draws are there, None to begin."""
        restored = self._checkpoints.restore(template)
        if restored is None:
            return None
        done, state, extra = restored
        drawn, digests = extra.pop(DRAWN, np.zeros((0, 2))), extra.pop(DIGESTS, np.zeros((0, 32)))
        with fits_together(self.directory / CHECKPOINTS):
            self._blocks = [(int(d[0]), int(d[1]), bytes(h)) for d, h in zip(drawn, digests, strict=True)]
            return done, state, {name: float(value) for name, value in extra.items()}

    def save(self, done: int, state: Any, seconds: Mapping[str, float]) -> None:
        """Checkpoint the chains after ``done`` steps and draws; what they wrote goes to the disk first."""
        for array in self._arrays.values():
            array.flush()
            if hasattr(array, "_mmap") and hasattr(mmap, "MADV_DONTNEED"):
                array._mmap.madvise(mmap.MADV_DONTNEED)  # else written pages would count as memory of this process
        extra = {name: np.asarray(value) for name, value in seconds.items()}
        if self._blocks:
            extra[DRAWN] = np.array([block[:2] for block in self._blocks], np.int64)
            extra[DIGESTS] = np.array([list(block[2]) for block in self._blocks], np.uint8)
        self._checkpoints.save(done, state, extra)

    def create(self, shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Make the file of the draws, and map it: nothing for who does not write.

        Args:
            shapes: ``{name: anything with shape and dtype}`` of whole arrays.

        Raises:
            OSError: if the disk has no room for all of them.
        """
        self._blocks = []
        if not is_writer():
            return {}
        create_arrays(self.directory / ARRAYS_FILE, {**shapes, **self._split_arrays()})
        return self._map()

    def reopen(self, drawn: int, num_samples: int) -> dict[str, np.ndarray]:
        """The arrays of the file that a stopped run left, mapped for writing.

        Args:
            drawn: draws of each chain that must be there.
            num_samples: draws of each chain that it has room for.

        Raises:
            CorruptFileError: if it holds something else, or draws that are not those of the run.
        """
        if not is_writer():
            return {}
        arrays = self._map()
        draws = {name: array for name, array in arrays.items() if name not in self._split_arrays()}
        # Draws before the first checksum are those of a version that wrote none.
        end = unchecked = self._blocks[0][0] if self._blocks else drawn
        if unchecked:
            logger.warning("%s: draws 0 to %d have no checksums, and are taken as they are", self.directory, unchecked)
        for first, last, digest in self._blocks:
            block = {name: array[:, first:last] for name, array in draws.items() if array.ndim > 1}
            if first != end or _digest_of_block(block) != digest:
                break
            end = last
        if end != drawn or any(array.shape[1:2] != (num_samples,) for array in draws.values()):
            raise CorruptFileError(
                f"{self.directory / ARRAYS_FILE} is damaged: from draw {end} on it does not hold what the run left "
                f"there; remove {self.directory} to start it afresh"
            )
        return arrays

    def write(self, first: int, last: int, leaves: Mapping[str, np.ndarray]) -> None:
        """Write draws ``first`` to ``last`` of every chain: arrays (chain, last - first, ...) by name."""
        if not is_writer():
            return
        # The file of a stopped run lacks statistics that its version did not make.
        kept = {name: leaf for name, leaf in leaves.items() if name in self._arrays or not name.startswith(STATS)}
        for name, leaf in kept.items():
            self._arrays[name][:, first:last] = leaf
        self._blocks.append((first, last, _digest_of_block(kept)))

    def _split_arrays(self) -> dict[str, np.ndarray]:
        return {} if self.predict_on is None else split_arrays(self.predict_on)

    def _map(self) -> dict[str, np.ndarray]:
        """Map the file for writing, with the held-out data in it."""
        self._arrays = map_arrays(self.directory / ARRAYS_FILE, writable=True)
        for name, values in self._split_arrays().items():
            if name not in self._arrays or self._arrays[name].shape != np.shape(values):
                raise CorruptFileError(f"{self.directory / ARRAYS_FILE} lacks {name} of this run; remove the directory")
            self._arrays[name][...] = values
        return self._arrays

    def finish(self, metadata: dict[str, Any]) -> Posterior:
        """Declare the draws complete, and read them."""
        self._arrays = {}
        check_replaceable(self.directory / RECORD_FILE)
        write_json(self.directory / RECORD_FILE, record_of(metadata, self.predict_on, self._settings()))
        seal(self.directory, [ARRAYS_FILE, RECORD_FILE])
        wait_for_all("draws are written")
        return Posterior.load(self.directory, memory_map=True)


def _digest_of_block(leaves: Mapping[str, np.ndarray]) -> bytes:
    """SHA-256 of arrays by name: of what they are called, their dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, leaf in sorted(leaves.items()):
        digest.update(f"{name} {leaf.dtype} {leaf.shape} ".encode())
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.digest()
