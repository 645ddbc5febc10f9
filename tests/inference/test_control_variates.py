"""Gradients with control variates: unbiased for any centre, without variance at it."""

from __future__ import annotations

import itertools

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pseudocoreset.inference import Rows, gradient_estimator, sample
from pseudocoreset.inference.data import control_variate_estimator
from pseudocoreset.models import logistic_regression

PARAMS = {"b": np.array([0.3, -0.2, 1.1])}
CENTRE = {"b": np.array([0.8, -1.5, 0.4])}
WEIGHTS = np.linspace(0.0, 3.0, 8)


def all_estimates(regression, params, centre) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimates from all minibatches of three, with and without control variate, and the full gradient."""
    with jax.enable_x64(True):
        rows = Rows(*(jnp.asarray(leaf, float) for leaf in (regression.x[:8], regression.y[:8], WEIGHTS)))
        gradient = jax.jit(gradient_estimator(regression.model, 8))
        params, centre = jax.tree.map(jnp.asarray, (params, centre))
        controlled = jax.jit(control_variate_estimator(gradient, centre, gradient(centre, rows)))
        batches = [Rows(*(leaf[np.array(c)] for leaf in rows)) for c in itertools.combinations(range(8), 3)]
        theirs = blackjax.sgmcmc.gradients.control_variates(gradient, centre, rows)
        np.testing.assert_allclose(
            theirs(params, batches[0])["b"], controlled(params, batches[0])["b"], rtol=1e-12, atol=1e-12
        )
        with_it = np.array([controlled(params, batch)["b"] for batch in batches])
        without = np.array([gradient(params, batch)["b"] for batch in batches])
        return with_it, without, np.asarray(gradient(params, rows)["b"])


def test_the_mean_over_all_minibatches_is_the_full_gradient(regression) -> None:
    controlled, plain, full = all_estimates(regression, PARAMS, CENTRE)
    np.testing.assert_allclose(controlled.mean(axis=0), full, rtol=1e-11)
    x, y, b = regression.x[:8].astype(float), regression.y[:8].astype(float), PARAMS["b"]
    np.testing.assert_allclose(full, x.T @ (WEIGHTS * (y - x @ b)) / 0.25 - b / 4, rtol=1e-6)
    assert plain.std(axis=0).min() > 1


def test_at_the_centre_every_minibatch_gives_the_full_gradient(regression) -> None:
    controlled, plain, full = all_estimates(regression, CENTRE, CENTRE)
    np.testing.assert_allclose(controlled, np.tile(full, (56, 1)), rtol=1e-12)
    assert plain.std(axis=0).min() > 1


def test_the_standard_deviation_is_proportional_to_the_distance(regression) -> None:
    """Exactly so where gradients are linear in the parameters."""
    near, far = ({"b": CENTRE["b"] + distance * np.array([0.6, 0.0, -0.8])} for distance in (1e-3, 1.0))
    deviations = [all_estimates(regression, params, CENTRE)[0].std(axis=0) for params in (near, far)]
    np.testing.assert_allclose(deviations[0], 1e-3 * deviations[1], rtol=1e-8)


def run(regression, **settings):
    settings = {"num_chains": 3, "num_samples": 2, "num_warmup": 0, "batch_size": 4, "progress": False, **settings}
    return sample(regression.model, (regression.x, regression.y), key=jax.random.key(5), **settings)


@pytest.mark.slow
def test_chains_start_at_the_centre_that_is_found(regression) -> None:
    found = run(regression, control_variate=True, step_size=1e-9, chunk_size=15)
    np.testing.assert_allclose(found.draws["b"], np.broadcast_to(regression.mean, (3, 2, 3)), atol=2e-4)
    assert found.metadata["options"]["control_variate"] is True


@pytest.mark.slow
def test_the_centre_of_a_logistic_regression_is_its_mode() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 4)).astype(np.float32)
    y = (random.random(60) < 1 / (1 + np.exp(-2 * x[:, 0]))).astype(np.int32)
    model = logistic_regression(num_classes=2).bind(x, y)
    posterior = sample(
        model, (x, y), kernel="sgld", control_variate=True, batch_size=5, step_size=1e-10, num_warmup=0, num_samples=1,
        num_chains=2, chunk_size=25, key=jax.random.key(0), progress=False,
    )  # fmt: skip
    gradient = gradient_estimator(model, 60)
    rows = Rows(jnp.asarray(x), jnp.asarray(y), jnp.ones(60))
    for chain in range(2):
        params = {name: jnp.asarray(array[chain, 0]) for name, array in posterior.unconstrained.items()}
        norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in gradient(params, rows).values()))
        assert norm < 0.02  # a standard deviation away it is of order ten


def test_given_centres_are_started_from_unless_a_start_is_given(regression) -> None:
    settings = {"step_size": 1e-9, "control_variate": CENTRE}
    np.testing.assert_allclose(run(regression, **settings).draws["b"][:, 0], np.tile(CENTRE["b"], (3, 1)), atol=1e-5)
    elsewhere = run(regression, init_params=PARAMS, **settings)
    np.testing.assert_allclose(elsewhere.draws["b"][:, 0], np.tile(PARAMS["b"], (3, 1)), atol=1e-5)
    assert elsewhere.metadata["options"]["control_variate"] == "given"


@pytest.mark.parametrize("kernel", ["sghmc", pytest.param("sgld", marks=pytest.mark.slow)])
def test_minibatches_heat_less(regression, kernel: str) -> None:
    """At a fiftieth of the temperature noise of plain minibatches multiplies the variance; controlled it does not."""
    temperature, step_size = 0.02, {"sghmc": 0.01, "sgld": 2e-4}[kernel]
    settings = {
        "kernel": kernel, "temperature": temperature, "step_size": step_size, "num_chains": 300, "num_warmup": 200,
        "num_samples": 1, "init_params": {"b": regression.mean}, "batch_size": 10,
    }  # fmt: skip
    covariance = temperature * np.linalg.inv(regression.precision)
    factor = np.linalg.inv(np.linalg.cholesky(covariance))

    def heat(posterior) -> float:
        return float(np.mean(((posterior.draws["b"][:, -1] - regression.mean) @ factor.T) ** 2))

    error = np.sqrt(2 / 900)
    assert heat(run(regression, **settings)) > 1.5
    # Noise in proportion to the distance adds up to a tenth, by h (n / B) / 4 times the largest curvature.
    assert abs(heat(run(regression, control_variate={"b": regression.mean}, **settings)) - 1) < 5 * error


def test_all_data_need_no_control(regression) -> None:
    settings = {"batch_size": None, "num_samples": 5, "init_params": PARAMS}
    plain = run(regression, **settings)
    controlled = run(regression, control_variate=True, **settings)
    np.testing.assert_array_equal(plain.draws["b"], controlled.draws["b"])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"control_variate": "mode"}, TypeError, "control_variate must be a bool or a dictionary"),
        ({"control_variate": {"a": np.zeros(3)}}, ValueError, r"control_variate must be a dictionary of the sites"),
        ({"control_variate": {"b": np.zeros(4)}}, ValueError, r"control_variate\['b'\] has shape \(4,\)"),
        ({"control_variate": True, "kernel": "nuts"}, ValueError, "no option 'control_variate'"),
    ],
)
def test_what_does_not_fit_is_refused(regression, settings, error, message) -> None:
    with pytest.raises(error, match=message):
        run(regression, **settings)
