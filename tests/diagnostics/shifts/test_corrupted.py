"""Scores under corruption, against direct evaluation, their definition and repetition."""

import dataclasses
import json

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from pseudocoreset.data import CORRUPTIONS, SEVERITIES, Preprocessing, Split, corrupted
from pseudocoreset.diagnostics import predictive_metrics, robustness
from pseudocoreset.models import Model

KEY = jax.random.key(0)
SOME = dict(corruptions=("brightness", "snow"), severities=(1, 5), key=KEY)


def levels_split(levels):
    """Images of one grey each, all of class 0."""
    raw = np.rint(255 * np.asarray(levels))[:, None, None, None].repeat(4, 1).repeat(4, 2).astype(np.uint8)
    return Split(raw, np.zeros(len(raw), np.int32), Preprocessing(scale=1 / 255))


def dark_is_zero(x):
    """Class 0 where the image is darker than 0.8, class 1 elsewhere."""
    dark = x.mean((1, 2, 3)) < 0.8
    return np.where(dark[:, None], (0.9, 0.1), (0.3, 0.7))


def test_cells_are_what_evaluation_of_the_corrupted_split_gives(network, images, run):
    found = robustness(run["full"], images.test, **SOME)
    assert found.accuracy.shape == found.nll.shape == found.ece.shape == (2, 2)
    assert found.clean == predictive_metrics(run["full"])
    for row, name in enumerate(found.corruptions):
        for column, severity in enumerate(found.severities):
            evaluated = run["full"].evaluate(corrupted(images.test, name, severity, KEY))
            wanted = predictive_metrics(evaluated)
            cell = {score: values[row, column] for score, values in found.cells._asdict().items()}
            for score in ("accuracy", "nll", "ece", "nll_standard_error", "ece_standard_error"):
                assert cell[score] == pytest.approx(getattr(wanted, score), rel=1e-9), score
            assert cell["degradation"] == pytest.approx(1 - wanted.accuracy / found.clean.accuracy)


def test_degradation_is_the_share_of_clean_accuracy_that_is_lost():
    # Brightness adds 0.05 to 0.3: what was below 0.8 minus that stays right.
    split = levels_split((np.arange(100) + 0.5) / 100)
    found = robustness(dark_is_zero, split, corruptions=["brightness"], key=KEY)
    np.testing.assert_allclose(found.accuracy, [[0.75, 0.7, 0.65, 0.6, 0.5]])
    assert found.clean.accuracy == pytest.approx(0.8)
    np.testing.assert_allclose(found.cells.degradation, [[1 - a / 0.8 for a in (0.75, 0.7, 0.65, 0.6, 0.5)]])
    assert found.mean_accuracy == pytest.approx(0.64)
    assert found.relative_degradation == pytest.approx(0.2)
    np.testing.assert_allclose(found.by_corruption.degradation, [0.2])
    # A score of one image is right or wrong; an average over severities is of each image's five.
    right = (split.raw[:, 0, 0, 0] / 255 + np.array([[0.05], [0.1], [0.15], [0.2], [0.3]]) < 0.8).mean(0)
    assert found.overall.accuracy_standard_error == pytest.approx(right.std(ddof=1) / 10)


@pytest.mark.slow
def test_standard_errors_are_those_of_repetition():
    rng = np.random.default_rng(0)
    found = [
        robustness(dark_is_zero, levels_split(rng.uniform(0.1, 1, 40)), **{**SOME, "corruptions": ["brightness"]})
        for _ in range(700)  # errors a fifth too small would be found in 97 % of cases
    ]
    for score in ("accuracy", "nll", "ece", "degradation"):
        spread = np.std([getattr(one.overall, score) for one in found])
        claimed = np.sqrt(np.mean([getattr(one.overall, f"{score}_standard_error") ** 2 for one in found]))
        assert claimed == pytest.approx(spread, rel=4 / np.sqrt(2 * 700) + 0.02), score


def test_scores_of_a_corruption_do_not_depend_on_the_others(network, images, run):
    both = robustness(run["full"], images.test, **SOME)
    one = robustness(run["full"], images.test, **{**SOME, "corruptions": ["snow"], "severities": [5]})
    np.testing.assert_array_equal(one.nll, both.nll[1:, 1:])


