"""The TFDS builders of the datasets known here, run and read without TensorFlow.

The official builders leave three things to TensorFlow: unpacking archives, opening the unpacked files and
encoding arrays as PNG. A subclass of each does these with the standard library, numpy and Pillow, and keeps
everything else: addresses, checksums, download cache, splits, features, keys, and the prepared files, which
TFDS reads as its own.
"""

import functools
import gzip
import os
import pathlib
import socket
import tarfile
import tempfile
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from pseudocoreset.files.storage import open_regular

__all__ = ["make_builder", "prepare"]

Example = tuple[int, dict[str, Any]]

_PROBE_SECONDS = 5.0


def _read_cifar(features: Any, split_prefix: str, filepaths: Iterable[str]) -> Iterator[Example]:
    """Read CIFAR's binary files: label bytes, then the red, green and blue planes of 32 x 32."""
    from PIL import Image

    label_keys = ("coarse_label", "label") if "coarse_label" in features else ("label",)
    width = len(label_keys) + 3 * 32 * 32
    index = 0
    for path in filepaths:
        data = np.fromfile(path, np.uint8)
        if data.size % width:
            raise ValueError(f"{path} has {data.size} bytes, no multiple of the {width} of one record")
        for record in data.reshape(-1, width):
            planes = record[len(label_keys) :].reshape(3, 32, 32)
            example: dict[str, Any] = {key: int(record[i]) for i, key in enumerate(label_keys)}
            example["id"] = f"{split_prefix}{index:05d}"
            example["image"] = Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))
            yield index, example
            index += 1


def _read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzipped or not."""
    data = pathlib.Path(path).read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is no IDX file of unsigned bytes: it starts with {data[:4]!r}")
    num_axes = data[3]
    shape = tuple(int(size) for size in np.frombuffer(data, ">i4", num_axes, offset=4))
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * num_axes)
    if values.size != np.prod(shape):
        raise ValueError(f"{path} has {values.size} values, its header says {shape}")
    return values.reshape(shape)


def _read_mnist(features: Any, num_examples: int, data_path: str, label_path: str) -> Iterator[Example]:
    """Read MNIST's pair of IDX files; their headers know the number of examples."""
    from PIL import Image

    del features, num_examples
    images, labels = _read_idx(data_path), _read_idx(label_path)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield index, {"image": Image.fromarray(image), "label": int(label)}


def _read_svhn(features: Any, split_prefix: str, filepath: str) -> Iterator[Example]:
    """Read SVHN's Matlab file: X (32, 32, 3, n), y (n, 1) with the digit 0 as 10."""
    import scipy.io
    from PIL import Image

    del features
    data = scipy.io.loadmat(os.fspath(filepath))
    images, labels = np.moveaxis(data["X"], -1, 0), data["y"][:, 0]
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield (
            index,
            {
                "image": Image.fromarray(np.ascontiguousarray(image)),
                "label": int(label) % 10,
                "id": f"{split_prefix}{index:06d}",
            },
        )


_READERS: dict[str, Callable[..., Iterator[Example]]] = {
    "cifar10": _read_cifar,
    "cifar100": _read_cifar,
    "mnist": _read_mnist,
    "fashion_mnist": _read_mnist,
    "svhn_cropped": _read_svhn,
}


