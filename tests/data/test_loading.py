import socket
import subprocess
import sys

import numpy as np
import pytest

from pseudocoreset.data import DATASET_NAMES, load_dataset


def test_importing_touches_no_heavy_library_and_no_device():
    program = (
        "import sys, pseudocoreset.data\n"
        "from jax._src import xla_bridge\n"
        "heavy = {'tensorflow_datasets', 'tensorflow', 'sklearn', 'matplotlib', 'arviz_plots', 'PIL'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr


def test_digits_are_split_as_documented():
    from sklearn.datasets import load_digits

    data = load_dataset("digits", normalize=False)
    assert data.train.raw.dtype == np.uint8
    assert data.feature_shape == (8, 8, 1)
    assert len(data.train) + len(data.test) == 1797
    assert data.class_names == tuple("0123456789")
    bunch = load_digits()
    for label in range(10):
        of_label = bunch.images[bunch.target == label]
        ours = data.test.raw[data.test.y == label][..., 0]
        np.testing.assert_array_equal(ours, of_label[4::5])
        rest = np.delete(of_label, np.s_[4::5], axis=0)
        np.testing.assert_array_equal(data.train.raw[data.train.y == label][..., 0], rest)
    np.testing.assert_allclose(data.train.x, data.train.raw / 16.0, rtol=1e-6)


def test_digits_are_normalised_by_the_moments_of_train():
    data = load_dataset("digits")
    assert abs(data.train.x.mean()) < 1e-5
    assert abs(data.train.x.std() - 1) < 1e-5
    assert abs(data.test.x.mean()) > 1e-4
    np.testing.assert_allclose(data.preprocessing.invert(data.test.x), data.test.raw / 16.0, atol=1e-6)


def test_digits_can_be_whitened():
    data = load_dataset("digits", zca=True)
    assert data.preprocessing.zca_matrix.shape == (64, 64)
    np.testing.assert_allclose(data.train.x.mean(0), 0, atol=1e-4)


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"name must be one of digits, mnist.*tiny_imagenet, got 'cifar11'"):
        load_dataset("cifar11")


@pytest.mark.parametrize("name", [name for name in DATASET_NAMES if name != "digits"])
def test_unprepared_data_are_reported_with_the_way_to_prepare_them(tmp_path, name):
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset(name, data_dir=tmp_path, download=False)
    message = str(caught.value)
    assert f"data_dir={str(tmp_path)!r}" in message
    assert "download=False" in message
    assert f"load_dataset({name!r}, data_dir={str(tmp_path)!r})" in message
    assert str(tmp_path / "downloads" / "manual") in message
    assert list(tmp_path.iterdir()) == []


def test_no_network_is_reported_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with socket.socket() as deaf:
        # A port that is taken and that nothing listens on stands for a network that is down.
        deaf.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        with pytest.raises(ConnectionError) as caught:
            load_dataset("tiny_imagenet", data_dir=tmp_path)
    message = str(caught.value)
    assert f"data_dir={str(tmp_path)!r}" in message
    assert "http://cs231n.stanford.edu/tiny-imagenet-200.zip cannot be fetched (127.0.0.1:" in message
    assert list(tmp_path.iterdir()) == []
