"""Tiny-ImageNet-200 as a TFDS builder; imported only when it is needed, because it imports TFDS."""

import pathlib
import re
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.checksums import UrlInfo

__all__ = ["TinyImagenet"]

_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_ARCHIVE = "tiny-imagenet-200.zip"
_ROOT = "tiny-imagenet-200"
_NUM_CLASSES = 200


def _lines(archive: zipfile.ZipFile, name: str) -> list[str]:
    """Lines of a text file of the archive, empty ones left out."""
    lines = archive.read(f"{_ROOT}/{name}").decode().splitlines()
    return [line.strip() for line in lines if line.strip()]


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """Tiny-ImageNet-200: 64 x 64 photographs of 200 classes, 500 training images of each.

    The publisher's labelled validation split is "test" here (the publisher's test images have no labels).
    Labels follow the sorted WordNet ids; class names come from words.txt. An archive in `downloads/manual`
    is taken as it is, with however many images a class it has; a downloaded one is verified.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put {_ARCHIVE} there to spare the download."
    url_infos = {  # noqa: RUF012 (overrides a class property of TFDS)
        _URL: UrlInfo(
            size=248100043,
            checksum="6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
            filename=_ARCHIVE,
        )
    }

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            description="200 classes of ImageNet at 64 x 64, from the course CS231n of Stanford University.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "file_name": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(64, 64, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=_NUM_CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://cs231n.stanford.edu/",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        manual = pathlib.Path(dl_manager.download_dir) / "manual" / _ARCHIVE
        path = manual if manual.exists() else pathlib.Path(dl_manager.download(_URL))
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            wnids = sorted(_lines(archive, "wnids.txt"))
            words = {line[:9]: line[9:].strip() for line in _lines(archive, "words.txt")}
            annotations = [line.split("\t") for line in _lines(archive, "val/val_annotations.txt")]
        if len(wnids) != _NUM_CLASSES:
            raise ValueError(f"{path} lists {len(wnids)} classes in wnids.txt, wanted are {_NUM_CLASSES}")
        self.info.features["label"].names = [words[wnid] for wnid in wnids]
        labels = {wnid: label for label, wnid in enumerate(wnids)}
        pattern = re.compile(rf"{_ROOT}/train/(n\d+)/images/n\d+_(\d+)\.JPEG")
        found = [match for match in map(pattern.fullmatch, members) if match]
        train = sorted((labels[match[1]], int(match[2]), match[0]) for match in found)
        without = set(range(_NUM_CLASSES)) - {label for label, _, _ in train}
        if without:
            raise ValueError(f"{path} has no training image of {len(without)} classes: {wnids[min(without)]}, ...")
        held_out = sorted(
            (int(re.sub(r"\D", "", fields[0])), f"{_ROOT}/val/images/{fields[0]}", labels[fields[1]])
            for fields in annotations
        )
        return {
            "train": self._generate_examples(path, "train", [(name, label) for label, _, name in train]),
            "test": self._generate_examples(path, "test", [(name, label) for _, name, label in held_out]),
        }

    def _generate_examples(
        self, path: pathlib.Path, split: str, members: Sequence[tuple[str, int]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        with zipfile.ZipFile(path) as archive:
            for index, (name, label) in enumerate(members):
                yield (
                    index,
                    {
                        "id": f"{split}_{index:06d}",
                        "file_name": name.rsplit("/", 1)[-1],
                        "image": archive.read(name),
                        "label": label,
                    },
                )
