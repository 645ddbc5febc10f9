"""The front doors of the divergences, on data of their own kind."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from pseudocoreset import Dataset, Pseudocoreset, fit_bpc_fkl, fit_bpc_rkl, fit_bpc_w, fit_fbpc, train_experts
from pseudocoreset.fitting import Outcome
from pseudocoreset.inference import sample
from pseudocoreset.models import MLP, Model, bnn, linear_regression, logistic_regression

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 4)).astype(np.float32)
THETA = np.array([1.0, -0.5, 0.2, 0.7])
REALS = Dataset.from_arrays(X, (X @ THETA + 0.5 * RNG.normal(size=300)).astype(np.float32))
BINARY = Dataset.from_arrays(X, (RNG.uniform(size=300) < 1 / (1 + np.exp(-2 * X @ THETA))).astype(np.int32))
LINEAR = linear_regression(REALS, noise_scale=0.5)
FITS = (fit_bpc_rkl, fit_bpc_fkl, fit_bpc_w)


def posterior(x, y, w):
    design = np.c_[x, np.ones(len(x))].astype(float)
    covariance = np.linalg.inv(np.eye(5) + (design.T * w) @ design / 0.25)
    return covariance @ (design.T @ (w * y)) / 0.25, covariance


def reverse(coreset):
    """KL of the exact coreset posterior from that of the full data."""
    m0, s0 = posterior(coreset.inputs, coreset.targets, coreset.weights)
    m1, s1 = posterior(REALS.train.x, REALS.train.y, np.ones(300))
    inverse = np.linalg.inv(s1)
    determinants = np.linalg.slogdet(s1)[1] - np.linalg.slogdet(s0)[1]
    return 0.5 * (np.trace(inverse @ s0) + (m1 - m0) @ inverse @ (m1 - m0) - 5 + determinants)


@pytest.mark.parametrize("fit", FITS)
def test_eight_points_stand_in_for_three_hundred(fit):
    """Defaults alone: inputs and weights are learned, the posterior comes close to exactly the one of the data."""
    start = Pseudocoreset.from_data(REALS, size=8, mass="data", key=jax.random.key(0))
    result = fit(LINEAR, REALS, coreset=start, targets="learned", key=jax.random.key(1), progress=False)
    assert result.outcome is Outcome.COMPLETED
    assert reverse(start) > 5
    assert reverse(result.coreset) < 0.05
    assert result.coreset.metadata["objective"] == fit.__name__.removeprefix("fit_")


def test_fixed_leaves_stay():
    result = fit_bpc_rkl(LINEAR, REALS, size=4, weights="data", key=jax.random.key(1), steps=3, progress=False)
    np.testing.assert_allclose(result.coreset.weights, 75.0)
    assert set(result.coreset.targets) <= set(REALS.train.y)
    assert "mass" not in result.history


@pytest.mark.parametrize("mass", ["ones", "data"])
def test_fbpc_keeps_the_weights_of_the_coreset_it_starts_from(mass):
    """Of a model that is no network too, whose weights the other methods learn."""
    start = Pseudocoreset.from_data(BINARY, size=8, mass=mass, key=jax.random.key(0))
    result = fit_fbpc(
        logistic_regression(BINARY), BINARY, coreset=start, steps=5, num_experts=1, num_expert_epochs=3,
        key=jax.random.key(1), progress=False, inner_max_steps=20,
    )  # fmt: skip
    np.testing.assert_array_equal(result.coreset.weights, start.weights)
    np.testing.assert_array_equal(result.state.arrays.weights, start.weights)
    assert np.abs(np.asarray(result.state.arrays.inputs) - start.inputs).max() > 1e-3
    assert ("at_mode" in result.coreset.metadata) == (mass == "data")


def test_labels_become_probabilities_and_can_be_sampled_by_a_new_model():
    result = fit_bpc_rkl(
        logistic_regression(BINARY), BINARY, images_per_class=3, targets="learned", key=jax.random.key(1), steps=50,
        progress=False,
    )  # fmt: skip
    targets = result.coreset.targets
    assert targets.shape == (6, 2)
    np.testing.assert_allclose(targets.sum(1), 1.0, rtol=1e-5)
    assert not np.allclose(targets.max(1), 0.9, atol=1e-3)  # where they started
    drawn = sample(
        logistic_regression(num_classes=2), result.coreset, kernel="nuts", num_chains=1, num_warmup=20, num_samples=5,
        key=jax.random.key(2), progress=False,
    )  # fmt: skip
    assert drawn.draws["coefficients"].shape == (1, 5, 4, 1)


@pytest.mark.slow
def test_draws_of_mcmc_can_stand_for_the_full_data():
    """forward_kl with NUTS on both sides, which needs no Gaussian anywhere."""
    full = sample(
        LINEAR, REALS, kernel="nuts", num_chains=2, num_warmup=200, num_samples=300, key=jax.random.key(0),
        progress=False,
    )  # fmt: skip
    start = Pseudocoreset.from_data(REALS, size=8, mass="data", key=jax.random.key(0))
    result = fit_bpc_fkl(
        LINEAR, REALS, coreset=start, proxy="chains", data_draws=full, targets="learned", steps=150,
        key=jax.random.key(1), progress=False,
    )  # fmt: skip
    assert reverse(result.coreset) < 0.2 * reverse(start)


@pytest.mark.parametrize(
    "fit", [fit_bpc_fkl, *(pytest.param(fit, marks=pytest.mark.slow) for fit in (fit_bpc_rkl, fit_bpc_w))]
)
def test_networks_take_experts_and_several_architectures(fit):
    models = [bnn(MLP((6,)), BINARY), bnn(MLP((9,)), BINARY)]
    experts = [
        train_experts(m, BINARY, num_experts=1, num_epochs=3, batch_size=50, key=jax.random.key(0), progress=False)
        for m in models
    ]
    result = fit(
        models, BINARY, images_per_class=1, key=jax.random.key(1), steps=2, experts=experts, num_inner_steps=2,
        step_size=0.1, progress=False,
    )  # fmt: skip
    assert {"loss_0", "loss_1"} <= result.history.keys()
    assert result.coreset.mass == 2.0  # ones, the convention for networks


@pytest.mark.parametrize(
    ("fit", "arguments", "error", "message"),
    [
        (fit_bpc_rkl, dict(weights="most"), ValueError, "weights='most'"),
        (fit_bpc_rkl, dict(targets="soft"), ValueError, "targets='soft'"),
        (fit_bpc_rkl, dict(size=None), ValueError, "one of images_per_class and size"),
        (fit_bpc_rkl, dict(optimizer={"inputs": optax.sgd(1.0)}), ValueError, "optimizer names"),
        (fit_bpc_rkl, dict(num_inner_steps=0), ValueError, "num_inner_steps"),
        (fit_bpc_fkl, dict(proxy="chains"), ValueError, "data_draws"),
        (fit_bpc_fkl, dict(data_draws=3), ValueError, "data_draws must be"),
        (fit_bpc_w, dict(learn_step_size=2.0, proxy="isotropic"), ValueError, "learn_step_size"),
    ],
)
def test_bad_arguments_are_named(fit, arguments, error, message):
    with pytest.raises(error, match=message):
        fit(LINEAR, REALS, **{**dict(size=4, key=jax.random.key(0), progress=False), **arguments})


def many(x, y=None):
    """2,100 parameters, too many for a dense Laplace approximation, of a model that is no network."""
    effects = numpyro.sample("effects", dist.Normal(0.0, 1.0).expand([2100]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x[:, 0] * effects[0] + jnp.mean(effects), 0.5), obs=y)


def test_without_a_gaussian_the_wasserstein_distance_names_methods_that_do_without() -> None:
    model = Model.from_numpyro(many)
    with pytest.raises(
        ValueError, match=r"at most 2000 parameters; 'many' has 2100.*fit_bpc_fkl with data_draws=sample"
    ):
        fit_bpc_w(model, REALS, size=4, key=jax.random.key(0), progress=False)
    # What it says can be followed.
    draws = {"effects": np.random.default_rng(0).normal(size=(3, 2100)).astype(np.float32)}
    result = fit_bpc_fkl(model, REALS, size=4, steps=1, data_draws=draws, key=jax.random.key(0), progress=False)
    assert np.all(np.isfinite(result.coreset.inputs))


def posterior_of(data):
    return sample(
        LINEAR, data, kernel="hmc", step_size=0.003, num_chains=1, num_warmup=0, num_samples=4, key=jax.random.key(0),
        progress=False, keep="weights",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        (lambda: posterior_of(Pseudocoreset.from_data(REALS, size=8, key=jax.random.key(0))), "posterior of a coreset"),
        (lambda: posterior_of((REALS.train.x[:20], REALS.train.y[:20])), "posterior of 20 data, data has"),
        (
            lambda: posterior_of(Dataset.from_arrays(REALS.train.x * 3 + 1, REALS.train.y, normalize=True)),
            "data_draws was preprocessed as",
        ),
        (
            lambda: posterior_of(Dataset.from_arrays(REALS.train.x, REALS.train.y + 1)),
            "posterior of other data, though of as many",
        ),
        (lambda: {"coefficients": np.zeros((3, 2))}, r"data_draws must hold .* got \{'coefficients': \(3, 2\)\}"),
        (lambda: {}, "data_draws must hold"),
    ],
)
def test_draws_of_another_posterior_are_refused(draws, message) -> None:
    with pytest.raises(ValueError, match=message):
        fit_bpc_fkl(LINEAR, REALS, size=4, steps=1, data_draws=draws(), key=jax.random.key(0), progress=False)
