import contextlib
import http.server
import io
import json
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import scipy.io
from PIL import Image

from pseudocoreset.data import load_dataset


def random_images(seed: int, count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def test_cifar10_is_prepared_by_the_official_builder_and_read_back_bit_for_bit(cifar10):
    data_dir, images, labels = cifar10
    data = load_dataset("cifar10", data_dir=data_dir)
    np.testing.assert_array_equal(data.train.raw, images[:50])
    np.testing.assert_array_equal(data.train.y, labels[:50])
    np.testing.assert_array_equal(data.test.raw, images[50:])
    np.testing.assert_array_equal(data.test.y, labels[50:])
    assert data.class_names == tuple(f"thing {k}" for k in range(10))
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2023, 0.1994, 0.2010])
    np.testing.assert_allclose(data.test.x, (images[50:] / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    assert "tensorflow" not in sys.modules


def test_what_was_prepared_is_a_dataset_of_tfds_itself(cifar10):
    import tensorflow_datasets as tfds

    data_dir, images, labels = cifar10
    load_dataset("cifar10", data_dir=data_dir)
    source = tfds.data_source("cifar10", split="test", data_dir=data_dir, download=False)
    assert len(source) == 10
    by_id = {bytes(example["id"]).decode(): example for example in source}
    for k in range(10):
        np.testing.assert_array_equal(by_id[f"test_{k:05d}"]["image"], images[50 + k])
        assert by_id[f"test_{k:05d}"]["label"] == labels[50 + k]


def test_prepared_data_are_read_without_network_and_without_archives(cifar10):
    data_dir, images, _ = cifar10
    load_dataset("cifar10", data_dir=data_dir)
    shutil.rmtree(data_dir / "downloads")
    np.testing.assert_array_equal(load_dataset("cifar10", data_dir=data_dir, download=False).train.raw, images[:50])


def test_decoded_images_are_reused_and_a_stale_or_damaged_copy_is_not(cifar10):
    data_dir, images, labels = cifar10
    load_dataset("cifar10", data_dir=data_dir)
    (folder,) = (data_dir / "cifar10").iterdir()
    copy = folder / "decoded_train.npz"
    with np.load(copy) as content:
        parts = dict(content)

    # That the copy is read shows in a mark put on it.
    marked = parts["images"].copy()
    marked[0] = 0
    np.savez(copy, **{**parts, "images": marked})
    assert load_dataset("cifar10", data_dir=data_dir).train.raw[0].max() == 0

    np.savez(copy, **{**parts, "images": marked, "fingerprint": np.array("of other records")})
    np.testing.assert_array_equal(load_dataset("cifar10", data_dir=data_dir).train.raw, images[:50])

    damaged = bytearray(copy.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    copy.write_bytes(bytes(damaged))
    np.testing.assert_array_equal(load_dataset("cifar10", data_dir=data_dir).train.raw, images[:50])

    copy.write_bytes(b"")
    data = load_dataset("cifar10", data_dir=data_dir)
    np.testing.assert_array_equal(data.train.raw, images[:50])
    np.testing.assert_array_equal(data.train.y, labels[:50])
    assert sorted(path.name for path in folder.glob("*decoded*")) == ["decoded_test.npz", "decoded_train.npz"]


def test_archives_at_hand_are_named_in_the_error_when_preparing_is_forbidden(cifar10):
    with pytest.raises(FileNotFoundError, match=re.escape("its archives are here: call load_dataset('cifar10'")):
        load_dataset("cifar10", data_dir=cifar10[0], download=False)


def test_data_prepared_in_a_format_of_tensorflow_are_refused(cifar10):
    data_dir = cifar10[0]
    load_dataset("cifar10", data_dir=data_dir)
    (folder,) = (data_dir / "cifar10").iterdir()
    for path in folder.glob("decoded_*"):
        path.unlink()
    for path in folder.glob("*.array_record*"):
        path.rename(folder / path.name.replace("array_record", "tfrecord"))
    info = json.loads((folder / "dataset_info.json").read_text())
    assert info["fileFormat"] == "array_record"
    text = (folder / "dataset_info.json").read_text().replace("array_record", "tfrecord")
    (folder / "dataset_info.json").write_text(text.replace("{FILEFORMAT}", "tfrecord"))
    with pytest.raises(ValueError, match="in a format that cannot be read without TensorFlow"):
        load_dataset("cifar10", data_dir=data_dir)


def test_cifar100_takes_the_fine_labels(tmp_path, register, archives):
    images, fine = random_images(1, 6, 32, 32, 3), np.array([99, 0, 3, 50, 7, 98])
    both = np.column_stack([fine // 5, fine])
    parts = {"train.bin": (images[:4], both[:4]), "test.bin": (images[4:], both[4:])}
    names = {
        "coarse_label_names.txt": [f"group {k}" for k in range(20)],
        "fine_label_names.txt": [f"thing {k}" for k in range(100)],
    }
    archives.cifar(tmp_path / "cifar-100-binary.tar.gz", "cifar-100-binary", parts, names)
    register("cifar100", tmp_path / "tfds", tmp_path)
    data = load_dataset("cifar100", data_dir=tmp_path / "tfds")
    np.testing.assert_array_equal(data.train.raw, images[:4])
    np.testing.assert_array_equal(data.train.y, fine[:4])
    np.testing.assert_array_equal(data.test.y, fine[4:])
    assert data.num_classes == 100
    assert data.class_names[99] == "thing 99"
    np.testing.assert_allclose(data.preprocessing.mean, [0.5071, 0.4866, 0.4409])


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnist_keeps_images_with_their_labels_in_an_order_that_never_changes(tmp_path, register, archives, name):
    images, labels = random_images(2, 30, 28, 28), (np.arange(30) * 3 % 10).astype(np.uint8)
    for prefix, part in (("train", slice(0, 20)), ("t10k", slice(20, 30))):
        archives.idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images[part])
        archives.idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", labels[part])
    orders = []
    for data_dir in (tmp_path / "one", tmp_path / "two"):
        register(name, data_dir, tmp_path)
        data = load_dataset(name, data_dir=data_dir)
        assert data.feature_shape == (28, 28, 1)
        pairs = {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
        for split, count in ((data.train, 20), (data.test, 10)):
            assert len(split) == count
            assert len({raw.tobytes() for raw in split.raw}) == count
            for raw, label in zip(split.raw, split.y, strict=True):
                assert pairs[raw.tobytes()] == label
        orders.append(data.train.raw)
    np.testing.assert_array_equal(*orders)
    assert len(data.class_names) == 10


def test_svhn_reads_the_digit_ten_as_zero(tmp_path, register):
    images, digits = random_images(3, 12, 32, 32, 3), np.array([10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1])
    for name, part in (("train", slice(0, 8)), ("test", slice(8, 11)), ("extra", slice(11, 12))):
        content = {"X": np.moveaxis(images[part], 0, -1), "y": digits[part, None].astype(np.uint8)}
        scipy.io.savemat(tmp_path / f"{name}_32x32.mat", content)
    register("svhn_cropped", tmp_path / "tfds", tmp_path)
    data = load_dataset("svhn", data_dir=tmp_path / "tfds")
    np.testing.assert_array_equal(data.train.raw, images[:8])
    np.testing.assert_array_equal(data.train.y, digits[:8] % 10)
    np.testing.assert_array_equal(data.test.raw, images[8:11])
    assert data.name == "svhn"


def decoded(contents: list[bytes]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in contents])


def test_tiny_imagenet_from_an_archive_put_there_by_hand(tmp_path, archives):
    import tensorflow_datasets as tfds

    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    content = archives.tiny_imagenet(manual / "tiny-imagenet-200.zip")
    data = load_dataset("tiny_imagenet", data_dir=tmp_path)
    np.testing.assert_array_equal(data.train.raw, decoded(content["train"]))
    np.testing.assert_array_equal(data.train.y, np.repeat(np.arange(200), 2))
    np.testing.assert_array_equal(data.test.raw, decoded(content["test"]))
    np.testing.assert_array_equal(data.test.y, np.arange(7) * 5)
    assert data.class_names[3] == "thing 3, Res 3"
    # TFDS reads it too, grey images included, and finds the original bytes.
    source = tfds.data_source("tiny_imagenet", split="test", data_dir=tmp_path, download=False)
    assert {example["image"].shape for example in source} == {(64, 64, 3)}
    decoders = {"image": tfds.decode.SkipDecoding()}
    source = tfds.data_source("tiny_imagenet", split="test", data_dir=tmp_path, download=False, decoders=decoders)
    assert {bytes(example["image"]) for example in source} == set(content["test"])
    assert {bytes(example["file_name"]).decode() for example in source} == {f"val_{8 + i}.JPEG" for i in range(7)}


def test_tiny_imagenet_without_images_of_a_class_is_refused(tmp_path, archives):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    archives.tiny_imagenet(manual / "tiny-imagenet-200.zip", images_per_class=0)
    with pytest.raises(ValueError, match=f"no training image of 200 classes: {archives.wnids[0]}"):
        load_dataset("tiny_imagenet", data_dir=tmp_path)
    assert not (tmp_path / "tiny_imagenet" / "1.0.0").exists()


@contextlib.contextmanager
def web_server(body: bytes):
    """A proxy that answers every address with the same body: its port and the addresses it was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1], asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("genuine", [True, False])
def test_a_download_is_verified_and_prepared(tmp_path, monkeypatch, archives, genuine):
    from tensorflow_datasets.core.download import checksums, download_manager

    from pseudocoreset.data.sources.tiny_imagenet import TinyImagenet

    path = tmp_path / "tiny-imagenet-200.zip"
    content = archives.tiny_imagenet(path)
    url = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    if genuine:
        monkeypatch.setattr(TinyImagenet, "url_infos", {url: checksums.compute_url_info(path)})
    for variable in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with web_server(path.read_bytes()) as (port, asked):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        if genuine:
            data = load_dataset("tiny_imagenet", data_dir=tmp_path / "tfds")
            np.testing.assert_array_equal(data.test.raw, decoded(content["test"]))
        else:
            with pytest.raises(download_manager.NonMatchingChecksumError):
                load_dataset("tiny_imagenet", data_dir=tmp_path / "tfds")
    assert asked == [url]


@pytest.mark.slow
def test_the_whole_archives_are_prepared_bit_for_bit(tmp_path, shared_data, register):
    program = str(shared_data / "unpack.py")
    names = ["cifar10", "mnist", "tiny_imagenet"]
    for form in ("archive", "npy"):
        subprocess.run([sys.executable, program, form, str(tmp_path / form), *names], check=True)
    data_dir = tmp_path / "tfds"
    for name in ("cifar10", "mnist"):
        register(name, data_dir, tmp_path / "archive")
    (data_dir / "downloads" / "manual").mkdir()
    shutil.move(tmp_path / "archive" / "tiny-imagenet-200.zip", data_dir / "downloads" / "manual")
    for name in names:
        data = load_dataset(name, data_dir=data_dir)
        for split_name, split in (("train", data.train), ("test", data.test)):
            images = np.load(tmp_path / "npy" / name / f"{split_name}_images.npy")
            labels = np.load(tmp_path / "npy" / name / f"{split_name}_labels.npy")
            if name == "mnist":
                ours, theirs = (
                    sorted(image.tobytes() + bytes([label]) for image, label in zip(*pair, strict=True))
                    for pair in ((split.raw, split.y), (images, labels))
                )
                assert ours == theirs
            else:
                np.testing.assert_array_equal(split.raw, images)
                np.testing.assert_array_equal(split.y, labels)
        if name == "cifar10":
            # The constants of the literature are the means of these very images.
            np.testing.assert_allclose(data.train.x.mean((0, 1, 2), dtype=np.float64), 0, atol=5e-4)
