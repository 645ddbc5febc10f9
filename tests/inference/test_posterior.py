"""``Posterior``: what is kept, evaluation elsewhere, and files."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from pseudocoreset.data import Dataset
from pseudocoreset.files.storage import CorruptFileError
from pseudocoreset.inference import Posterior, sample
from pseudocoreset.models import MLP, Model, bnn

SETTINGS = {"num_chains": 2, "num_samples": 4, "num_warmup": 3, "key": jax.random.key(0), "progress": False}


@pytest.fixture(scope="module")
def data() -> Dataset:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, size=(30, 5, 5, 1), dtype=np.uint8)
    labels = np.arange(30) % 3
    return Dataset.from_arrays(images[:20], labels[:20], test=(images[20:], labels[20:]), normalize=True)


@pytest.fixture(scope="module")
def model(data: Dataset) -> Model:
    return bnn(MLP(widths=(6,)), data)


@pytest.fixture(scope="module")
def functions(model: Model, data: Dataset) -> Posterior:
    return sample(model, data, **SETTINGS)


@pytest.fixture(scope="module")
def weights(model: Model, data: Dataset) -> Posterior:
    return sample(model, data, keep="weights", chunk_size=7, **SETTINGS)


def test_networks_keep_functions_and_small_sites(functions: Posterior, data: Dataset) -> None:
    assert functions.predict_on is data.test
    assert functions.function_values.shape == (2, 4, 10, 3)
    assert functions.log_likelihood.shape == (2, 4, 10)
    assert functions.unconstrained is None
    assert all(array[0, 0].size <= 64 for array in functions.draws.values())
    assert functions.metadata["keep"] == "functions"
    assert (functions.num_chains, functions.num_draws) == (2, 4)


def test_weights_give_the_same_functions(model: Model, data: Dataset, functions: Posterior, weights: Posterior) -> None:
    np.testing.assert_allclose(weights.function_values, functions.function_values, rtol=1e-4, atol=1e-4)
    assert sum(array[0, 0].size for array in weights.unconstrained.values()) == model.num_params
    by_hand = {name: array[1, 2] for name, array in weights.unconstrained.items()}
    f = model.apply(by_hand, data.test.x)
    np.testing.assert_allclose(weights.function_values[1, 2], f, rtol=1e-4, atol=1e-4)
    log_probability = jax.nn.log_softmax(f)[np.arange(10), data.test.y]
    np.testing.assert_allclose(weights.log_likelihood[1, 2], log_probability, rtol=1e-4, atol=1e-4)


def test_evaluate_on_another_split(model: Model, data: Dataset, weights: Posterior) -> None:
    again = weights.evaluate(data.test)
    np.testing.assert_allclose(again.function_values, weights.function_values, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(again.log_likelihood, weights.log_likelihood, rtol=1e-4, atol=1e-4)
    elsewhere = weights.evaluate((data.train.x[:7], data.train.y[:7]))
    assert elsewhere.function_values.shape == (2, 4, 7, 3)
    assert elsewhere.draws is weights.draws


def test_evaluate_of_many_draws(regression) -> None:
    """More than one block of draws, the last one partial."""
    posterior = sample(
        regression.model, (regression.x, regression.y), key=jax.random.key(0), num_samples=35, progress=False
    )
    assert posterior.function_values is None
    assert posterior.log_likelihood is None
    evaluated = posterior.evaluate((regression.x[:5], regression.y[:5]))
    wanted = posterior.draws["b"] @ regression.x[:5].T
    np.testing.assert_allclose(evaluated.function_values[..., 0], wanted, rtol=1e-4, atol=1e-5)
    residual = regression.y[:5] - wanted
    log_likelihood = -0.5 * (residual / 0.5) ** 2 - np.log(0.5 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(evaluated.log_likelihood, log_likelihood, rtol=1e-3, atol=1e-4)


def test_evaluate_needs_the_weights_and_the_model(functions: Posterior, model: Model, weights: Posterior, data) -> None:
    with pytest.raises(ValueError, match=r"weights of this posterior were not kept.*keep='weights'"):
        functions.evaluate(data.test)
    with pytest.raises(ValueError, match=r"is of the model .* with the sites .* Give the model that"):
        weights.evaluate(bnn(MLP(widths=(5,)), data), data.test)
    with pytest.raises(ValueError, match="the model is needed"):
        replace(weights, model=None).evaluate(data.test)


@pytest.mark.parametrize("kind", ["functions", "weights"])
def test_saved_and_loaded(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    posterior = request.getfixturevalue(kind)
    path = tmp_path / "a folder with spaces é" / "posterior"
    posterior.save(path)
    posterior.save(path)  # replaces
    loaded = Posterior.load(path)

    assert loaded.metadata == posterior.metadata
    for name in ("draws", "sample_stats", "unconstrained"):
        saved, read = getattr(posterior, name), getattr(loaded, name)
        assert (saved is None) == (read is None)
        assert set(saved or ()) == set(read or ())
        for site in saved or ():
            np.testing.assert_array_equal(read[site], saved[site])
            assert read[site].dtype == saved[site].dtype
    np.testing.assert_array_equal(loaded.function_values, posterior.function_values)
    np.testing.assert_array_equal(loaded.log_likelihood, posterior.log_likelihood)
    np.testing.assert_array_equal(loaded.predict_on.raw, posterior.predict_on.raw)
    np.testing.assert_allclose(loaded.predict_on.x, posterior.predict_on.x)
    assert repr(loaded) == repr(posterior)
    assert [entry.name for entry in path.parent.iterdir()] == ["posterior"]


def test_damaged_files_are_refused(functions: Posterior, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Posterior.load(tmp_path / "nothing")
    functions.save(tmp_path / "posterior")
    file = tmp_path / "posterior" / "posterior.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(CorruptFileError, match=r"posterior\.safetensors"):
        Posterior.load(tmp_path / "posterior")


def test_repr_is_short(functions: Posterior, weights: Posterior) -> None:
    for posterior in (functions, weights):
        lines = repr(posterior).splitlines()
        assert len(lines) <= 10
        assert max(map(len, lines)) <= 200
        assert "sghmc" in lines[0]
        assert "2 chains" in lines[0]


def test_metadata_says_how_to_repeat_the_run(functions: Posterior) -> None:
    about = functions.metadata
    key = jax.random.wrap_key_data(np.array(about["key"]["data"], np.uint32), impl=about["key"]["implementation"])
    assert np.array_equal(jax.random.key_data(key), jax.random.key_data(SETTINGS["key"]))
    assert about["versions"]["jax"] == jax.__version__
    assert about["total_weight"] == 20


def test_an_arviz_tree(weights: Posterior) -> None:
    diagnostics = pytest.importorskip("pseudocoreset.diagnostics")
    assert hasattr(diagnostics, "to_arviz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ArviZ's own on import
        tree = weights.to_arviz()
    assert "sample_stats" in tree.children
