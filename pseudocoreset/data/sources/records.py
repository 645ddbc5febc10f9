"""Prepared TFDS records: read into arrays that are kept beside them, or left on disk and read as they are asked for."""

import concurrent.futures
import contextlib
import functools
import hashlib
import io
import os
import pathlib
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike

from pseudocoreset.extras import import_extra
from pseudocoreset.files.schema import CorruptFileError
from pseudocoreset.files.storage import open_regular

__all__ = ["Inputs", "StoredImages", "open_split", "read_split"]

_CHUNK = 1000
_MAX_THREADS = 8


class StoredImages:
    """Images of prepared records that stay on disk: an array that reads and decodes what it is indexed with.

    Args:
        builder: a prepared TFDS builder with the feature "image".
        split: "train" or "test".
        positions: (n,) records that are the images, in this order.
        fingerprint: of the records.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, builder: Any, split: str, positions: np.ndarray, fingerprint: str) -> None:
        self._builder, self._split, self._positions = builder, split, positions
        self._records = fingerprint

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, height, width, channels)."""
        return (len(self), *self._builder.info.features["image"].shape)

    @property
    def ndim(self) -> int:
        """Number of axes, 4."""
        return len(self.shape)

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: ArrayLike | slice) -> np.ndarray:
        """Decode images: one, or those of a slice, of integers (k,) or of booleans (n,)."""
        chosen = self._positions[index if isinstance(index, slice) else np.asarray(index)]
        if chosen.ndim == 0:
            with _whole(self._builder):
                return _pixels(self._source[int(chosen)], self.shape[1:])
        images = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        if len(chosen) <= _CHUNK:
            self._fill(images, chosen, 0)
        else:
            _in_threads(functools.partial(self._fill, images, chosen), len(chosen))
        return images

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of them, in memory."""
        return self[:].astype(dtype or self.dtype, copy=False)

    def select(self, index: np.ndarray | slice) -> "StoredImages":
        """Some of the images, left on disk: those of a slice, of integers (k,) or of booleans (n,)."""
        return StoredImages(self._builder, self._split, self._positions[index], self._records)

    @property
    def fingerprint(self) -> str:
        """A hash of the records, and of which of them these are."""
        return hashlib.sha256(self._records.encode() + self._positions.tobytes()).hexdigest()[:16]

    def stream(self, parts: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """Read images part by part, ahead of their use.

        Args:
            parts: of each part the images that it has, (k,) integers in [0, n).

        Returns:
            Arrays (k, height, width, channels). Threads of grain read and decode the next ones meanwhile, each of them
            one array.
        """
        grain = import_extra("grain", "stream", "reading images from disk")
        threads = min(_MAX_THREADS, os.cpu_count() or 1)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        return iter(grain.MapDataset.source(list(parts)).map(self.__getitem__).to_iter_dataset(options))

    @functools.cached_property
    def _source(self) -> Any:
        return _open(self._builder, self._split)

    def _fill(self, images: np.ndarray, positions: np.ndarray, start: int) -> None:
        part = positions[start : start + _CHUNK].tolist()
        with _whole(self._builder):
            for i, example in enumerate(self._source.__getitems__(part), start):
                images[i] = _pixels(example, self.shape[1:])

    def __repr__(self) -> str:
        return f"StoredImages({len(self):,} x {self.shape[1:]} in {self._builder.data_dir})"


Inputs = np.ndarray | StoredImages
"""Inputs as they are stored: in memory, or on disk."""


def open_split(builder: Any, split: str) -> tuple[StoredImages, np.ndarray]:
    """The images of a split left on disk, and their labels; in the order and with the errors of `read_split`.

    The first call goes once through the records, without decoding an image, and leaves the labels and the order in
    the folder of the prepared data as `index_<split>.npz`; it may be deleted at any time.
    """
    path = pathlib.Path(builder.data_dir) / f"index_{split}.npz"
    fingerprint = _fingerprint(builder, split)
    arrays = _read_kept(path, fingerprint, builder, split, "positions")
    if arrays is None:
        arrays = _index(builder, split)
        _keep(path, fingerprint, positions=arrays[0], labels=arrays[1])
    return StoredImages(builder, split, arrays[0], fingerprint), arrays[1]


def read_split(builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read one split of a prepared image dataset.

    The first reading decodes every image (some 0.1 ms each) and leaves the arrays in the folder of the
    prepared data as `decoded_<split>.npz`, with a fingerprint of the records they come from; later ones
    read that file. It may be deleted at any time, and where the folder cannot be written there is none.

    Args:
        builder: a prepared TFDS builder with the features "image" and "label".
        split: "train" or "test".

    Returns:
        uint8 images (n, height, width, channels) and int32 labels (n,), in the order of `id` where the
        dataset has one, in the order of storage otherwise.

    Raises:
        ValueError: the dataset is prepared in a format that cannot be read without TensorFlow.
        CorruptFileError: its records are damaged.
    """
    path = pathlib.Path(builder.data_dir) / f"decoded_{split}.npz"
    fingerprint = _fingerprint(builder, split)
    arrays = _read_kept(path, fingerprint, builder, split, "images")
    if arrays is None:
        positions, labels = _index(builder, split)
        arrays = StoredImages(builder, split, positions, fingerprint)[:], labels
        _keep(path, fingerprint, images=arrays[0], labels=arrays[1])
    return arrays


