"""A method in a file of its own goes through every door: no other file knows of it."""

import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import pseudocoreset
from pseudocoreset import Dataset, Pseudocoreset, estimate_memory, evaluate, fit
from pseudocoreset.cli import app
from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.fitting import Outcome
from pseudocoreset.inference import sample
from pseudocoreset.methods import Problem
from pseudocoreset.models import MLP, bnn, gaussian_location, logistic_regression
from pseudocoreset.objectives import Rows

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from toy import MeanMatching

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(90, 3)) * [1.0, 20.0, 0.1] + [0.0, 5.0, 0.0]).astype(np.float32)
Y = (np.arange(90) % 3).astype(np.int32)
DATA = Dataset.from_arrays(X, Y, test=(X[:30] + 0.1, Y[:30]))
MODEL = logistic_regression(DATA)
QUIET = dict(key=jax.random.key(0), progress=False)


def distance(coreset):
    """Of the mean of the points from that of the data, in standard deviations of the columns."""
    mean = np.average(coreset.inputs, axis=0, weights=coreset.weights)
    return np.abs((mean - X.mean(0)) / X.std(0)).max()


def test_the_method_is_fitted_sampled_evaluated_and_saved(tmp_path):
    result = fit(MODEL, DATA, MeanMatching(weights="data"), size=4, steps=300, **QUIET)
    start = Pseudocoreset.from_data(DATA, size=4, key=jax.random.fold_in(jax.random.split(jax.random.key(0))[1], 0))
    assert distance(start) > 0.1
    assert distance(result.coreset) < 0.01
    assert result.coreset.metadata["objective"] == "mean_matching"
    assert result.history["loss"].shape == (300,)
    result.coreset.save(tmp_path / "coreset")
    loaded = Pseudocoreset.load(tmp_path / "coreset")
    np.testing.assert_array_equal(loaded.inputs, result.coreset.inputs)
    posterior = sample(MODEL, loaded, num_chains=1, num_samples=10, num_warmup=10, kernel="nuts", **QUIET)
    assert posterior.num_draws == 10
    network = bnn(MLP((4,)), DATA)
    few = dict(protocol="distillation", num_epochs=2, num_networks=1, augment=None, split="test")
    assert 0 <= evaluate(loaded, network, DATA, key=jax.random.key(1), **few).metrics["accuracy"].mean <= 1


@pytest.mark.parametrize("size", [dict(size=4), dict(images_per_class=10)])
def test_settings_that_are_none_follow_the_recipe(size):
    settings = fit(MODEL, DATA, MeanMatching(), steps=2, **size, **QUIET).coreset.metadata["objectives"][0]
    assert settings["strength"] == (2.0 if "images_per_class" in size else 1.0)
    given = fit(MODEL, DATA, MeanMatching, steps=2, strength=0.5, **size, **QUIET).coreset.metadata["objectives"][0]
    assert given["strength"] == 0.5


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    def run(directory=None, stop=None):
        callbacks = [lambda step, *_: step == stop]
        return fit(MODEL, DATA, MeanMatching(), size=4, checkpoint_dir=directory, callbacks=callbacks, **QUIET)

    assert run(tmp_path, stop=50).outcome is Outcome.STOPPED
    whole, resumed = run(), run(tmp_path)
    assert resumed.outcome is Outcome.COMPLETED
    np.testing.assert_array_equal(whole.coreset.inputs, resumed.coreset.inputs)


def test_the_gradient_is_that_of_the_loss():
    """D L / d u_j = 2 w_j / sum(w) * (mean of the points - mean of the data), by hand."""
    problem = Problem((MODEL.bind(DATA.train.x, DATA.train.y),), DATA, jax.random.key(0), size=4)
    objective = MeanMatching(strength=1.0, weights="learned").resolved(problem).objective(MODEL, problem)
    weights = jnp.asarray([1.0, 2.0, 3.0, 4.0])
    coreset = Rows(jnp.asarray(X[:4]), DATA.train.y[:4], weights)
    device = DeviceData.from_dataset(DATA)
    gradient, _, _ = objective.gradient(None, objective.init(None, coreset, device), coreset, device, ())
    assert set(gradient) == {"inputs", "weights"}
    off = np.average(X[:4], axis=0, weights=weights) - X.mean(0)
    np.testing.assert_allclose(gradient["inputs"], 2 * np.outer(weights / 10, off), rtol=1e-4, atol=1e-5)


