"""Directories of safetensors and JSON that are complete or absent, and verified before they are trusted.

Everything that this package saves is written by ``atomic_directory``: into a temporary sibling, each file
synced to disk, a manifest with sizes and SHA-256 sums last, then one rename. A reader checks the manifest first. Of
several processes (``jax.distributed``) the first alone writes; what is called here does nothing in the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pseudocoreset.meshes import is_writer

__all__ = [
    "CorruptFileError",
    "atomic_directory",
    "create_arrays",
    "map_arrays",
    "read_arrays",
    "read_json",
    "seal",
    "verify",
    "write_arrays",
    "write_json",
]

MANIFEST = "manifest.json"


class CorruptFileError(RuntimeError):
    """Something saved is missing, truncated or altered."""


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A temporary directory to fill; it becomes ``path`` when the block ends without an exception.

    An existing ``path`` is replaced whole. A process killed at any moment leaves the old directory, the new one,
    or (between two renames) the old one beside it under ``.<name>.replaced``, never a mixture.
    """
    target = pathlib.Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    if not is_writer():
        yield temporary
        return
    replaced = target.with_name(f".{target.name}.replaced")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        seal(temporary, [str(p.relative_to(temporary)) for p in sorted(temporary.rglob("*")) if p.is_file()])
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():
            target.rename(replaced)
        temporary.rename(target)
        _sync(target.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def seal(directory: pathlib.Path, names: Iterable[str]) -> None:
    """Sync these files of a directory to disk, then write the manifest of them, which declares them whole."""
    if not is_writer():
        return
    manifest = {}
    for name in names:
        file = directory / name
        _sync(file)
        manifest[name] = {"bytes": file.stat().st_size, "sha256": _digest(file)}
    unsealed = directory / f"{MANIFEST}.partial"
    write_json(unsealed, manifest)
    _sync(unsealed)
    unsealed.rename(directory / MANIFEST)
    _sync(directory)


def verify(path: str | os.PathLike[str]) -> pathlib.Path:
    """The directory itself, after every file in its manifest was found whole.

    Raises:
        FileNotFoundError: if there is no such directory.
        CorruptFileError: if a file is missing, truncated or altered, or was never finished.
    """
    directory = pathlib.Path(path)
    if not directory.is_dir():
        raise FileNotFoundError(f"there is no directory {directory}")
    if not (directory / MANIFEST).is_file():
        raise CorruptFileError(f"{directory} has no {MANIFEST}; it was not written by this package, or not completely")
    for name, expected in read_json(directory / MANIFEST).items():
        file = directory / name
        if not file.is_file():
            raise CorruptFileError(f"{file} is missing; restore it or make {directory} again")
        if file.stat().st_size != expected["bytes"] or _digest(file) != expected["sha256"]:
            raise CorruptFileError(f"{file} is damaged (size or checksum differs from {MANIFEST}); make it again")
    return directory


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """JSON, indented, with a final newline."""
    if is_writer():
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The content of a JSON file, or ``CorruptFileError``."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFileError(f"{path} is not valid JSON: {error}") from error


def write_arrays(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """A safetensors file of named arrays."""
    if is_writer():
        # Not ascontiguousarray, which makes a vector of a scalar.
        save_file({name: np.array(array, order="C") for name, array in arrays.items()}, path)


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, or ``CorruptFileError``."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CorruptFileError(f"{path} cannot be read as safetensors: {error}") from error


# Names of element types in a safetensors header.
ELEMENT_TYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "I16": "<i2", "U16": "<u2", "F16": "<f2", "I32": "<i4", "U32": "<u4",
    "F32": "<f4", "F64": "<f8", "I64": "<i8", "U64": "<u8",
}  # fmt: skip


def create_arrays(path: pathlib.Path, shapes: Mapping[str, Any]) -> None:
    """A safetensors file of arrays of zeros, all its space on the disk taken, to be filled by ``map_arrays``.

    Args:
        path: file to make or replace.
        shapes: ``{name: anything with shape and dtype}``.

    Raises:
        OSError: if the disk has no room.
    """
    names = {np.dtype(code): name for name, code in ELEMENT_TYPES.items()}
    header: dict[str, Any] = {}
    end = 0
    # The largest elements first keeps every array aligned.
    for name, item in sorted(shapes.items(), key=lambda pair: (-np.dtype(pair[1].dtype).itemsize, pair[0])):
        dtype = np.dtype(item.dtype)
        start, end = end, end + math.prod(item.shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": list(item.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        size = 8 + len(text) + end
        try:
            # Else a full disk would end the process at some later write through the map.
            os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else file.truncate(size)
        except OSError as error:
            free = shutil.disk_usage(path.parent).free
            path.unlink()
            raise OSError(
                error.errno,
                f"{path} would take {end / 2**30:.1f} GiB, its disk has {free / 2**30:.1f} GiB free ({error.strerror})",
            ) from error
        os.fsync(file.fileno())


def map_arrays(path: pathlib.Path, *, writable: bool = False) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file as memory maps: read from disk where they are used.

    Raises:
        CorruptFileError: if the file is not whole.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        arrays: dict[str, np.ndarray] = {}
        for name, item in header.items():
            dtype, shape = np.dtype(ELEMENT_TYPES[item["dtype"]]), tuple(item["shape"])
            if math.prod(shape) == 0:  # nothing to map
                arrays[name] = np.zeros(shape, dtype)
                continue
            offset = 8 + length + item["data_offsets"][0]
            arrays[name] = np.memmap(path, dtype, "r+" if writable else "r", offset, shape)
        return arrays
    except (OSError, ValueError, KeyError) as error:
        raise CorruptFileError(f"{path} cannot be read as safetensors: {error}") from error
