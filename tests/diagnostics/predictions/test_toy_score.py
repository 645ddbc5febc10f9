"""A score is one function in one file: whatever scores predictions reports it without an edit elsewhere."""

from __future__ import annotations

import copy
import pickle
import runpy
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

import pseudocoreset
from pseudocoreset import Dataset, Pseudocoreset, evaluate
from pseudocoreset.diagnostics import compare_posteriors, predictive_metrics
from pseudocoreset.diagnostics.predictions.metrics import metrics_of
from pseudocoreset.diagnostics.predictions.predictive import Predictive
from pseudocoreset.diagnostics.predictions.scores import SCORES, register
from pseudocoreset.inference import Posterior
from pseudocoreset.models import MLP, Model, bnn

P = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
PAGE = Path(__file__).parents[3] / "docs" / "add-a-score.md"


@pytest.fixture(scope="module", autouse=True)
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The skeleton of the page, as a file of the user's."""
    place = tmp_path_factory.mktemp("page") / "spherical.py"
    place.write_text(PAGE.read_text().split("```python\n")[1].split("```")[0])
    runpy.run_path(str(place))
    yield
    del SCORES["spherical"]


def spherical(probabilities: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.array([row[label] / np.sqrt(sum(row**2)) for row, label in zip(probabilities, y, strict=True)])


def test_probabilities_are_scored() -> None:
    found = predictive_metrics(P, [0, 1])
    values = np.array([0.6 / np.sqrt(0.46), 0.2 / np.sqrt(0.44)])
    assert found.spherical == pytest.approx(values.mean())
    assert found.spherical_standard_error == pytest.approx(values.std(ddof=1) / np.sqrt(2))
    assert found.as_dict()["spherical"] == found.spherical


def test_a_comparison_has_it_in_its_tables(softmax: tuple[Model, object], softmax_posterior: Posterior) -> None:
    found = compare_posteriors({"full": softmax_posterior}, softmax[1], max_inputs=5)
    full, uniform = (spherical(found.predictions[name].probabilities, softmax[1].y) for name in ("full", "uniform"))
    assert found.metrics["full"].spherical == pytest.approx(full.mean())
    gap = found.differences["uniform"]
    assert gap.spherical == pytest.approx((uniform - full).mean())
    assert gap.spherical_standard_error == pytest.approx((uniform - full).std(ddof=1) / np.sqrt(len(full)))
    assert found.as_dict()["differences"]["uniform"]["spherical"] == gap.spherical
    assert str(found).count("spherical") == 2


def test_protocols_and_the_table_of_networks_report_it() -> None:
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    y = (np.arange(40) % 3).astype(np.int32)
    data = Dataset.from_arrays(x, y, test=(x[:20], y[:20]))
    coreset = Pseudocoreset.from_data(data, size=6, key=jax.random.key(0))
    few = dict(protocol="distillation", num_epochs=1, num_networks=1, augment=None, split="test", key=jax.random.key(1))
    found = evaluate(coreset, {"narrow": bnn(MLP((2,)), data)}, data, **few)
    score = found["narrow"].metrics["spherical"]
    assert 0 < score.mean < 1
    assert score.standard_error > 0
    assert "spherical" in found.table()[1]


def test_it_is_none_where_it_has_no_meaning() -> None:
    y = np.arange(3.0)
    found = metrics_of(Predictive(y, -y, -y - 1, mean=y[:, None], observed=y[:, None] + 2))
    assert found.rmse == pytest.approx(2)
    assert found.spherical is found.spherical_standard_error is found.as_dict()["spherical"] is None


def test_scores_that_do_not_fit_are_refused() -> None:
    for name in ("nll", "elpd", "brier_standard_error"):
        function = lambda predictive, num_bins: predictive.log_likelihood  # noqa: E731
        function.__name__ = name
        with pytest.raises(ValueError, match=f"the name '{name}' is taken; the scores are accuracy"):
            register(title="mine")(function)

    @register(title="mine")
    def summed(predictive, num_bins):
        return predictive.log_likelihood.sum()

    try:
        with pytest.raises(ValueError, match=r"'summed' must give a number for each .*, shape \(2,\), or None; got"):
            predictive_metrics(P, [0, 1])
    finally:
        del SCORES["summed"]


def test_what_is_no_score_is_no_attribute() -> None:
    found = predictive_metrics(P, [0, 1])
    with pytest.raises(AttributeError, match="Metrics has no 'acuracy'; the scores are accuracy, rmse, nll"):
        found.acuracy  # noqa: B018
    for same in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert same == found
        assert same.spherical == found.spherical


def test_no_other_file_names_it() -> None:
    root = Path(pseudocoreset.__file__).parent
    assert not [path for path in root.rglob("*.py") if "spherical" in path.read_text()]
