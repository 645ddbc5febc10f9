"""The mass of the weights, chosen by how well the coreset posterior predicts held-out data."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from pseudocoreset import Dataset, Pseudocoreset, choose_mass
from pseudocoreset.models import logistic_regression

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 3)).astype(np.float32)
Y = (RNG.uniform(size=400) < 1 / (1 + np.exp(-0.7 * X[:, 0]))).astype(np.int32)  # hardly separable
DATA = Dataset.from_arrays(X[:300], Y[:300])
HELD_OUT = (X[300:], Y[300:])
MODEL = logistic_regression(DATA, prior_scale=10.0)
CORESET = Pseudocoreset.from_data(DATA, images_per_class=4, key=jax.random.key(0))
SAMPLING = dict(kernel="nuts", num_chains=1, num_warmup=100, num_samples=100, max_num_doublings=5)


def test_the_best_of_the_candidates_is_taken_and_all_are_recorded():
    """Eight points of a noisy problem deserve little trust: a large mass is sure of what is wrong.

    By 0.13 nats, of which 100 draws know one to 0.02.
    """
    chosen = choose_mass(MODEL, CORESET, HELD_OUT, masses=(300.0, 1.0), key=jax.random.key(1), **SAMPLING)
    record = chosen.metadata["mass_choice"]
    assert record["mass"] == [1.0, 300.0]
    assert record["nll"][0] < record["nll"][1]
    assert chosen.mass == pytest.approx(1.0)
    np.testing.assert_array_equal(chosen.inputs, CORESET.inputs)


@pytest.mark.parametrize(
    ("num_data", "largest"), [(300, 300.0), (12, 12.0), (0, 80.0), (8, 80.0)], ids=["n", "few", "unknown", "all"]
)
def test_candidates_run_from_m_to_n_or_ten_m(num_data, largest, monkeypatch):
    monkeypatch.setattr("pseudocoreset.evaluation.mass.sample", lambda *_, **__: None)
    monkeypatch.setattr("pseudocoreset.evaluation.mass.predictive_metrics", lambda *_, **__: SimpleNamespace(nll=1.0))
    chosen = choose_mass(MODEL, replace(CORESET, num_data=num_data), HELD_OUT, key=jax.random.key(1))
    assert chosen.metadata["mass_choice"]["mass"][::4] == pytest.approx([8.0, largest])


@pytest.mark.parametrize(("masses", "message"), [((), "empty"), ((0.0,), "masses must be a positive number")])
def test_bad_masses_are_named(masses, message):
    with pytest.raises(ValueError, match=message):
        choose_mass(MODEL, CORESET, HELD_OUT, masses=masses, key=jax.random.key(1))
