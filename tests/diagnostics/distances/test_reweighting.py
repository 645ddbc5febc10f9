"""Importance weights between Gaussian posteriors that are known exactly."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from arviz_stats.base import array_stats

from pseudocoreset import Dataset, Pseudocoreset
from pseudocoreset.compute.limits import limited
from pseudocoreset.diagnostics import Reweighting, reweight
from pseudocoreset.diagnostics.distances.reweighting import pareto_smoothed
from pseudocoreset.inference import Posterior
from pseudocoreset.models import ConvNet, bnn, gaussian_location

RNG = np.random.default_rng(0)
X = RNG.normal(0.4, 1.0, size=(50, 2)).astype(np.float32)
DATA = Dataset.from_arrays(X)
MODEL = gaussian_location(DATA)  # of unit noise, prior N(0, 1)


def exact(x, w):
    """Mean and standard deviation of the posterior of weighted points."""
    variance = 1 / (1 + w.sum())
    return variance * w @ x, np.sqrt(variance)


def coreset(shift=0.0):
    points = np.stack([X[:25].mean(0), X[25:].mean(0)]) + np.float32(shift)
    return dataclasses.replace(
        Pseudocoreset.from_data(DATA, size=2, key=jax.random.key(0), mass="data"),
        inputs=points.astype(np.float32),
        weights=np.array([20.0, 22.0], np.float32),
    )


def drawn(source, chains=2, draws=2000, **metadata):
    mean, deviation = exact(source.inputs.astype(np.float64), source.weights)
    values = (mean + deviation * RNG.normal(size=(chains, draws, 2))).astype(np.float32)
    site = next(iter(MODEL.init(jax.random.key(0))))
    return Posterior(
        draws={site: values}, unconstrained={site: values}, function_values=None, log_likelihood=None, sample_stats={},
        predict_on=None, metadata=metadata, model=MODEL,
    )  # fmt: skip


def test_the_weights_are_the_ratio_of_the_densities_and_correct_the_moments():
    small = coreset()
    posterior = drawn(small)
    found = reweight(posterior, source=small, target=DATA)
    values = next(iter(posterior.draws.values())).astype(np.float64)
    (mean, deviation), (start, spread) = exact(X.astype(np.float64), np.ones(50)), exact(small.inputs, small.weights)
    log_ratio = ((values - start) ** 2).sum(-1) / (2 * spread**2) - ((values - mean) ** 2).sum(-1) / (2 * deviation**2)
    body = np.argsort(log_ratio.ravel())[:2000]  # not smoothed
    gap = (found.log_weights - log_ratio).ravel()[body]
    np.testing.assert_allclose(gap, gap.mean(), atol=2e-3)  # a constant, to the rounding of sums over the data
    assert np.exp(found.log_weights).sum() == pytest.approx(1.0)
    assert found.is_reliable
    assert found.pareto_k < 0.5
    error = deviation / np.sqrt(found.effective_draws)
    assert np.all(np.abs(found.mean(values) - mean) < 4 * error)
    assert np.any(np.abs(values.mean((0, 1)) - mean) > 4 * error)  # what the weights had to correct
    assert 1000 < found.effective_draws < 4000
    assert json.loads(json.dumps(found.as_dict()))["is_reliable"] is True


def test_the_standard_error_of_the_tail_index_is_true():
    """Of weights with a Pareto tail of index 1/2, 200 times 2,000 of them, by the estimator that is used."""
    ratios = 0.5 * RNG.exponential(size=(200, 2000))  # logs of (1 / uniform)^(1/2)
    found = [array_stats.psislw(-row) for row in ratios]
    indices = np.array([float(k) for _, k in found])
    rows = [Reweighting(np.asarray(w)[None], float(k), 0.7, 1.0) for w, k in found]
    # The estimator leans towards 1/2 with the weight of ten draws, of M = 134; 200 values give a spread to 5 %.
    shrinkage = 134 / 144
    spread = np.std(indices) / np.mean([row.pareto_k_standard_error for row in rows])
    assert spread == pytest.approx(shrinkage, abs=0.2)
    assert np.isnan(Reweighting(np.zeros((1, 10)), 0.0, 0.0, 10.0).pareto_k_standard_error)


def test_the_same_data_need_no_weights():
    small = coreset()
    found = reweight(drawn(small, draws=100), source=small, target=small)
    np.testing.assert_allclose(found.log_weights, -np.log(200), atol=1e-5)
    assert found.effective_draws == pytest.approx(200)


def test_distant_posteriors_are_found_out():
    small = coreset(shift=1.5)
    found = reweight(drawn(small, draws=200), source=small, target=DATA)
    assert found.pareto_k > 0.7
    assert not found.is_reliable


@pytest.mark.parametrize("distance", [3.0, 30.0, 113.0, 1000.0])
def test_posteriors_any_distance_apart_are_called_unreliable(distance):
    """The log ratios of equal Gaussians a shift apart are linear in the draw: their spread is shift / deviation."""
    small = coreset(shift=distance / np.sqrt(2 * 43))  # so many standard deviations of the posterior, of two parameters
    posterior = drawn(small, draws=300)
    found = reweight(posterior, source=small, target=dataclasses.replace(small, inputs=coreset().inputs))
    assert found.spread == pytest.approx(distance * 42 / 43, rel=0.1)  # the shift of the mean is shrunk by the prior
    assert not found.is_reliable
    assert found.pareto_k > 0.7
    assert not np.isnan(found.log_weights).any()
    assert np.exp(found.log_weights).sum() == pytest.approx(1.0)
    assert 1 <= found.effective_draws < 40
    assert f"spread by {found.spread:.1f} nats" in str(found)
    assert "cannot be trusted" in str(found)


@pytest.mark.parametrize("scale", [100.0, 300.0, 500.0, 700.0, 1000.0, 1e5])
@pytest.mark.parametrize("draws", [30, 100, 600, 4000])
def test_a_spread_of_hundreds_of_nats_is_never_reliable(draws, scale):
    normal = np.random.default_rng(1).normal(size=draws)
    for values in (normal, normal**2, np.exp(normal)):
        log_weights, pareto_k = pareto_smoothed(scale * values)
        assert pareto_k > 3
        assert not np.isnan(log_weights).any()
        assert np.exp(log_weights).sum() == pytest.approx(1.0)


def test_ratios_that_are_no_numbers_have_an_infinite_index():
    body = np.random.default_rng(2).normal(size=50)
    for lost in (np.nan, np.inf):
        log_weights, pareto_k = pareto_smoothed(np.append(body, lost))
        assert pareto_k == np.inf
        assert log_weights[-1] == -np.inf
        assert np.exp(log_weights).sum() == pytest.approx(1.0)
    for nothing in (np.full(30, np.nan), np.full(30, -np.inf)):
        log_weights, pareto_k = pareto_smoothed(nothing)
        assert pareto_k == np.inf
        assert np.all(log_weights == -np.inf)
    # A draw outside the support of the target has weight zero, which is right.
    log_weights, pareto_k = pareto_smoothed(np.append(0.1 * body, -np.inf))
    assert log_weights[-1] == -np.inf
    assert pareto_k < 0.7
    assert pareto_smoothed(np.r_[np.zeros(30), np.full(9, -1.0)])[1] == 0.0  # bounded weights: no tail


def test_no_weights_at_all_give_no_average():
    found = Reweighting(np.full((2, 50), -np.inf), np.inf, 0.5, 0.0, np.inf)
    assert not found.is_reliable
    assert np.isnan(found.mean(np.ones((2, 50))))
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["pareto_k"] == "inf"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: dataclasses.replace(p, unconstrained=None), "did not keep its weights"),
        (lambda p: dataclasses.replace(p, metadata={"temperature": 0.5}), "at temperature 0.5"),
        (lambda p: drawn(coreset(), chains=1, draws=24), "has 24 draws; a tail needs at least 25"),
    ],
)
def test_what_cannot_be_weighted_is_refused(change, message):
    small = coreset()
    with pytest.raises(ValueError, match=message):
        reweight(change(drawn(small, draws=20)), source=small, target=DATA)


def test_data_that_depend_on_one_another_are_taken_at_once():
    x = RNG.normal(size=(40, 4, 4, 1)).astype(np.float32)
    model = bnn(ConvNet(depth=1, width=3, norm="batch"), input_shape=(4, 4, 1), num_outputs=2)
    weights = jax.vmap(model.init)(jax.random.split(jax.random.key(0), 100))
    stack = {name: np.asarray(array)[None] for name, array in weights.items()}
    posterior = dataclasses.replace(drawn(coreset()), draws=stack, unconstrained=stack, model=model)
    data = {"source": (x[:10], np.arange(10) % 2), "target": (x, np.arange(40) % 2)}
    wanted = reweight(posterior, **data)
    with limited(activation_bytes=1):
        np.testing.assert_allclose(reweight(posterior, **data).log_weights, wanted.log_weights, atol=1e-4)
