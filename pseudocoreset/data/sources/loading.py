"""Load datasets by name: scikit-learn's digits, and image sets through tensorflow-datasets."""

import dataclasses
import os

import numpy as np

from pseudocoreset.arguments import checked
from pseudocoreset.data.dataset import Dataset, Split
from pseudocoreset.data.preprocessing import channel_moments, fit_preprocessing
from pseudocoreset.data.sources.builders import make_builder, prepare
from pseudocoreset.data.sources.records import open_split, read_split
from pseudocoreset.extras import check_installed, import_extra

__all__ = ["DATASET_NAMES", "load_dataset"]


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where a dataset is in TFDS and how the literature normalises it."""

    tfds_name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


_SOURCES = {
    "mnist": _Source("mnist", (0.1307,), (0.3081,)),
    "fashion_mnist": _Source("fashion_mnist", (0.2861,), (0.3530,)),
    "svhn": _Source("svhn_cropped", (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "cifar10": _Source("cifar10", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": _Source("cifar100", (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny_imagenet": _Source("tiny_imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

DATASET_NAMES = ("digits", *_SOURCES)
"""What `load_dataset` knows."""


@checked
def load_dataset(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
    normalize: bool = True,
    zca: bool = False,
    stream: bool = False,
) -> Dataset:
    """Load a dataset by name, its images as uint8.

    "digits" comes with scikit-learn: 1,797 images of 8 x 8 x 1 with values 0 to 16; every fifth image of each
    class, in scikit-learn's order, is test. The others come from tensorflow-datasets and are downloaded and
    prepared at the first use: "mnist", "fashion_mnist", "svhn" (1.5 GB, for TFDS's extra split comes along),
    "cifar10", "cifar100", "tiny_imagenet" (the publisher's labelled validation split is test).

    The order is always the same: by TFDS's `id`, which is the publisher's order; for "mnist" and
    "fashion_mnist", which have no ids, the order in which TFDS stores the records. Decoded images are kept
    beside the prepared data (`decoded_train.npz`), so that only the first call takes long.

    Args:
        name: one of `DATASET_NAMES`.
        data_dir: TFDS's data_dir; None means TFDS's default, the environment variable TFDS_DATA_DIR or
            ~/tensorflow_datasets. Archives fetched by hand go to data_dir/downloads/manual.
        download: whether to download and prepare what is not prepared in data_dir.
        normalize: subtract the mean and divide by the deviation of every channel, the constants of the
            literature (for digits the moments of its training set).
        zca: whiten, fitted on the training images (see `fit_preprocessing` for the cost).
        stream: leave the training images on disk, for data larger than memory. `train_experts` and `sample` with
            minibatches (SGHMC, SGLD) read them as they go, ahead of their use; `train.subset(...).in_memory()` has some
            in memory, where all are needed. Test images are in memory.

    Returns:
        The dataset.

    Raises:
        ValueError: an unknown name, `stream` with `zca` or with digits, or data_dir holds the dataset in a format
            that TensorFlow alone can read.
        FileNotFoundError: not prepared in data_dir, and `download` is False.
        ConnectionError: not prepared in data_dir, and the publisher cannot be reached.
    """
    if name not in DATASET_NAMES:
        raise ValueError(f"name must be one of {', '.join(DATASET_NAMES)}, got {name!r}")
    if stream and (zca or name == "digits"):
        raise ValueError(f"stream=True leaves the training images on disk; {'zca' if zca else name} has them in memory")
    if name == "digits":
        return _load_digits(normalize=normalize, zca=zca)
    if stream:
        check_installed("grain", "stream", f"load_dataset({name!r}, stream=True)")
    source = _SOURCES[name]
    builder = make_builder(source.tfds_name, data_dir)
    where = "" if data_dir is None else f", data_dir={os.fspath(data_dir)!r}"
    prepare(builder, download=download, call=f"load_dataset({name!r}{where})")
    raw, y = open_split(builder, "train") if stream else read_split(builder, "train")
    test = read_split(builder, "test")
    mean, std = (source.mean, source.std) if normalize else (None, None)
    preprocessing = fit_preprocessing(raw, scale=1.0 / 255.0, mean=mean, std=std, zca=zca)
    class_names = tuple(builder.info.features["label"].names)
    return Dataset(
        name,
        Split(raw, y, preprocessing),
        Split(*test, preprocessing),
        class_names,
        preprocessing,
        len(class_names),
    )


def _load_digits(*, normalize: bool, zca: bool) -> Dataset:
    bunch = import_extra("sklearn.datasets", "digits", "load_dataset('digits')").load_digits()
    images = bunch.images.astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    held_out = np.zeros(len(labels), bool)
    for label in range(10):
        held_out[np.flatnonzero(labels == label)[4::5]] = True
    scale = 1.0 / 16.0
    mean, std = channel_moments(images[~held_out], scale) if normalize else (None, None)
    preprocessing = fit_preprocessing(images[~held_out], scale=scale, mean=mean, std=std, zca=zca)
    train = Split(images[~held_out], labels[~held_out], preprocessing)
    test = Split(images[held_out], labels[held_out], preprocessing)
    return Dataset("digits", train, test, tuple("0123456789"), preprocessing, 10)
