"""Arguments that do not fit are refused before anything is compiled, with a sentence that helps."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pseudocoreset.inference import sample
from pseudocoreset.models import MLP, Model, bnn, logistic_regression

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
LABELS = np.array([0, 1, 0, 1, 1, 0])
NAN = np.where(np.arange(6)[:, None] == 4, np.nan, X)


@pytest.fixture(scope="module")
def classifier() -> Model:
    return logistic_regression(num_classes=2).bind(X, LABELS)


BAD: dict[str, tuple[dict, type[Exception], str]] = {
    "integer key": ({"key": 0}, TypeError, r"key must be a typed key.*jax\.random\.key\(seed\)"),
    "raw key": ({"key": jnp.zeros(2, jnp.uint32)}, TypeError, r"uint32"),
    "batch of keys": ({"key": "batch"}, ValueError, r"one key.*\(2,\)"),
    "unknown kernel": ({"kernel": "gibbs"}, ValueError, r"kernel='gibbs'.*'nuts', 'hmc', 'sghmc', 'sgld'"),
    "unknown option": ({"num_leapfrog": 3}, ValueError, r"no option 'num_leapfrog'.*friction"),
    "option of another kernel": ({"kernel": "nuts", "friction": 1.0}, ValueError, r"target_acceptance_rate"),
    "no chains": ({"num_chains": 0}, ValueError, r"num_chains must be at least 1; got 0"),
    "half a sample": ({"num_samples": 2.5}, TypeError, r"num_samples must be an integer"),
    "negative warmup": ({"num_warmup": -1}, ValueError, r"num_warmup"),
    "thinning zero": ({"thinning": 0}, ValueError, r"thinning"),
    "cold": ({"temperature": 0.0}, ValueError, r"temperature must be a positive number"),
    "infinite step": ({"step_size": np.inf}, ValueError, r"step_size"),
    "negative friction": ({"friction": -1.0}, ValueError, r"friction"),
    "certain acceptance": ({"kernel": "hmc", "target_acceptance_rate": 1.0}, ValueError, r"between 0 and 1"),
    "nothing to adapt in": ({"kernel": "nuts", "num_warmup": 0}, ValueError, r"num_warmup=0.*step_size"),
    "metric of another size": (
        {"kernel": "hmc", "inverse_mass_matrix": np.ones(3)},
        ValueError,
        r"inverse_mass_matrix has shape \(3,\); wanted \(4,\)",
    ),
    "negative metric": (
        {"kernel": "hmc", "inverse_mass_matrix": np.array([1, 1, -1, 1])},
        ValueError,
        r"inverse_mass_matrix must be positive",
    ),
    "batch too large": ({"batch_size": 7}, ValueError, r"batch_size=7 is more than the 6 data"),
    "batch of nuts": ({"kernel": "nuts", "batch_size": 2}, ValueError, r"leave batch_size out"),
    "chunk size": ({"chunk_size": 0}, ValueError, r"chunk_size"),
    "no data": ({"data": 3}, TypeError, r"data must be a Dataset, a Pseudocoreset"),
    "lengths": ({"data": (X, LABELS[:5])}, ValueError, r"y has 5 entries for 6 inputs"),
    "empty": ({"data": (X[:0], LABELS[:0])}, ValueError, r"x is empty"),
    "features": ({"data": (X[:, :2], LABELS)}, ValueError, r"\(2,\).*\(3,\)"),
    "nan": ({"data": (NAN, LABELS)}, ValueError, r"x must be finite in float32, got nan at index \(4, 0\)"),
    "strings": ({"data": (X, np.array(list("ababab")))}, TypeError, r"y must be an array of numbers.*unique"),
    "label out of range": ({"data": (X, LABELS + 1)}, ValueError, r"integers from 0 to 1.*row 1 has 2.*give y - 1"),
    "fractional label": ({"data": (X, LABELS + 0.5)}, ValueError, r"integers from 0 to 1"),
    "soft labels of three": ({"data": (X, np.full((6, 3), 1 / 3))}, ValueError, r"probabilities \(n, 2\)"),
    "soft labels not summing": ({"data": (X, np.full((6, 2), 0.4))}, ValueError, r"row 0.*0\.8 instead of 1"),
    "weights of another shape": ({"data": (X, LABELS, np.ones(5))}, ValueError, r"weights have shape \(5,\)"),
    "negative weight": ({"data": (X, LABELS, -np.ones(6))}, ValueError, r"weights must be finite"),
    "zero weights": ({"data": (X, LABELS, np.zeros(6))}, ValueError, r"all weights are zero"),
    "unknown keep": ({"keep": "all"}, ValueError, r"keep='all'.*'auto', 'weights', 'functions'"),
    "functions of nothing": ({"keep": "functions"}, ValueError, r"keep='functions' needs predict_on"),
    "predict on a number": ({"predict_on": 3}, TypeError, r"predict_on must be a Split"),
    "predict on labels out of range": ({"predict_on": (X, LABELS + 7)}, ValueError, r"predict_on: labels"),
    "init site": ({"init_params": {"a": np.zeros(3)}}, ValueError, r"init_params.*coefficients"),
    "init shape": (
        {"init_params": {"coefficients": np.zeros((2, 1)), "intercept": np.zeros(1)}},
        ValueError,
        r"init_params\['coefficients'\] has shape \(2, 1\); wanted \(3, 1\) or \(4, 3, 1\)",
    ),
    "init nan": (
        {"init_params": {"coefficients": np.full((3, 1), np.nan), "intercept": np.zeros(1)}},
        ValueError,
        r"not finite",
    ),
    "too much to keep": (
        {"num_samples": 10**9},
        ValueError,
        r"GiB.*keep='functions'.*predict_on.*num_samples.*thinning",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(classifier: Model, case: str) -> None:
    changes, error, message = BAD[case]
    settings = {"data": (X, LABELS), "key": jax.random.key(0), "progress": False, **changes}
    if isinstance(settings["key"], str):
        settings["key"] = jax.random.split(jax.random.key(0))
    with pytest.raises(error, match=re.compile(message, re.DOTALL)):
        sample(classifier, settings.pop("data"), **settings)


def test_networks_refuse_bytes() -> None:
    model = bnn(MLP(widths=()), input_shape=(3,), num_outputs=2)
    with pytest.raises(TypeError, match=r"dtype uint8.*Dataset\.from_arrays"):
        sample(model, (X.astype(np.uint8), LABELS), key=jax.random.key(0))


def test_soft_labels_are_taken(classifier: Model) -> None:
    """They are scored by their cross-entropy."""
    soft = np.stack([1 - LABELS, LABELS], axis=1) * 0.8 + 0.1
    settings = {"num_chains": 1, "num_samples": 3, "num_warmup": 0, "progress": False}
    posterior = sample(classifier, (X, soft), key=jax.random.key(0), **settings)
    coefficients, intercept = posterior.draws["coefficients"][0], posterior.draws["intercept"][0]
    logits = (X @ coefficients + intercept[:, None])[..., 0].astype(float)
    cross_entropy = soft[:, 1] * np.logaddexp(0, -logits) + soft[:, 0] * np.logaddexp(0, logits)
    squares = (coefficients.astype(float) ** 2).sum((1, 2)) + intercept[:, 0] ** 2
    wanted = -cross_entropy.sum(-1) - 0.5 * squares - 2 * np.log(2 * np.pi)
    np.testing.assert_allclose(posterior.sample_stats["lp"][0], wanted, rtol=1e-4)
