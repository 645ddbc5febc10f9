"""Detection of foreign inputs, against scikit-learn and repetition."""

import dataclasses

import numpy as np
import pytest
import scipy.special
import sklearn.metrics

from pseudocoreset.diagnostics import detect_foreign

RNG = np.random.default_rng(0)


def probabilities(n, scale, rng=RNG):
    return scipy.special.softmax(scale * rng.normal(size=(n, 4)), axis=-1)


@pytest.mark.parametrize("score", ["entropy", "confidence"])
def test_the_area_is_scikit_learns(score):
    inside, outside = probabilities(60, 3.0), probabilities(40, 1.5)
    inside[:10], outside[:10] = 0.25, 0.25  # ties
    both = np.r_[inside, outside]
    scores = 1 - both.max(1) if score == "confidence" else -(both * np.log(both)).sum(1)
    wanted = sklearn.metrics.roc_auc_score(np.r_[np.zeros(60), np.ones(40)], scores)
    assert detect_foreign(inside, outside, score=score).auroc == pytest.approx(wanted, abs=1e-12)


def test_the_standard_error_is_that_of_repetition():
    rng = np.random.default_rng(1)
    found = [detect_foreign(probabilities(50, 3.0, rng), probabilities(30, 1.5, rng)) for _ in range(600)]
    spread = np.std([one.auroc for one in found])
    claimed = np.sqrt(np.mean([one.standard_error**2 for one in found]))
    assert claimed == pytest.approx(spread, rel=4 / np.sqrt(2 * 600) + 0.02)


def test_of_posteriors(softmax, softmax_posterior):
    _, split = softmax
    assert detect_foreign(softmax_posterior, softmax_posterior).auroc == pytest.approx(0.5)
    # Inputs of zero are predicted uniformly by every draw, which nothing can exceed.
    far = softmax_posterior.evaluate((np.zeros_like(split.x), split.y))
    found = detect_foreign(softmax_posterior, far)
    assert found.auroc == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(score="margin"), "score='margin'"),
        (dict(foreign=np.ones((3, 4))), "foreign must be a posterior or class probabilities"),
        (dict(foreign=np.ones(4) / 4), r"foreign must be .* got shape \(4,\)"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        detect_foreign(**{"familiar": probabilities(5, 1.0), "foreign": probabilities(5, 1.0), **arguments})


def test_a_posterior_needs_its_model(softmax_posterior):
    with pytest.raises(ValueError, match="model is needed"):
        detect_foreign(softmax_posterior, dataclasses.replace(softmax_posterior, model=None))
