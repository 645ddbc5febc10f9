"""Microcanonical kernels: a bias that the step size controls without a Metropolis step, none with it."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy import stats

from pseudocoreset.inference import sample
from pseudocoreset.models import gaussian_location
from tests.inference.statistics import FAILURE_RATE, POWER, gaussian_law, weakest_power

NUM_CHAINS = 100


def run(regression, **settings):
    settings = {"num_chains": NUM_CHAINS, "num_warmup": 400, "num_samples": 100, "progress": False, **settings}
    return sample(regression.model, (regression.x, regression.y), key=jax.random.key(4), **settings)


def second_moments(draws: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> tuple[float, float, float]:
    """Mean squared length of draws (chain, draw, d) in units of their law, less one; its error; that of the mean."""
    factor = np.linalg.inv(np.linalg.cholesky(covariance))
    whitened = (draws.astype(float) - mean) @ factor.T
    of_chains = np.mean(whitened**2, axis=(1, 2))
    means = whitened.mean(axis=1)
    scores = np.abs(means.mean(axis=0)) / (means.std(axis=0, ddof=1) / np.sqrt(len(means)))
    return of_chains.mean() - 1, of_chains.std(ddof=1) / np.sqrt(len(of_chains)), float(scores.max())


@pytest.mark.parametrize(
    ("kernel", "temperature"),
    [
        pytest.param("mclmc", 0.3, marks=pytest.mark.slow),
        ("adjusted_mclmc", 0.3),
        pytest.param("mclmc", 1.0, marks=pytest.mark.slow),
    ],
)
def test_posterior_of_a_linear_regression_after_tuning(regression, kernel: str, temperature: float) -> None:
    posterior = run(regression, kernel=kernel, temperature=temperature, num_samples=50, thinning=4)
    covariance = temperature * np.linalg.inv(regression.precision)
    # Three parameters share the change of energy that is allowed, which leaves a bias of one or two per cent.
    allowance = 0.03 if kernel == "mclmc" else 0.0

    def law(draws: np.ndarray) -> float:
        """Of the means of three whitened coordinates and of what their mean square exceeds the allowance by."""
        excess, error, score = second_moments(draws, regression.mean, covariance)
        worst = max(score, (abs(excess) - allowance) / error)
        return min(1.0, float(4 * 2 * stats.t.sf(worst, len(draws) - 1)))

    draws = posterior.draws["b"]
    assert law(draws) > FAILURE_RATE
    assert weakest_power(law, draws, regression.mean, np.sqrt(np.diag(covariance))) > POWER
    found = posterior.sample_stats
    names = "lp diverging n_steps step_size " + ("energy_change" if kernel == "mclmc" else "acceptance_rate")
    assert set(found) == set(names.split())
    if kernel == "mclmc":
        np.testing.assert_array_equal(found["n_steps"], 4)
        assert 1 / 3 < np.mean(found["energy_change"] ** 2) / 3 / 5e-4 < 3
    else:
        assert 0.8 < found["acceptance_rate"].mean() < 0.98
        assert 1.5 < found["n_steps"].mean() / 4 < 2.5
    b = posterior.draws["b"].astype(float)
    residual = regression.y - b @ regression.x.T
    wanted = -0.5 * (residual**2).sum(-1) / 0.25 - 40 * np.log(0.5 * np.sqrt(2 * np.pi))
    wanted += -0.5 * (b**2).sum(-1) / 4 - 3 * np.log(2.0 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(found["lp"], wanted, atol=1e-3)


def from_exact_draws(regression, num_chains: int, **settings):
    covariance = np.linalg.inv(regression.precision)
    starts = np.random.default_rng(1).multivariate_normal(regression.mean, covariance, num_chains)
    posterior = run(
        regression, init_params={"b": starts}, num_chains=num_chains, num_warmup=0, num_samples=1, **settings
    )
    return posterior, *second_moments(posterior.draws["b"], regression.mean, covariance)


def test_large_steps_keep_the_law_with_the_metropolis_step(regression) -> None:
    """The same steps that move the law by many standard errors without it."""
    scale = 1 / np.sqrt(np.linalg.eigvalsh(regression.precision)[-1])
    settings = {"step_size": 4.5 * scale, "thinning": 8}
    posterior, *_ = from_exact_draws(regression, 2000, kernel="adjusted_mclmc", mean_integration_steps=3, **settings)
    assert 0.4 < posterior.sample_stats["acceptance_rate"].mean() < 0.9
    covariance = np.linalg.inv(regression.precision)
    assert gaussian_law(posterior.draws["b"][:, 0], regression.mean, covariance) > FAILURE_RATE
    _, excess, error, _ = from_exact_draws(
        regression, 2000, kernel="mclmc", decoherence_length=10 * scale, step_size=settings["step_size"], thinning=40
    )
    assert abs(excess) > 7 * error


def test_the_bias_falls_with_the_step(regression) -> None:
    scale = 1 / np.sqrt(np.linalg.eigvalsh(regression.precision)[-1])
    posterior, *_ = from_exact_draws(
        regression, 2000, kernel="mclmc", decoherence_length=5 * scale, step_size=0.5 * scale, thinning=60
    )
    covariance = np.linalg.inv(regression.precision)
    assert gaussian_law(posterior.draws["b"][:, 0], regression.mean, covariance) > FAILURE_RATE


@pytest.mark.slow
def test_a_smaller_energy_variance_gives_smaller_steps(regression) -> None:
    """The variance of the change of energy grows like the sixth power of the step."""
    steps = [
        np.median(run(regression, kernel="mclmc", num_samples=1, energy_variance=v).metadata["step_size"])
        for v in (5e-4, 5e-7)
    ]
    assert 10**0.5 / 1.5 < steps[0] / steps[1] < 10**0.5 * 1.5


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["mclmc", "adjusted_mclmc"])
def test_a_metric_can_be_given(regression, kernel: str) -> None:
    covariance = np.linalg.inv(regression.precision)
    posterior = run(regression, kernel=kernel, inverse_mass_matrix=np.diag(covariance), num_samples=40, thinning=4)
    assert posterior.metadata["options"]["inverse_mass_matrix"] == "given"
    # In units of the metric the posterior has scale one.
    assert 0.5 < np.median(posterior.metadata["step_size"]) < 3
    assert second_moments(posterior.draws["b"], regression.mean, covariance)[2] < 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel": "mclmc", "step_size": 0.1}, "both step_size and decoherence_length"),
        ({"kernel": "mclmc", "decoherence_length": 0.1}, "both step_size and decoherence_length"),
        ({"kernel": "mclmc", "energy_variance": 0.0}, "energy_variance must be a positive"),
        ({"kernel": "mclmc", "num_warmup": 0}, "no steps to adapt in"),
        ({"kernel": "mclmc", "batch_size": 3}, "leave batch_size out"),
        ({"kernel": "mclmc", "inverse_mass_matrix": np.eye(3)}, "takes a diagonal"),
        ({"kernel": "adjusted_mclmc", "mean_integration_steps": 1.0}, "mean_integration_steps must be above 1.1"),
        ({"kernel": "adjusted_mclmc", "target_acceptance_rate": 1.0}, "target_acceptance_rate must lie between"),
    ],
)
def test_what_does_not_fit_is_refused(regression, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        run(regression, **settings)


def test_a_single_parameter_is_refused() -> None:
    x = np.zeros((5, 1), np.float32)
    with pytest.raises(ValueError, match="at least two parameters"):
        sample(gaussian_location(), (x, x[:, 0]), kernel="mclmc", key=jax.random.key(0), progress=False)
