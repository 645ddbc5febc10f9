"""Small archives in the publishers' layouts, and a way to give them to TFDS without a network."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

WNIDS = [f"n{10000000 + 37 * i:08d}" for i in range(200)]


def cifar_archive(path: Path, directory: str, files: dict[str, tuple[np.ndarray, np.ndarray]], names) -> None:
    """Write images (n, 32, 32, 3) and labels (n, number of label bytes) as CIFAR's binary files."""
    with tarfile.open(path, "w:gz") as archive:

        def add(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(f"{directory}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))

        for name, (images, labels) in files.items():
            planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
            add(name, np.concatenate([labels.astype(np.uint8), planes], axis=1).tobytes())
        for name, lines in names.items():
            add(name, ("\n".join(lines) + "\n\n").encode())


def idx_file(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


def tiny_imagenet_archive(path: Path, images_per_class: int = 2, num_test: int = 7) -> dict[str, list[bytes]]:
    """Write an archive of Tiny-ImageNet's layout, every third image grey; return each split's JPEG bytes."""
    generator = np.random.default_rng(0)
    count = 0

    def jpeg() -> bytes:
        nonlocal count
        count += 1
        pixels = generator.integers(0, 256, (64, 64) if count % 3 == 0 else (64, 64, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="jpeg")
        return buffer.getvalue()

    content: dict[str, list[bytes]] = {"train": [], "test": []}
    with zipfile.ZipFile(path, "w") as archive:
        root = "tiny-imagenet-200"
        # The publisher's files are in no order that matters: neither are these.
        archive.writestr(f"{root}/wnids.txt", "\n".join(reversed(WNIDS)) + "\n")
        words = [f"{wnid}\tthing {i}, Res {i}" for i, wnid in enumerate(WNIDS)] + ["n00000001\tentity"]
        archive.writestr(f"{root}/words.txt", "\n".join(words) + "\n")
        entries = []
        for wnid in WNIDS:
            for k in range(images_per_class):
                content["train"].append(jpeg())
                # Numbers of one and of two digits: sorted as text they would be in another order.
                entries.append((f"{root}/train/{wnid}/images/{wnid}_{9 + k}.JPEG", content["train"][-1]))
        lines = []
        for i in range(num_test):
            content["test"].append(jpeg())
            entries.append((f"{root}/val/images/val_{8 + i}.JPEG", content["test"][-1]))
            lines.append(f"val_{8 + i}.JPEG\t{WNIDS[(5 * i) % 200]}\t0\t0\t63\t63")
        for name, data in reversed(entries):
            archive.writestr(name, data)
        archive.writestr(f"{root}/val/val_annotations.txt", "\n".join(reversed(lines)) + "\n")
    return content


@pytest.fixture(scope="session")
def archives() -> SimpleNamespace:
    """The writers of archives."""
    return SimpleNamespace(cifar=cifar_archive, idx=idx_file, tiny_imagenet=tiny_imagenet_archive, wnids=WNIDS)


@pytest.fixture
def register() -> Callable[[str, Path, Path], None]:
    """A function that puts archives into TFDS's download cache, under the names it looks for."""
    from etils import epath
    from tensorflow_datasets.core.download import resource

    from pseudocoreset.data.sources.builders import make_builder

    def put(name: str, data_dir: Path, folder: Path) -> None:
        cache = epath.Path(data_dir) / "downloads" / name
        cache.mkdir(parents=True, exist_ok=True)
        for url, info in make_builder(name, data_dir).url_infos.items():
            target = cache / resource.get_dl_fname(url, info.checksum)
            target.write_bytes((folder / info.filename).read_bytes())
            resource.write_info_file(
                url=url, path=target, dataset_name=name, original_fname=info.filename, url_info=info
            )

    return put


@pytest.fixture
def cifar10(tmp_path, register, archives):
    """CIFAR-10 of 50 + 10 images: (data_dir, images, labels)."""
    images, labels = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), np.uint8), np.arange(60) * 7 % 10
    names = [f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]
    parts = {name: (images[10 * k : 10 * k + 10], labels[10 * k : 10 * k + 10, None]) for k, name in enumerate(names)}
    classes = {"batches.meta.txt": [f"thing {k}" for k in range(10)]}
    archives.cifar(tmp_path / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", parts, classes)
    register("cifar10", tmp_path / "tfds", tmp_path)
    return tmp_path / "tfds", images, labels