def test_a_clean_evaluation_may_be_given(network, images, run):
    computed = robustness(run["full"], images.test, **SOME)
    given = robustness(run["full"], images.test, **SOME, clean=run["full"])
    assert given.clean == computed.clean
    np.testing.assert_array_equal(given.cells.degradation, computed.cells.degradation)
    split = levels_split([0.2, 0.9])
    assert robustness(dark_is_zero, split, **SOME, clean=np.eye(2)).clean.accuracy == 0.5
    with pytest.raises(ValueError, match="clean must be a posterior evaluated on this split"):
        robustness(run["full"], images.test.head(7), **SOME, clean=run["full"])


def test_all_of_the_paper_by_default(images):
    found = robustness(lambda x: np.full((len(x), 3), 1 / 3), images.test, key=KEY)
    assert found.corruptions == CORRUPTIONS
    assert found.severities == SEVERITIES
    assert found.mean_accuracy == pytest.approx(1 / 3)  # of ties
    assert found.relative_degradation == pytest.approx(0)
    np.testing.assert_allclose(found.nll, np.log(3))


def test_what_was_never_right_loses_nothing():
    found = robustness(dark_is_zero, levels_split([0.9, 0.95]), corruptions=["brightness"], key=KEY)
    assert found.clean.accuracy == 0
    assert np.isnan(found.relative_degradation)


def test_it_is_shown_and_written(network, images, run):
    found = robustness(run["full"], images.test, **SOME)
    lines = str(found).splitlines()
    assert "30 images, 80 draws" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["brightness", "snow", "average", "clean"]
    percent = f"{100 * found.relative_degradation:.1f} ± {100 * found.overall.degradation_standard_error:.1f}"
    assert lines[4].endswith(percent)
    written = json.loads(json.dumps(found.as_dict()))
    np.testing.assert_allclose(written["cells"]["accuracy"], found.accuracy)
    assert written["clean"]["nll"] == found.clean.nll
    assert written["corruptions"] == ["brightness", "snow"]


def test_a_posterior_needs_its_weights_and_its_model(network, images, run, tools):
    with pytest.raises(ValueError, match=r"weights of this posterior were not kept.*keep='weights'"):
        robustness(tools.without_weights(run["full"]), images.test, **SOME)
    with pytest.raises(ValueError, match="model is needed"):
        robustness(dataclasses.replace(run["full"], model=None), images.test, **SOME)


def test_real_targets_are_refused(tools):
    def program(x, y=None):
        weights = numpyro.sample("weights", dist.Normal(0, 1).expand((16,)).to_event(1))
        f = numpyro.deterministic("f", x.reshape(x.shape[0], -1) @ weights)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(f, 1), obs=y)

    images = levels_split([0.2, 0.5])
    split = Split(images.raw, np.ones(2, np.float32), images.preprocessing)
    model = Model.from_numpyro(program)
    posterior = tools.make_posterior(model, split, {"weights": np.zeros((1, 2, 16))})
    with pytest.raises(ValueError, match="robustness is of predicted classes"):
        robustness(posterior, split, **SOME)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(corruptions=["snow", "sand"]), ValueError, "name='sand' is unknown"),
        (dict(corruptions="snow"), TypeError, "corruptions must be a sequence of strings; got str 'snow'"),
        (dict(corruptions=()), ValueError, "corruptions must be"),
        (dict(severities=(1, 1)), ValueError, r"severities must be .* each once; got \(1, 1\)"),
        (dict(severities=(1, 7)), ValueError, "severity must be 1 to 5; got 7"),
        (dict(key=3), TypeError, "key must be a typed key"),
        (dict(posterior_or_predict=np.eye(2)), TypeError, "must be a Posterior or a function.*got an array"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_evaluated(change, error, message):
    def predict(x):
        raise AssertionError("evaluated")

    arguments = dict(posterior_or_predict=predict, split=levels_split([0.5]), **SOME)
    with pytest.raises(error, match=message):
        robustness(**{**arguments, **change})
