"""The model of a posterior: given by ``sample``, not by files, asked for by everything that needs it."""

import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from pseudocoreset import Dataset, compare_posteriors, diagnostics
from pseudocoreset.diagnostics.convergence import convergence
from pseudocoreset.inference import Posterior, sample
from pseudocoreset.models import MLP, Model, bnn, linear_regression, logistic_regression

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3)).astype(np.float32)
DATA = Dataset.from_arrays(X[:40], np.arange(40) % 2, test=(X[40:], np.arange(20) % 2))
MODEL = logistic_regression(num_classes=2)
IMAGES = Dataset.from_arrays(
    RNG.integers(0, 256, (12, 4, 4, 1), np.uint8),
    np.arange(12) % 2,
    test=(np.zeros((4, 4, 4, 1), np.uint8), [0, 1, 0, 1]),
)
NETWORK = bnn(MLP((4,)), IMAGES)
SOME = {"corruptions": ["snow"], "severities": [1], "key": jax.random.key(0)}


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    return sample(
        MODEL, DATA, kernel="nuts", num_chains=2, num_warmup=20, num_samples=20, key=jax.random.key(0), progress=False
    )


@pytest.fixture(scope="module")
def of_images() -> Posterior:
    few = {"num_chains": 2, "num_warmup": 2, "num_samples": 8, "step_size": 0.01, "progress": False}
    return sample(NETWORK, IMAGES, key=jax.random.key(0), keep="weights", **few)


@pytest.fixture
def loaded(posterior: Posterior, tmp_path: Path) -> Posterior:
    posterior.save(tmp_path / "posterior")
    return Posterior.load(tmp_path / "posterior")


def test_sample_gives_the_bound_model(posterior: Posterior) -> None:
    assert posterior.model.is_bound
    assert posterior.model.program is MODEL.program
    assert posterior.evaluate(DATA.test).model is posterior.model


def test_files_do_not_hold_it_and_it_can_be_given(posterior: Posterior, loaded: Posterior, tmp_path: Path) -> None:
    assert loaded.model is None
    with pytest.raises(ValueError, match=r"does not know it.*posterior\.with_model\(model\).*Posterior\.load"):
        diagnostics.predictive_metrics(loaded)
    with pytest.raises(ValueError, match="the posterior 'again' does not know it"):
        compare_posteriors({"full": posterior, "again": loaded}, DATA.test)
    wanted = diagnostics.predictive_metrics(posterior)
    assert diagnostics.predictive_metrics(loaded.with_model(MODEL)) == wanted
    again = Posterior.load(tmp_path / "posterior", memory_map=True, model=MODEL)
    assert diagnostics.predictive_metrics(again) == wanted
    assert again.model.is_bound


def test_a_run_in_a_directory_knows_it(tmp_path: Path) -> None:
    run = {"num_chains": 1, "num_warmup": 2, "num_samples": 4, "key": jax.random.key(0), "progress": False}
    for _ in range(2):  # made, then read
        assert sample(MODEL, DATA, directory=tmp_path / "run", **run).model.program is MODEL.program


def test_a_pickle_holds_the_draws_alone(posterior: Posterior) -> None:
    again = pickle.loads(pickle.dumps(posterior))
    assert again.model is None
    assert diagnostics.predictive_metrics(again.with_model(MODEL)) == diagnostics.predictive_metrics(posterior)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (linear_regression(), "is of the model 'logistic_regression'"),
        (Model.from_numpyro(MODEL.program, name="other"), "is taken as one of 'other'"),
        (logistic_regression(num_classes=3), "with the sites"),
    ],
)
def test_another_model_is_refused(other: Model, message: str, posterior: Posterior, loaded: Posterior, tmp_path: Path):
    for call in (
        lambda: posterior.with_model(other),
        lambda: loaded.with_model(other),
        lambda: diagnostics.predictive_metrics(posterior, model=other),
    ):
        with pytest.raises(ValueError, match=f"the posterior .*{message}"):
            call()
    with pytest.raises(ValueError, match=f"the posterior in .*posterior.*{message}"):
        Posterior.load(tmp_path / "posterior", model=other)
    with pytest.raises(ValueError, match=f"the posterior 'full'.*{message}"):
        compare_posteriors({"full": posterior}, other, DATA.test)