class _Downloads:
    """TFDS's download manager with the unpacking done by the standard library."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    def download(self, urls: Any) -> Any:
        return self._manager.download(urls)

    def download_and_extract(self, urls: Any) -> Any:
        paths = self._manager.download(urls)
        if isinstance(paths, dict):
            return {key: self._extract(pathlib.Path(path)) for key, path in paths.items()}
        return self._extract(pathlib.Path(paths))

    def _extract(self, path: pathlib.Path) -> pathlib.Path:
        # Single gzipped files stay as they are: the readers here open them.
        if not path.name.endswith(".tar.gz"):
            return path
        extracted = pathlib.Path(self._manager.download_dir) / "extracted" / f"TAR_GZ.{path.name}"
        if not extracted.exists():
            extracted.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=extracted.parent) as temporary:
                content = pathlib.Path(temporary) / "content"
                with tarfile.open(path) as archive:
                    archive.extractall(content, filter="data")
                content.rename(extracted)
        return extracted


@functools.cache
def _builder_class(name: str) -> Any:
    import tensorflow_datasets as tfds

    if name == "tiny_imagenet":
        from pseudocoreset.data.sources.tiny_imagenet import TinyImagenet

        return TinyImagenet
    official = tfds.builder_cls(name)
    read = _READERS[name]

    class Builder(official, skip_registration=True):  # type: ignore[call-arg, misc, valid-type]
        # TFDS looks these up beside the module of the class, which is this one.
        get_metadata = official.get_metadata
        url_infos = official.url_infos

        def _split_generators(self, dl_manager: Any) -> Any:
            return super()._split_generators(_Downloads(dl_manager))

        def _generate_examples(self, *args: Any, **kwargs: Any) -> Iterator[Example]:
            return read(self.info.features, *args, **kwargs)

    Builder.name = name
    return Builder


def make_builder(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    """Make the TFDS builder of a dataset, one that needs no TensorFlow.

    Args:
        name: name in TFDS, or "tiny_imagenet".
        data_dir: TFDS's data_dir; None means TFDS's default.

    Returns:
        A `tfds.core.GeneratorBasedBuilder`.

    Raises:
        CorruptFileError: a directory, a pipe or a device is in the place of a file of prepared data.
    """
    directory = None if data_dir is None else os.fspath(pathlib.Path(data_dir).expanduser())
    for record in [] if directory is None else pathlib.Path(directory).glob(f"{name}/*/*.json"):
        # TFDS would wait for ever for what a pipe in their place may say.
        with open_regular(record):
            pass
    return _builder_class(name)(data_dir=directory)


def _missing_urls(builder: Any) -> dict[str, str]:
    """Addresses, with their file names, that TFDS would have to fetch."""
    from tensorflow_datasets.core.download import resource

    downloads = pathlib.Path(builder.data_dir_root) / "downloads"
    missing = {}
    for url, info in builder.url_infos.items():
        filename = info.filename or url.rsplit("/", 1)[-1]
        cached = resource.get_dl_fname(url, info.checksum)
        if not (
            (downloads / "manual" / filename).exists()
            or any(
                (folder / cached).exists() and (folder / f"{cached}.INFO").exists()
                for folder in (downloads / builder.name, downloads)
            )
        ):
            missing[url] = filename
    return missing


def _unreachable(url: str) -> str | None:
    """Return why no connection to the host of an address (or to its proxy) can be opened; None if one can."""
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    outcome: list[str | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=_PROBE_SECONDS).close()
        except OSError as error:
            outcome.append(f"{host}: {error}")
        else:
            outcome.append(None)

    # In a thread, because looking up a name has no timeout of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS + 1.0)
    return outcome[0] if outcome else f"{host}: no answer in {_PROBE_SECONDS:.0f} s"


def prepare(builder: Any, *, download: bool, call: str) -> None:
    """Make sure that a builder's data are prepared, in the ArrayRecord format.

    Args:
        builder: from `make_builder`.
        download: whether to download and prepare what is not there.
        call: the call that prepares, for error messages.

    Raises:
        FileNotFoundError: not prepared, and `download` is False.
        ConnectionError: not prepared, files are missing, and their host cannot be reached.
    """
    if (pathlib.Path(builder.data_dir) / "dataset_info.json").exists():
        return
    missing = _missing_urls(builder)
    root = pathlib.Path(builder.data_dir_root)
    state = f"{builder.name} is not prepared in data_dir={str(root)!r} (no {builder.data_dir})"
    way = f"its archives are here: call {call}"
    if missing:
        way = f"call {call} on a machine with internet access"
        source = os.path.dirname(next(iter(missing)))
        way += f" and copy data_dir, or put {', '.join(missing.values())} from {source}/ into "
        way += f"{root / 'downloads' / 'manual'} and make that call here"
    if not download:
        raise FileNotFoundError(f"{state} and download=False forbids to prepare it; {way}")
    for url in missing:
        reason = _unreachable(url)
        if reason is not None:
            raise ConnectionError(f"{state} and {url} cannot be fetched ({reason}); {way}")
    builder.download_and_prepare(file_format="array_record")
