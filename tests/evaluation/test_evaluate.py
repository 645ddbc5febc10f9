"""``evaluate``: which data are scored, by what, and what is said about it."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from pseudocoreset import Dataset, Evaluation, Pseudocoreset, evaluate, load_dataset
from pseudocoreset.data import Preprocessing
from pseudocoreset.diagnostics import predictive_metrics
from pseudocoreset.evaluation import Default, Distillation, Evaluations
from pseudocoreset.models import MLP, bnn, linear_regression

DATA = load_dataset("digits")
MODEL = bnn(MLP(widths=(8,)), DATA)
CORESET = Pseudocoreset.from_data(DATA, size=20, key=jax.random.key(0), mass="data")
KEY = jax.random.key(1)
FEW = dict(num_chains=2, num_warmup=20, num_samples=5, thinning=2, progress=False)
SHORT = dict(protocol="distillation", num_epochs=3, num_networks=1, progress=False)


def test_validation_data_are_scored_unless_the_test_split_is_asked_for():
    """A data set without a test split will do, and one with a validation split keeps it."""
    untested = replace(DATA, test=None)
    seen = evaluate(CORESET, MODEL, untested, key=KEY, **SHORT)
    assert (seen.split, seen.num_data) == ("validation", len(DATA.split_validation(0.1, KEY).validation))
    assert "training data, which this coreset may have been learned from" in repr(seen)
    clean = evaluate(CORESET, MODEL, DATA.split_validation(0.3, KEY), key=KEY, **SHORT)
    assert clean.num_data == len(DATA.split_validation(0.3, KEY).validation)
    assert "may have been learned from" not in repr(clean)
    with pytest.raises(ValueError, match="has no test split"):
        evaluate(CORESET, MODEL, untested, split="test", key=KEY, **SHORT)


def test_default_scores_the_average_of_the_draws_and_keeps_them():
    found = evaluate(CORESET, MODEL, DATA, split="test", key=KEY, **FEW)
    assert (found.split, found.num_data) == ("test", len(DATA.test))
    wanted = predictive_metrics(found.posterior)
    assert found.metrics["nll"].mean == wanted.nll
    assert found.metrics["nll"].standard_error == wanted.nll_standard_error
    assert found.metrics["accuracy"].mean == wanted.accuracy
    assert found.metrics["accuracy"].spread is None
    assert found.posterior.metadata["temperature"] == 1.0
    assert found.posterior.metadata["augment"] is None
    assert found.posterior.metadata["total_weight"] == pytest.approx(CORESET.mass)
    assert "mass of the weights is 1442" in repr(found)
    again = evaluate(CORESET, MODEL, DATA, split="test", key=KEY, **FEW)
    other = evaluate(CORESET, MODEL, DATA, split="test", key=jax.random.key(7), **FEW)
    assert again.metrics["nll"].mean == found.metrics["nll"].mean != other.metrics["nll"].mean


def test_repeats_of_the_default_are_sets_of_chains():
    found = evaluate(CORESET, MODEL, DATA, key=KEY, num_repeats=2, **{**FEW, "num_chains": 1})
    assert found.posterior.num_chains == 2
    values = found.metrics["nll"].values
    assert len(set(values)) == 2
    assert found.metrics["nll"].spread == pytest.approx(np.std(values, ddof=1))
    pooled = predictive_metrics(found.posterior).nll
    assert pooled < np.mean(values)  # averaging more draws can only help, by Jensen


def test_the_mass_of_the_weights_is_a_setting():
    light = evaluate(CORESET, MODEL, DATA, key=KEY, mass=5.0, **FEW)
    assert light.posterior.metadata["total_weight"] == pytest.approx(5.0)
    assert light.settings["mass"] == pytest.approx(5.0)
    chosen = evaluate(CORESET, MODEL, DATA, key=KEY, mass="choose", masses=(2.0, 50.0), **FEW)
    record = chosen.settings["mass_choice"]
    assert record["mass"] == [2.0, 50.0]
    assert chosen.settings["mass"] == pytest.approx(record["mass"][int(np.argmin(record["nll"]))])
    assert "very data that are scored" in repr(chosen)
    tested = evaluate(CORESET, MODEL, DATA, key=KEY, split="test", mass="choose", masses=(2.0, 50.0), **FEW)
    assert tested.settings["mass_choice"] == record  # chosen on validation data all the same
    assert "very data that are scored" not in repr(tested)


def test_a_regression_is_scored_by_the_default_alone():
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 2))
    data = Dataset.from_arrays(x, x @ [1.0, -1.0] + 0.1 * random.normal(size=60))
    model = linear_regression(data, noise_scale=0.1)
    coreset = Pseudocoreset.from_data(data, size=10, key=KEY)
    found = evaluate(coreset, model, data, key=KEY, **{**FEW, "num_warmup": 300})
    assert found.metrics["rmse"].mean < 1.0  # the targets have a deviation of 1.4
    assert "accuracy" not in found.metrics
    with pytest.raises(ValueError, match="models of classes"):
        evaluate(coreset, model, data, key=KEY, protocol="kim2022", progress=False)


def test_several_networks_make_a_table():
    wider = bnn(MLP(widths=(12,)), DATA)
    found = evaluate(CORESET, [MODEL, wider], DATA, key=KEY, **SHORT)
    assert isinstance(found, Evaluations)
    assert list(found) == ["MLP-1", "MLP-2"]
    alone = evaluate(CORESET, wider, DATA, key=KEY, **SHORT)
    assert found["MLP-2"].metrics["nll"].values == alone.metrics["nll"].values
    assert list(evaluate(CORESET, {"wide": wider}, DATA, key=KEY, **SHORT)) == ["wide"]
    lines = repr(found).splitlines()
    assert lines[0].startswith("Evaluations by 'distillation'")
    assert "MLP-2" in lines[3]
    assert json.loads(json.dumps(found.as_dict()))["MLP-1"]["model"] == "MLP-1"


def test_an_evaluation_says_what_it_is():
    found = evaluate(CORESET, MODEL, DATA, key=KEY, **{**SHORT, "num_networks": 3})
    assert isinstance(found, Evaluation)
    content = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    accuracy = content["metrics"]["accuracy"]
    assert len(accuracy["values"]) == 3
    assert accuracy["mean"] == pytest.approx(np.mean(accuracy["values"]))
    each = [np.sqrt(a * (1 - a) / found.num_data) for a in accuracy["values"]]
    assert accuracy["standard_error"] == pytest.approx(np.mean(each), rel=1e-6)
    assert content["settings"]["learning_rate"] == 0.01
    assert content["settings"]["num_points"] == 20
    assert {"jax", "pseudocoreset"} <= content["versions"].keys()
    assert found.seconds > 0
    heading, columns, rows = found.table()
    assert "3 repeats" in heading
    assert len(columns) == 3
    assert [row[0] for row in rows] == list(found.metrics)


def test_an_nll_above_that_of_guessing_is_called_that():
    found = evaluate(CORESET, MODEL, DATA, key=KEY, **{**SHORT, "learning_rate": 1e-6})
    assert found.metrics["nll"].mean > np.log(10)
    assert "no better than that of uniform guessing" in repr(found)


def test_a_configuration_and_its_name_are_one():
    named = evaluate(CORESET, MODEL, DATA, key=KEY, **SHORT)
    given = evaluate(CORESET, MODEL, DATA, key=KEY, protocol=Distillation(num_epochs=3, num_networks=1), progress=False)
    assert named.metrics["nll"].values == given.metrics["nll"].values


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"key": 0}, TypeError, "key"),
        ({"split": "train"}, ValueError, "split='train'"),
        ({"protocol": "kim2023"}, ValueError, "protocol='kim2023'"),
        ({"protocol": 3}, TypeError, "protocol must be"),
        ({"protocol": "fbpc2023", "num_chains": 2}, ValueError, "has no 'num_chains'; its settings are learning_rate"),
        ({"data": (DATA.train.x, DATA.train.y)}, TypeError, "data must be a Dataset"),
        ({"coreset": DATA}, TypeError, "coreset must be a Pseudocoreset"),
        ({"model": []}, TypeError, "model must be a Model"),
        ({"model": "ConvNet"}, TypeError, "model must be a Model"),
        ({"validation_fraction": 1.5}, ValueError, "fraction"),
        ({"mass": "all"}, ValueError, "mass must be"),
        ({"masses": (1.0,)}, ValueError, "masses are candidates"),
        ({"num_repeats": 0}, ValueError, "num_repeats"),
    ],
)
def test_bad_arguments_are_named(changes, kind, message):
    arguments = {"coreset": CORESET, "model": MODEL, "data": DATA, "key": KEY, "progress": False} | changes
    with pytest.raises(kind, match=message):
        evaluate(**arguments)


def test_other_preprocessing_than_that_of_the_coreset_is_refused():
    foreign = replace(CORESET, preprocessing=Preprocessing(scale=1 / 255))
    with pytest.raises(ValueError, match="preprocessed"):
        evaluate(foreign, MODEL, DATA, key=KEY, **SHORT)
    moved = replace(DATA.preprocessing, mean=DATA.preprocessing.mean + 0.1)
    with pytest.raises(ValueError, match="preprocessed"):
        evaluate(replace(CORESET, preprocessing=moved), MODEL, DATA, key=KEY, **SHORT)
    small = replace(CORESET, inputs=CORESET.inputs[:, :4])
    with pytest.raises(ValueError, match=r"coreset has inputs of shape \(4, 8, 1\)"):
        evaluate(small, MODEL, DATA, key=KEY, **SHORT)


def test_default_leaves_the_weights_as_they_are():
    assert Default().mass is None
    assert Default().augment is None
    assert Default().temperature == 1.0
