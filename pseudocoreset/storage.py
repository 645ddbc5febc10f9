"""Directories of safetensors and JSON that are complete or absent, and verified before they are trusted.

Everything that this package saves is written by ``atomic_directory``: into a temporary sibling, each file
synced to disk, a manifest with sizes and SHA-256 sums last, then one rename. A reader checks the manifest first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

__all__ = [
    "CorruptFileError",
    "atomic_directory",
    "read_arrays",
    "read_json",
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
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    replaced = target.with_name(f".{target.name}.replaced")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        for file in files:
            _sync(file)
        manifest = {
            str(file.relative_to(temporary)): {"bytes": file.stat().st_size, "sha256": _digest(file)} for file in files
        }
        write_json(temporary / MANIFEST, manifest)
        _sync(temporary / MANIFEST)
        _sync(temporary)
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():
            target.rename(replaced)
        temporary.rename(target)
        _sync(target.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The content of a JSON file, or ``CorruptFileError``."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFileError(f"{path} is not valid JSON: {error}") from error


def write_arrays(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """A safetensors file of named arrays."""
    # Not ascontiguousarray, which makes a vector of a scalar.
    save_file({name: np.array(array, order="C") for name, array in arrays.items()}, path)


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, or ``CorruptFileError``."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CorruptFileError(f"{path} cannot be read as safetensors: {error}") from error
