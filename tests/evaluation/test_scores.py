"""Formulas of published code against NumPy, on random logits."""

import itertools

import numpy as np
import pytest

from pseudocoreset.diagnostics import expected_calibration_error, predictive_metrics
from pseudocoreset.evaluation import Estimate, ece_batch, nll_batchmean

RNG = np.random.default_rng(1)
DRAWS, N, C = 7, 300, 10
Y = RNG.integers(0, C, N)
LOGITS = 2.0 * RNG.normal(size=(DRAWS, N, C))
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
LOG_LIKELIHOOD = np.log(PROBABILITIES[:, np.arange(N), Y])
AVERAGE = PROBABILITIES.mean(0)


def test_nll_batchmean_is_its_formula():
    """Batches of 128, 128 and 44."""
    total = 0.0
    for batch in np.split(np.arange(N), [128, 256]):
        nlls = [-np.mean(LOG_LIKELIHOOD[s, batch]) for s in range(DRAWS)]
        total += -np.log(np.mean(np.exp(-np.array(nlls)))) * len(batch)
    assert nll_batchmean(LOG_LIKELIHOOD) == pytest.approx(total / N, rel=1e-12)


def test_nll_batchmean_lies_between_that_of_the_average_and_that_of_its_members():
    """Jensen's inequality; with batches of one it is the former."""
    scores = predictive_metrics(PROBABILITIES[None], Y)
    assert nll_batchmean(LOG_LIKELIHOOD, batch_size=1) == pytest.approx(scores.nll, rel=1e-9)
    assert scores.nll + 0.1 < nll_batchmean(LOG_LIKELIHOOD) < scores.nll_member


def test_nll_batchmean_keeps_what_underflows():
    assert nll_batchmean(np.array([[-2000.0], [-3000.0]])) == pytest.approx(2000 + np.log(2))


def test_ece_batch_is_its_formula():
    edges = np.linspace(0, 1, 30)
    total = 0.0
    for batch in np.split(np.arange(N), [128, 256]):
        confidence = AVERAGE[batch].max(1)
        correct = AVERAGE[batch].argmax(1) == Y[batch]
        for low, high in itertools.pairwise(edges):
            inside = (confidence > low) & (confidence <= high)
            total += abs(np.sum(correct[inside] - confidence[inside]))
    assert ece_batch(AVERAGE, Y) == pytest.approx(total / N, rel=1e-12)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    """Of the bins (0, 0.5] and (0.5, 1] the first datum is in the first: their errors do not cancel."""
    probabilities, y = [[0.5, 0.5], [0.6, 0.4]], [0, 1]
    assert ece_batch(probabilities, y, num_edges=3) == pytest.approx((0.5 + 0.6) / 2)
    assert ece_batch([[0.5, 0.5], [0.5, 0.5]], [0, 1], num_edges=3) == pytest.approx(0.0)


def test_ece_batch_grows_as_batches_shrink():
    whole = ece_batch(AVERAGE, Y, batch_size=N)
    assert whole == pytest.approx(expected_calibration_error(AVERAGE, Y, num_bins=29), rel=1e-12)
    assert whole < ece_batch(AVERAGE, Y) < ece_batch(AVERAGE, Y, batch_size=10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nll_batchmean(np.zeros(3)), "log_likelihood"),
        (lambda: nll_batchmean(LOG_LIKELIHOOD, batch_size=0), "batch_size"),
        (lambda: ece_batch(AVERAGE, Y[1:]), "probabilities"),
        (lambda: ece_batch(AVERAGE, Y, num_edges=1), "num_edges"),
    ],
)
def test_bad_arrays_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_estimate_knows_its_spread():
    estimate = Estimate((0.5, 0.7, 0.9), 0.02)
    assert (estimate.mean, estimate.spread) == (pytest.approx(0.7), pytest.approx(0.2))
    assert str(estimate) == "0.700 ± 0.200"
    assert Estimate((0.5,), 0.02).spread is None
    assert str(Estimate((0.5,), 0.02)) == "0.500 ± 0.020"
