"""Directories of safetensors and JSON that are complete or absent, and verified before they are trusted.

Everything that this package saves is written by ``atomic_directory``: into a temporary sibling, each file
synced to disk, a manifest with sizes and SHA-256 sums last, then one rename. A reader checks the manifest first. Of
several processes (``jax.distributed``) the first alone writes; what is called here does nothing in the others.

Readers open regular files alone (a pipe would keep them waiting, a device never ends), compare sizes before they
allocate, and answer whatever is wrong with ``CorruptFileError``.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import pathlib
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from pseudocoreset.compute.processes import is_writer
from pseudocoreset.files.schema import COUNT, TEXT, CorruptFileError, check_record, listing

__all__ = [
    "CorruptFileError",
    "array_shapes",
    "atomic_directory",
    "check_replaceable",
    "create_arrays",
    "map_arrays",
    "open_regular",
    "read_arrays",
    "read_json",
    "seal",
    "verify",
    "write_arrays",
    "write_json",
]

MANIFEST = "manifest.json"
MOST_JSON_BYTES = 256 * 2**20
MOST_HEADER_BYTES = 100 * 2**20  # the limit of the safetensors format


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_regular(path: str | os.PathLike[str], *, writable: bool = False) -> Iterator[io.BufferedReader]:
    """A regular file, opened to be read from its beginning.

    Raises:
        CorruptFileError: if it is absent, or a directory, a pipe, a device or a socket.
    """
    # Looked at before it is opened: opening a device can do something. The flag is for what changes in between.
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        _check_regular(os.stat(path), path)
        descriptor = os.open(path, flags)
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CorruptFileError(f"{os.fspath(path)} cannot be opened: {reason}") from error
    with os.fdopen(descriptor, "r+b" if writable else "rb") as file:
        _check_regular(os.fstat(descriptor), path)
        yield cast(io.BufferedReader, file)


def _check_regular(found: os.stat_result, path: str | os.PathLike[str]) -> None:
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    if not stat.S_ISREG(found.st_mode):
        kind = kinds.get(stat.S_IFMT(found.st_mode), "something else")
        raise CorruptFileError(f"{os.fspath(path)} must be a file; it is {kind}")


def check_replaceable(path: pathlib.Path) -> None:
    """Nothing, if a file may be written here: there is none, or a regular one.

    Raises:
        CorruptFileError: if a directory, a pipe or a device is in its place.
    """
    if os.path.lexists(path):
        with contextlib.suppress(FileNotFoundError):  # a link that leads nowhere
            _check_regular(os.stat(path), path)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A temporary directory to fill; it becomes ``path`` when the block ends without an exception.

    An existing ``path`` is replaced whole. A process killed at any moment leaves the old directory, the new one,
    or (between two renames) the old one beside it under ``.<name>.replaced``, never a mixture.
    """
    target = pathlib.Path(path)
    if not target.name:
        raise ValueError(f"path must name a folder to make; got {os.fspath(path)!r}")
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
        with open_regular(file) as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        manifest[name] = {"bytes": file.stat().st_size, "sha256": digest}
    unsealed = directory / f"{MANIFEST}.partial"
    write_json(unsealed, manifest)
    _sync(unsealed)
    unsealed.rename(directory / MANIFEST)
    _sync(directory)


def verify(path: str | os.PathLike[str], *names: str) -> pathlib.Path:
    """The directory itself, after every file in its manifest was found whole, these among them.

    Raises:
        FileNotFoundError: if there is no such directory.
        CorruptFileError: if a file is missing, truncated or altered, or was never finished.
    """
    directory = pathlib.Path(path)
    if not directory.is_dir():
        raise FileNotFoundError(f"there is no directory {directory}")
    if not os.path.lexists(directory / MANIFEST):
        deeper = next(directory.glob(f"*/{MANIFEST}"), None)
        hint = "" if deeper is None else f" (one directory deeper, {deeper.parent} has one)"
        raise CorruptFileError(
            f"{directory} has no {MANIFEST}{hint}; it was not written by this package, or not completely"
        )
    manifest = read_json(directory / MANIFEST)
    for name in names:
        if name not in manifest:
            raise CorruptFileError(f"{directory / MANIFEST} does not name {name}; {directory} holds something else")
    for name, expected in manifest.items():
        check_record(expected, {"bytes": COUNT, "sha256": TEXT}, f"{directory / MANIFEST}, {name!r}")
        parts = pathlib.PurePath(name)
        if not name or parts.is_absolute() or ".." in parts.parts:
            raise CorruptFileError(f"{directory / MANIFEST} names {name!r}, which is no file of {directory}")
        file = directory / name
        if not os.path.lexists(file):
            raise CorruptFileError(f"{file} is missing; restore it or make {directory} again")
        with open_regular(file) as content:
            is_whole = os.fstat(content.fileno()).st_size == expected["bytes"]
            is_whole = is_whole and hashlib.file_digest(content, "sha256").hexdigest() == expected["sha256"]
        if not is_whole:
            raise CorruptFileError(f"{file} is damaged (size or checksum differs from {MANIFEST}); make it again")
    return directory


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """JSON, indented, with a final newline; numbers and arrays of NumPy are written as JSON's."""
    if is_writer():
        text = json.dumps(content, indent=2, ensure_ascii=False, default=_plain)
        path.write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"a record for JSON has a {type(value).__name__}: {value!r}")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file, or ``CorruptFileError``."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MOST_JSON_BYTES:
            raise CorruptFileError(f"{path} has {size:,} bytes, more than a record of this package; it is another file")
        content = file.read(size)
    return check_record(_parsed(content, path), {}, path)


