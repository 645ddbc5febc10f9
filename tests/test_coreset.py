"""Coresets: choice of real data, mass, files."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from safetensors.numpy import load_file

from pseudocoreset import Dataset, Pseudocoreset, coreset_names, fit_herding, load_coreset, load_dataset
from pseudocoreset.data import Preprocessing
from pseudocoreset.data.doors import check_start
from pseudocoreset.files.storage import CorruptFileError, atomic_directory, read_json, write_json
from pseudocoreset.inference import sample
from pseudocoreset.models import Model, logistic_regression

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def data():
    images = RNG.integers(0, 256, size=(60, 4, 4, 3), dtype=np.uint8)
    labels = (np.arange(60) % 3).astype(np.int32)
    return Dataset.from_arrays(images, labels, class_names=("a", "b", "c"), normalize=True)


@pytest.fixture(scope="module")
def coreset(data):
    return Pseudocoreset.from_data(data, images_per_class=2, key=jax.random.key(0))


def test_real_data_are_chosen_by_class(data, coreset):
    assert coreset.size == 6
    assert coreset.targets.tolist() == [0, 0, 1, 1, 2, 2]
    for point, label in zip(coreset.inputs, coreset.targets, strict=True):
        matches = np.flatnonzero(np.isclose(data.train.x, point, atol=1e-5).all((1, 2, 3)))
        assert data.train.y[matches].tolist() == [label]
    assert len(np.unique(coreset.inputs.reshape(6, -1), axis=0)) == 6
    again = Pseudocoreset.from_data(data, images_per_class=2, key=jax.random.key(0))
    np.testing.assert_array_equal(coreset.inputs, again.inputs)


def test_mass_is_explicit(coreset):
    assert coreset.mass == 6
    assert coreset.num_data == 60
    heavy = coreset.with_mass("data")
    np.testing.assert_allclose(heavy.weights, 10.0)
    assert "mass 60 for 60 data" in repr(heavy)
    assert heavy.with_mass("ones").mass == pytest.approx(6)
    assert coreset.with_mass(2.5).mass == pytest.approx(2.5)


def test_saving_keeps_everything_needed_to_use_it(coreset, tmp_path):
    path = tmp_path / "a folder with a näme"
    coreset.save(path)
    loaded = Pseudocoreset.load(path)
    for name in ("inputs", "targets", "weights"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(coreset, name))
    assert loaded.class_names == ("a", "b", "c")
    assert loaded.metadata == coreset.metadata
    np.testing.assert_allclose(loaded.preprocessing.invert(loaded.inputs), coreset.preprocessing.invert(coreset.inputs))
    coreset.with_mass("data").save(path)
    assert Pseudocoreset.load(path).mass == pytest.approx(60)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_files_are_readable_without_this_package(coreset, tmp_path):
    coreset.save(tmp_path / "c")
    assert load_file(tmp_path / "c" / "coreset.safetensors")["inputs"].shape == (6, 4, 4, 3)
    assert json.loads((tmp_path / "c" / "coreset.json").read_text())["class_names"] == ["a", "b", "c"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest", "newer"])
def test_damage_is_noticed(coreset, tmp_path, damage):
    folder = tmp_path / "c"
    coreset.save(folder)
    file = folder / "coreset.safetensors"
    content = file.read_bytes()
    error = CorruptFileError
    if damage == "truncate":
        file.write_bytes(content[:-10])
    elif damage == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "remove":
        file.unlink()
    elif damage == "manifest":
        (folder / "manifest.json").unlink()
    else:
        record = json.loads((folder / "coreset.json").read_text()) | {"schema": 99}
        (folder / "coreset.json").write_text(json.dumps(record))
    with pytest.raises(error):
        Pseudocoreset.load(folder)


def test_a_kill_while_saving_leaves_the_old_one(coreset, tmp_path):
    """A process that dies between its files leaves nothing that a reader takes for a coreset."""
    folder = tmp_path / "c"
    coreset.save(folder)
    script = (
        "import os, pathlib, sys\n"
        "from pseudocoreset import Pseudocoreset\n"
        "import pseudocoreset.coreset as module\n"
        "coreset = Pseudocoreset.load(sys.argv[1]).with_mass('data')\n"
        "module.write_json = lambda *_: os._exit(9)\n"
        "coreset.save(sys.argv[1])\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(folder)], check=False).returncode == 9
    assert Pseudocoreset.load(folder).mass == 6


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(), ValueError, "one of images_per_class and size"),
        (dict(images_per_class=1, size=3), ValueError, "one of images_per_class and size"),
        (dict(images_per_class=1, size=3, stratify="g"), ValueError, "one of images_per_class and size"),
        (dict(images_per_class=21), ValueError, "images_per_class=21, but class 0 has 20"),
        (dict(images_per_class=0), ValueError, "images_per_class must be at least 1"),
        (dict(images_per_class=1.5), TypeError, "images_per_class must be an integer"),
        (dict(size=61), ValueError, "size=61 is more than the 60"),
        (dict(size=3, key=0), TypeError, "jax.random.key"),
        (dict(size=3, key=np.zeros(2, np.uint32)), TypeError, "jax.random.key"),
        (dict(size=3, key=jax.random.split(jax.random.key(0))), ValueError, "one key"),
        (dict(size=3, mass="all"), ValueError, "mass='all'"),
    ],
)
def test_bad_arguments_are_named(data, arguments, error, message):
    with pytest.raises(error, match=message):
        Pseudocoreset.from_data(data, **{"key": jax.random.key(0), **arguments})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(inputs=np.full((6, 4, 4, 3), np.nan, np.float32)), "inputs has 288 values"),
        (dict(weights=np.array([1, 1, 1, 1, 1, -1], np.float32)), "non-negative"),
        (dict(weights=np.zeros(6, np.float32)), "not all zero"),
        (dict(weights=np.ones(5, np.float32)), "agree in length"),
        (dict(inputs=np.zeros((0, 4, 4, 3), np.float32)), "empty"),
    ],
)
def test_impossible_coresets_are_refused(coreset, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(coreset, **change)


@pytest.mark.parametrize("name", coreset_names())
def test_the_coresets_of_the_package_are_whole_and_say_what_they_are_worth(name):
    coreset = load_coreset(name)
    assert coreset.size == 10 * int(name.rsplit("-", 1)[1])
    assert name.startswith(coreset.metadata["data"].replace("_", "-"))
    card = coreset.metadata["card"]
    assert 1 / coreset.size < card["scores"]["accuracy"] < 1
    assert card["learned_with"]["coreset"]["networks"]
    assert card["scored_by"]["protocol"] == "default"


def test_a_coreset_of_the_package_is_in_the_units_of_the_data_that_load_dataset_gives():
    coreset, data = load_coreset("digits-fbpc-1"), load_dataset("digits")
    assert coreset.inputs.shape[1:] == data.train.feature_shape
    np.testing.assert_allclose(coreset.preprocessing.mean, data.preprocessing.mean)
    np.testing.assert_allclose(coreset.preprocessing.std, data.preprocessing.std)
    assert coreset.class_names == data.class_names


def test_an_unknown_coreset_is_refused():
    with pytest.raises(ValueError, match=r"name='digits' is unknown.*'digits-fbpc-1'"):
        load_coreset("digits")


def test_class_balanced_points_carry_the_masses_of_the_classes():
    """One class of 900, one of 90, one of 10: weights of a class sum to its size at mass n, whatever came before."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat([0, 1, 2], [900, 90, 10]))
    data = Dataset.from_arrays(rng.normal(size=(1000, 2)), y)
    for mass in ("ones", "data"):
        coreset = Pseudocoreset.from_data(data, images_per_class=5, key=jax.random.key(0), mass=mass)
        assert coreset.mass == pytest.approx(15 if mass == "ones" else 1000)
        whole = coreset.with_mass(3.0).with_mass("data")
        np.testing.assert_allclose(
            [whole.weights[whole.targets == c].sum() for c in range(3)], [900, 90, 10], rtol=1e-5
        )
    chosen = fit_herding(
        logistic_regression(data), data, images_per_class=5, weights="data", key=jax.random.key(0), progress=False
    ).coreset
    np.testing.assert_allclose([chosen.weights[chosen.targets == c].sum() for c in range(3)], [900, 90, 10], rtol=1e-5)
    even = Dataset.from_arrays(rng.normal(size=(30, 2)), np.arange(30) % 3)
    np.testing.assert_array_equal(Pseudocoreset.from_data(even, images_per_class=2, key=jax.random.key(0)).weights, 1.0)