def _fingerprint(builder: Any, split: str) -> str:
    """Hash what TFDS says of the prepared data, and the names and sizes of the files of a split."""
    with open_regular(pathlib.Path(builder.data_dir) / "dataset_info.json") as file:
        digest = hashlib.sha256(file.read())
    for path in sorted(map(os.fspath, builder.info.splits[split].filepaths)):
        with open_regular(path) as file:
            digest.update(f"{os.path.basename(path)} {os.fstat(file.fileno()).st_size}\n".encode())
    return digest.hexdigest()


def _read_kept(
    path: pathlib.Path, fingerprint: str, builder: Any, split: str, name: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """``name`` ("positions" or "images") and the labels that were kept; None where they are absent or damaged."""
    count, features = builder.info.splits[split].num_examples, builder.info.features
    first = (count,) if name == "positions" else (count, *features["image"].shape)
    shapes = {name: first, "labels": (count,), "fingerprint": ()}
    try:
        with open_regular(path) as file:
            # The shapes before the arrays, which would claim memory of any size.
            if _shapes_in(file) != shapes:
                return None
            file.seek(0)
            # The checksums of the archive are verified while reading.
            with np.load(file, allow_pickle=False) as content:
                if str(content["fingerprint"]) != fingerprint:
                    return None
                values, labels = content[name], content["labels"]
    except (CorruptFileError, OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile):
        # Absent or damaged: the records are still there.
        return None
    is_order = values.dtype == np.int64 and np.array_equal(np.sort(values), np.arange(count))
    if not (is_order if name == "positions" else values.dtype == np.uint8) or labels.dtype != np.int32:
        return None
    are_classes = count == 0 or (labels.min() >= 0 and labels.max() < features["label"].num_classes)
    return (values, labels) if are_classes else None


def _shapes_in(file: IO[bytes]) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays in an archive of NumPy's, by name."""
    shapes = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            with archive.open(member) as content:
                version = np.lib.format.read_magic(content)
                if version != (1, 0) or member.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{member.filename} is not as it was written")
                shape, _, dtype = np.lib.format.read_array_header_1_0(content)
            if dtype.itemsize > 1024:  # a text of any length is one element
                raise ValueError(f"{member.filename} has elements of {dtype.itemsize} bytes")
            shapes[member.filename.removesuffix(".npy")] = shape
    return shapes


@contextlib.contextmanager
def _whole(builder: Any) -> Iterator[None]:
    """``CorruptFileError`` where records cannot be read or decoded."""
    try:
        yield
    except (CorruptFileError, NotImplementedError):
        raise
    # PIL has SyntaxError for a broken PNG, ArrayRecord RuntimeError for whatever it finds.
    except (OSError, ValueError, LookupError, SyntaxError, RuntimeError, EOFError, struct.error, zlib.error) as error:
        raise CorruptFileError(
            f"{builder.data_dir} is damaged ({type(error).__name__}: {error}); remove it to prepare it again"
        ) from error


def _keep(path: pathlib.Path, fingerprint: str, **arrays: np.ndarray) -> None:
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError:
        # A folder that cannot be written, shared data for instance, is no obstacle to reading.
        return
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, fingerprint=np.array(fingerprint), **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError:
        # No space left, most likely.
        os.unlink(temporary)
    except BaseException:
        os.unlink(temporary)
        raise


def _open(builder: Any, split: str) -> Any:
    """Records by their position, images not decoded."""
    import tensorflow_datasets as tfds

    try:
        with _whole(builder):
            return builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise ValueError(
            f"data_dir={str(builder.data_dir_root)!r} holds {builder.name} in a format that cannot be read "
            f"without TensorFlow; choose another data_dir, or remove {builder.data_dir} to prepare it again"
        ) from error


def _index(builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the records in the order of their ids, or as they are stored, and their labels in this order."""
    source = _open(builder, split)
    has_id = "id" in builder.info.features
    labels = np.empty(len(source), np.int32)
    ids = [b""] * len(source)

    def look(start: int) -> None:
        positions = range(start, min(start + _CHUNK, len(source)))
        with _whole(builder):
            for position, example in zip(positions, source.__getitems__(positions), strict=True):
                labels[position] = example["label"]
                if has_id:
                    ids[position] = bytes(example["id"])

    _in_threads(look, len(source))
    order = np.array(sorted(range(len(ids)), key=ids.__getitem__)) if has_id else np.arange(len(source))
    return order, labels[order]


def _pixels(example: Any, shape: tuple[int, ...]) -> np.ndarray:
    from PIL import Image

    mode = "L" if shape[-1] == 1 else "RGB"
    with Image.open(io.BytesIO(example["image"])) as image:
        return np.asarray(image if image.mode == mode else image.convert(mode)).reshape(shape)


def _in_threads(work: Callable[[int], None], size: int) -> None:
    """``work(start)`` for the start of every chunk."""
    with concurrent.futures.ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        # Going through the results raises what went wrong in a thread.
        for _ in pool.map(work, range(0, size, _CHUNK)):
            pass