def _parsed(content: bytes, path: pathlib.Path) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CorruptFileError(f"{path} is not valid JSON: {reason}") from error


def write_arrays(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """A safetensors file of named arrays."""
    if is_writer():
        # Not ascontiguousarray, which makes a vector of a scalar.
        save_file({name: np.array(array, order="C") for name, array in arrays.items()}, path)


# Names of element types in a safetensors header.
ELEMENT_TYPES = {
    "BOOL": np.dtype("?"), "U8": np.dtype("u1"), "I8": np.dtype("i1"), "I16": np.dtype("<i2"), "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16), "I32": np.dtype("<i4"), "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "I64": np.dtype("<i8"), "U64": np.dtype("<u8"),
    "C64": np.dtype("<c8"),
}  # fmt: skip


class _Stored(NamedTuple):
    """Where an array is in a file; with ``shape`` and ``dtype`` like one."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int


def _header(file: io.BufferedReader, path: pathlib.Path) -> dict[str, _Stored]:
    """The arrays of a safetensors file, which fill it without gap or overlap: so none claims more than the file has."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, MOST_HEADER_BYTES):
        raise CorruptFileError(f"{path} cannot be read as safetensors: the header does not fit into the file")
    header = check_record(_parsed(file.read(length), path), {}, f"{path}, header")
    header.pop("__metadata__", None)
    arrays: dict[str, _Stored] = {}
    spans = []
    for name, item in header.items():
        place = f"{path}, array {name!r}"
        check_record(item, {"dtype": TEXT, "shape": listing(COUNT), "data_offsets": listing(COUNT)}, place)
        if item["dtype"] not in ELEMENT_TYPES or len(item["data_offsets"]) != 2 or len(item["shape"]) > 32:
            raise CorruptFileError(f"{place} has an unknown dtype, or a header of another form: {item}")
        dtype, (start, end) = ELEMENT_TYPES[item["dtype"]], map(int, item["data_offsets"])
        shape = tuple(map(int, item["shape"]))
        if math.prod(filter(None, shape)) * dtype.itemsize >= 2**63:  # of an empty array too
            raise CorruptFileError(f"{place} has the shape {shape}, which no array has")
        if end - start != math.prod(shape) * dtype.itemsize:
            raise CorruptFileError(f"{place} has {end - start} bytes, which is not its shape {shape} of {dtype}")
        arrays[name] = _Stored(shape, dtype, 8 + length + start)
        spans.append((start, end))
    position = 0
    for start, end in sorted(spans):
        if start != position:
            raise CorruptFileError(f"{path} has arrays that overlap or leave a gap")
        position = end
    if 8 + length + position != size:
        raise CorruptFileError(f"{path} has {size:,} bytes; its arrays end at {8 + length + position:,}")
    return arrays


def array_shapes(path: pathlib.Path) -> dict[str, _Stored]:
    """Shapes and dtypes of the arrays of a safetensors file, or ``CorruptFileError``; reads its header alone."""
    with open_regular(path) as file:
        return _header(file, path)


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, or ``CorruptFileError``."""
    arrays = {}
    with open_regular(path) as file:
        for name, stored in _header(file, path).items():
            array = np.empty(stored.shape, stored.dtype)
            file.seek(stored.offset)
            if file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
                raise CorruptFileError(f"{path} ended while it was read")
            arrays[name] = _checked_flags(array, name, path)
    return arrays


def _checked_flags(array: np.ndarray, name: str, path: pathlib.Path) -> np.ndarray:
    """The array; bytes that are neither 0 nor 1 are no booleans, and NumPy would count them both ways."""
    if array.dtype == bool and array.size and array.view(np.uint8).max() > 1:
        raise CorruptFileError(f"{path}, array {name!r} has bytes that are neither true nor false")
    return array


def create_arrays(path: pathlib.Path, shapes: Mapping[str, Any]) -> None:
    """A safetensors file of arrays of zeros, all its space on the disk taken, to be filled by ``map_arrays``.

    Args:
        path: file to make or replace.
        shapes: ``{name: anything with shape and dtype}``.

    Raises:
        OSError: if the disk has no room.
    """
    check_replaceable(path)
    names = {dtype: name for name, dtype in ELEMENT_TYPES.items()}
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
    arrays: dict[str, np.ndarray] = {}
    with open_regular(path, writable=writable) as file:
        for name, stored in _header(file, path).items():
            if math.prod(stored.shape) == 0:  # nothing to map
                arrays[name] = np.zeros(stored.shape, stored.dtype)
                continue
            mapped = np.memmap(path, stored.dtype, "r+" if writable else "r", stored.offset, stored.shape)
            arrays[name] = mapped if writable else _checked_flags(mapped, name, path)
    return arrays