def test_the_posterior_of_a_class_balanced_coreset_has_the_right_intercept():
    """Of 4,000 data with 8 % ones; equal weights would put the intercept log(0.92 / 0.08) = 2.4 too high."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4000, 1))
    y = (rng.random(4000) < 1 / (1 + np.exp(2.7 - 0.5 * x[:, 0]))).astype(int)
    data = Dataset.from_arrays(x, y)

    def program(x, y=None):
        slope, intercept = numpyro.sample("slope", dist.Normal(0, 5)), numpyro.sample("intercept", dist.Normal(0, 5))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Bernoulli(logits=intercept + slope * x[:, 0]), obs=y)

    model = Model.from_numpyro(program)
    coreset = Pseudocoreset.from_data(data, images_per_class=150, key=jax.random.key(0), mass="data")

    def intercept(source):
        posterior = sample(
            model, source, kernel="nuts", num_chains=2, num_warmup=200, num_samples=200, key=jax.random.key(1),
            progress=False,
        )  # fmt: skip
        return float(posterior.draws["intercept"].mean())

    assert intercept(coreset) == pytest.approx(intercept(data), abs=0.3)


def test_the_digest_tells_points_apart_and_no_masses():
    data = Dataset.from_arrays(np.arange(20.0).reshape(10, 2), np.arange(10) % 2)
    one = Pseudocoreset.from_data(data, size=3, key=jax.random.key(0))
    assert one.digest == one.with_mass("data").digest
    assert one.digest != Pseudocoreset.from_data(data, size=3, key=jax.random.key(1)).digest
    assert one.digest != dataclasses.replace(one, targets=1 - one.targets).digest


def test_a_posterior_at_a_small_mass_says_so():
    data = Dataset.from_arrays(np.random.default_rng(0).normal(size=(100, 2)), np.arange(100) % 2)
    model = logistic_regression(data)
    coreset = Pseudocoreset.from_data(data, size=4, key=jax.random.key(0))
    few = dict(kernel="nuts", num_chains=1, num_warmup=5, num_samples=5, key=jax.random.key(1), progress=False)
    assert "mass 4 stands for 100 data" in repr(sample(model, coreset, **few))
    assert "coreset.with_mass('data')" in repr(sample(model, coreset, **few))
    assert "stands for" not in repr(sample(model, coreset.with_mass("data"), **few))


def test_a_coreset_made_by_hand_and_saved_by_an_older_version_has_no_known_preprocessing(tmp_path):
    x = np.random.default_rng(0).normal(5.0, 2.0, size=(40, 2))
    data = Dataset.from_arrays(x, np.arange(40) % 2, normalize=True)
    inputs, labels = np.asarray(data.train.x[:4]), data.train.y[:4]
    made = Pseudocoreset(inputs, labels, np.ones(4), preprocessing=Preprocessing(), num_data=40)
    with pytest.raises(ValueError, match=r"dataclasses\.replace\(coreset, preprocessing=data\.preprocessing\)"):
        check_start(made, data)
    model = logistic_regression(data)
    with pytest.raises(ValueError, match=r"dataclasses\.replace\(coreset, preprocessing=data\.preprocessing\)"):
        sample(model, made, predict_on=data.train, key=jax.random.key(0))
    check_start(dataclasses.replace(made, preprocessing=data.preprocessing), data)
    with atomic_directory(tmp_path / "old") as folder:
        made.save(folder / "new")
        for file in ("coreset.json", "coreset.safetensors"):
            (folder / "new" / file).rename(folder / file)
        shutil.rmtree(folder / "new")
        record = read_json(folder / "coreset.json")
        del record["holds_probabilities"]
        write_json(folder / "coreset.json", record)
    old = Pseudocoreset.load(tmp_path / "old")
    assert not old.preprocessing.is_known
    check_start(old, data)
    made.save(tmp_path / "new")
    assert Pseudocoreset.load(tmp_path / "new").preprocessing.is_known


def test_a_coreset_is_made_of_lists():
    coreset = Pseudocoreset([[0.5, 1.5], [2.5, 3.5]], [0, 1], [1.0, 2.0])
    assert coreset.mass == 3
    np.testing.assert_array_equal(coreset.inputs, [[0.5, 1.5], [2.5, 3.5]])