def test_memory_is_estimated():
    assert estimate_memory(MODEL, DATA, MeanMatching(), size=4).data == X.nbytes + 90 * 4


def test_the_command_takes_it_by_the_place_of_its_class(tmp_path):
    arguments = ["fit", "--method", "toy:MeanMatching", "--set", "strength=3", "--steps", "2", "--data", "digits"]
    shape = ["--width", "2", "--depth", "1", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, *shape], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    metadata = Pseudocoreset.load(tmp_path / "out").metadata
    assert metadata["objectives"][0]["strength"] == 3
    assert metadata["objective"] == "mean_matching"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(strenth=1.0), TypeError, "'mean_matching' has no setting 'strenth'; it has steps, .*strength"),
        (dict(strength="much"), TypeError, "strength must be a number or None; got str 'much'"),
        (dict(strength=-1.0), ValueError, "strength must be a positive number"),
        (dict(num_experts=3), TypeError, "num_experts: the method 'mean_matching' has no use for it"),
        (dict(step_size=0.1, optimizer=None, steps=0), ValueError, "steps must be at least 1"),
    ],
)
def test_what_it_cannot_take_is_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        fit(MODEL, DATA, MeanMatching, **{**dict(size=4), **QUIET, **arguments})


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Modules of the skeletons of the page, where ``fit`` finds them: a divergence, the method above, a choice."""
    folder = tmp_path_factory.mktemp("page")
    text = (pathlib.Path(__file__).parents[2] / "docs" / "add-a-method.md").read_text()
    blocks = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for block in blocks:
            if "@dataclass" in block:
                name = re.search(r"class (\w+)", block)[1]
                (folder / f"page_{name}.py").write_text(block)
        yield


def test_the_method_of_the_page_is_this_one(page):
    wanted = fit(MODEL, DATA, MeanMatching(), size=4, steps=3, **QUIET)
    found = fit(MODEL, DATA, "page_MeanMatching:MeanMatching", size=4, steps=3, **QUIET)
    np.testing.assert_array_equal(found.coreset.inputs, wanted.coreset.inputs)


def test_the_divergence_of_the_page_is_exact(page):
    """Of one mean under n data and under m points: N(s / (1 + w), 1 / (1 + w)) with s the sum of w data."""
    data = Dataset.from_arrays(X[:, :1])
    result = fit(gaussian_location(data), data, "page_SymmetrisedKL:SymmetrisedKL", size=2, steps=2, **QUIET)
    start = Pseudocoreset.from_data(data, size=2, key=jax.random.fold_in(jax.random.split(jax.random.key(0))[1], 0))
    total, shift = 1 + 90, (X[:, 0].sum() - 45 * start.inputs.sum()) / (1 + 90)
    assert result.history["loss"][0] == pytest.approx(total * shift**2 / 2, rel=1e-4)
    assert result.history["loss"][1] < result.history["loss"][0]
    assert result.coreset.metadata["objectives"][0]["proxy"] == "conjugate"
    network = bnn(MLP((4,)), DATA)
    with pytest.raises(ValueError, match="proxy must be a conjugate posterior or a dense Laplace approximation"):
        fit(network, DATA, "page_SymmetrisedKL:SymmetrisedKL", size=4, steps=2, **QUIET)


def test_the_choice_of_the_page_is_taken(page):
    result = fit(MODEL, DATA, "page_EvenlySpaced:EvenlySpaced", size=3, **QUIET)
    np.testing.assert_array_equal(result.coreset.inputs, X[[0, 44, 89]])
    assert result.coreset.mass == pytest.approx(90)
    with pytest.raises(ValueError, match="'evenly_spaced' knows no classes; give size"):
        fit(MODEL, DATA, "page_EvenlySpaced:EvenlySpaced", images_per_class=1, **QUIET)


def test_a_module_that_is_not_found_is_answered_with_what_to_do():
    with pytest.raises(ValueError, match="No module named 'nowhere'; put the folder of nowhere on PYTHONPATH"):
        fit(MODEL, DATA, "nowhere:Method", size=3, **QUIET)


def test_no_other_file_names_it():
    root = pathlib.Path(pseudocoreset.__file__).parent
    assert not [path for path in root.rglob("*.py") if "mean_matching" in path.read_text()]
