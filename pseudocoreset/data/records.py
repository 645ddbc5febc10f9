"""Read prepared TFDS records into arrays, and keep the decoded arrays beside them."""

import concurrent.futures
import hashlib
import io
import os
import pathlib
import tempfile
import zipfile
from typing import Any

import numpy as np

__all__ = ["read_split"]

_CHUNK = 1000
_MAX_THREADS = 8


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
    """
    path = pathlib.Path(builder.data_dir) / f"decoded_{split}.npz"
    fingerprint = _fingerprint(builder, split)
    arrays = _read_decoded(path, fingerprint)
    if arrays is None:
        arrays = _decode(builder, split)
        _write_decoded(path, fingerprint, *arrays)
    return arrays


def _fingerprint(builder: Any, split: str) -> str:
    """Hash what TFDS says of the prepared data, and the names and sizes of the files of a split."""
    digest = hashlib.sha256((pathlib.Path(builder.data_dir) / "dataset_info.json").read_bytes())
    for path in sorted(map(os.fspath, builder.info.splits[split].filepaths)):
        digest.update(f"{os.path.basename(path)} {os.path.getsize(path)}\n".encode())
    return digest.hexdigest()


def _read_decoded(path: pathlib.Path, fingerprint: str) -> tuple[np.ndarray, np.ndarray] | None:
    try:
        # The checksums of the archive are verified while reading.
        with np.load(path, allow_pickle=False) as content:
            if str(content["fingerprint"]) != fingerprint:
                return None
            return content["images"], content["labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        # Absent or damaged: the records are still there.
        return None


def _write_decoded(path: pathlib.Path, fingerprint: str, images: np.ndarray, labels: np.ndarray) -> None:
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError:
        # A folder that cannot be written, shared data for instance, is no obstacle to reading.
        return
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, images=images, labels=labels, fingerprint=np.array(fingerprint))
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


def _decode(builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    import tensorflow_datasets as tfds
    from PIL import Image

    try:
        source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise ValueError(
            f"data_dir={str(builder.data_dir_root)!r} holds {builder.name} in a format that cannot be read "
            f"without TensorFlow; choose another data_dir, or remove {builder.data_dir} to prepare it again"
        ) from error
    shape = builder.info.features["image"].shape
    mode = "L" if shape[-1] == 1 else "RGB"
    has_id = "id" in builder.info.features
    images = np.empty((len(source), *shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    ids = [b""] * len(source)

    def decode(start: int) -> None:
        positions = range(start, min(start + _CHUNK, len(source)))
        for position, example in zip(positions, source.__getitems__(positions), strict=True):
            with Image.open(io.BytesIO(example["image"])) as image:
                pixels = np.asarray(image if image.mode == mode else image.convert(mode))
            images[position] = pixels.reshape(shape)
            labels[position] = example["label"]
            if has_id:
                ids[position] = bytes(example["id"])

    with concurrent.futures.ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        # Going through the results raises what went wrong in a thread.
        for _ in pool.map(decode, range(0, len(source), _CHUNK)):
            pass
    if has_id:
        order = np.array(sorted(range(len(ids)), key=ids.__getitem__))
        images, labels = images[order], labels[order]
    return images, labels