def test_another_model_is_refused_before_it_is_bound(tmp_path: Path) -> None:
    few = {"kernel": "nuts", "num_chains": 1, "num_warmup": 5, "num_samples": 30, "progress": False}
    sample(MODEL, (X, np.arange(60) % 2), key=jax.random.key(0), **few).save(tmp_path / "no_test_split")
    loaded = Posterior.load(tmp_path / "no_test_split")
    with pytest.raises(ValueError, match="is taken as one of 'linear_regression' with the sites not known"):
        loaded.with_model(linear_regression())
    wider = {"source": (X[:, :2], np.arange(60) % 2), "target": (X[:, :2], np.arange(60) % 2)}
    with pytest.raises(
        ValueError, match=r"with the sites \{'coefficients': \[3.* with the sites \{'coefficients': \[2"
    ):
        diagnostics.reweight(loaded.with_model(MODEL), **wider)


def same(one: Any, other: Any) -> bool:
    """Whether two results are of one kind and print alike; trees and figures hold times and addresses."""
    is_shown = hasattr(one, "viz") or hasattr(one, "children")
    return type(one) is type(other) and (is_shown or str(one) == str(other))


CALLS: dict[str, Callable[..., Any]] = {
    "compare_posteriors": lambda p, *m, **k: compare_posteriors({"full": p, "b": p}, *m, DATA.test, **k),
    "predictive_metrics": lambda p, *m, **k: diagnostics.predictive_metrics(p, *m, **k),
    "detect_foreign": lambda p, *m, **k: diagnostics.detect_foreign(p, *m, p, **k),
    "reweight": lambda p, *m, **k: diagnostics.reweight(p, *m, source=DATA, target=DATA, **k),
    "to_arviz": lambda p, *m, **k: diagnostics.to_arviz(p, *m, **k),
    "plot_trace": lambda p, *m, **k: diagnostics.plot_trace(p, *m, **k),
    "plot_rank": lambda p, *m, **k: diagnostics.plot_rank(p, *m, **k),
    "plot_ess": lambda p, *m, **k: diagnostics.plot_ess(p, *m, **k),
    "plot_forest": lambda p, *m, **k: diagnostics.plot_forest({"a": p}, *m, **k),
    "convergence": lambda p, *m, **k: convergence(p, *m, **k),
    "evaluate": lambda p, *m, **k: diagnostics.predictive_metrics(p.evaluate(*m, DATA.test, **k), model=MODEL),
    "with_deterministic": lambda p, *m, **k: p.with_deterministic(*m, **k),
}


@pytest.mark.filterwarnings("ignore")  # of plots of few draws
@pytest.mark.parametrize("name", CALLS)
def test_it_may_be_named_in_the_call(name: str, posterior: Posterior, loaded: Posterior) -> None:
    call = CALLS[name]
    wanted = call(posterior)
    for given in (posterior, loaded):
        assert same(call(given, MODEL), wanted)
        assert same(call(given, model=MODEL), wanted)
    with pytest.raises(TypeError, match="model must be a Model; got str 'logistic'"):
        call(posterior, model="logistic")


@pytest.mark.filterwarnings("ignore")
def test_it_may_be_named_where_a_function_predicts_or_pictures_are_made(of_images: Posterior, tmp_path: Path) -> None:
    split = IMAGES.test
    wanted = str(diagnostics.robustness(of_images, split, **SOME))
    assert str(diagnostics.robustness(of_images, NETWORK, split, **SOME)) == wanted

    def predict(x: np.ndarray) -> np.ndarray:
        return np.full((len(x), 2), 0.5)

    assert str(diagnostics.robustness(predict, None, split, **SOME)) == str(
        diagnostics.robustness(predict, split, **SOME)
    )
    found = compare_posteriors({"full": of_images, "b": of_images}, split, max_inputs=3)
    page = {"posteriors": {"full": of_images}}
    one = diagnostics.report(found, tmp_path / "a.html", **page).read_text()
    assert diagnostics.report(found, tmp_path / "b.html", **page, model=NETWORK).read_text() == one


def test_no_diagnostic_asks_its_caller() -> None:
    asking = {
        name
        for name in diagnostics.__all__
        if callable(getattr(diagnostics, name)) and "model" in inspect.signature(getattr(diagnostics, name)).parameters
    }
    assert asking == {"calibrate"}  # a test of a sampler, which has a model and no posterior yet
