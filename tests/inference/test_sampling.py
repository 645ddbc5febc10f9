"""``sample`` against posteriors in closed form, by standard errors from many independent chains."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from pseudocoreset.inference import SGHMC, SGLD, sample
from pseudocoreset.models import MLP, Model, bnn, logistic_regression
from tests.inference.statistics import FAILURE_RATE, POWER, chain_means, chain_moments, weakest_power

NUM_CHAINS = 200
RUN = {"num_chains": NUM_CHAINS, "num_samples": 25, "num_warmup": 300, "progress": False}


def draws_of(posterior) -> np.ndarray:
    return posterior.draws["b"]


def assert_law(draws: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> None:
    """Means and second moments of draws (chain, draw, d) are right, and would tell if they were not."""

    def law(draws: np.ndarray) -> float:
        return chain_moments(draws, mean, covariance)

    assert law(draws) > FAILURE_RATE
    assert weakest_power(law, draws, mean, np.sqrt(np.diag(covariance))) > POWER


def run(regression, **settings):
    data = settings.pop("data", (regression.x, regression.y))
    return sample(regression.model, data, **{**RUN, "key": jax.random.key(7), **settings})


@pytest.fixture(scope="module")
def nuts(regression):
    """In short trajectories, or the first steps of the warmup, tiny and many, would take most of the time."""
    return run(regression, kernel="nuts", temperature=0.3, num_warmup=150, max_num_doublings=4)


def test_nuts_on_a_linear_regression(regression, nuts) -> None:
    assert_law(draws_of(nuts), regression.mean, 0.3 * np.linalg.inv(regression.precision))


@pytest.mark.parametrize(
    ("kernel", "temperature"),
    [
        ("hmc", 0.3),
        ("sghmc", 0.3),
        ("sghmc", 1.0),
        pytest.param("nuts", 1.0, marks=pytest.mark.slow),
        pytest.param("hmc", 1.0, marks=pytest.mark.slow),
    ],
)
def test_posterior_of_a_linear_regression(regression, kernel: str, temperature: float) -> None:
    # Draws so far apart that 25 of each chain have the power: SGHMC moves by a sixtieth of a standard deviation.
    posterior = run(regression, kernel=kernel, temperature=temperature, thinning=10 if kernel == "sghmc" else 3)
    assert_law(draws_of(posterior), regression.mean, temperature * np.linalg.inv(regression.precision))


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_sgld_has_the_law_of_its_discretisation(regression, temperature: float) -> None:
    """Theta' = theta + e P (mu - theta) + sqrt(2 e T) xi has covariance T (P - e P^2 / 2)^-1."""
    step_size = 1e-3
    posterior = run(regression, kernel="sgld", temperature=temperature, step_size=step_size, thinning=20)
    precision = regression.precision
    covariance = temperature * np.linalg.inv(precision - 0.5 * step_size * precision @ precision)
    assert_law(draws_of(posterior), regression.mean, covariance)


def test_log_density_and_statistics(regression, nuts) -> None:
    stats = nuts.sample_stats
    names = "lp acceptance_rate diverging energy n_steps tree_depth step_size"
    assert set(stats) == set(names.split())
    assert all(array.shape == (NUM_CHAINS, 25) for array in stats.values())
    b = draws_of(nuts).astype(float)
    residual = regression.y - b @ regression.x.T
    wanted = -0.5 * (residual**2).sum(-1) / 0.25 - 40 * np.log(0.5 * np.sqrt(2 * np.pi))
    wanted += -0.5 * (b**2).sum(-1) / 4 - 3 * np.log(2.0 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(stats["lp"], wanted, atol=1e-3)
    # H = -lp / T + kinetic energy of three independent standard normals.
    kinetic = stats["energy"] + stats["lp"] / 0.3
    assert chain_means(kinetic, 1.5) > FAILURE_RATE
    # Of momenta a tenth too large or small (their energy is a sum of squares) this would tell.
    assert max(chain_means(kinetic * scale**2, 1.5) for scale in (0.9, 1.1)) < FAILURE_RATE


def test_no_finite_start_is_an_error() -> None:
    def impossible(x, y=None):
        rate = numpyro.sample("rate", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Poisson(-jax.numpy.exp(rate) * jax.numpy.ones(x.shape[0])), obs=y)

    x = np.ones((3, 1), np.float32)
    with pytest.raises(ValueError, match="row 0 has no likelihood at the site 'y'"):
        sample(Model.from_numpyro(impossible), (x, np.array([1, 2, 3])), key=jax.random.key(0), progress=False)


def test_sghmc_of_blackjax_is_selectable_and_wrong(regression) -> None:
    temperature = 0.1
    posterior = run(regression, kernel="blackjax_sghmc", temperature=temperature)
    variances = np.var(draws_of(posterior), axis=(0, 1))
    assert np.all(variances > 2 * temperature * np.diag(np.linalg.inv(regression.precision)))


def test_hmc_takes_a_step_size_and_mass_matrix(regression) -> None:
    covariance = np.linalg.inv(regression.precision)
    posterior = run(regression, kernel="hmc", step_size=0.2, inverse_mass_matrix=np.diag(covariance), thinning=3)
    np.testing.assert_allclose(posterior.sample_stats["step_size"], 0.2, rtol=1e-6)
    assert_law(draws_of(posterior), regression.mean, covariance)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["hmc", "nuts"])
def test_step_sizes_adapt_to_a_given_mass_matrix(regression, kernel: str) -> None:
    covariance = np.linalg.inv(regression.precision)
    posterior = run(regression, kernel=kernel, inverse_mass_matrix=covariance)
    # In coordinates in which the posterior is a standard normal the step is of order one.
    assert 0.3 < np.median(posterior.sample_stats["step_size"]) < 2
    assert posterior.metadata["options"]["inverse_mass_matrix"] == "given"
    assert_law(draws_of(posterior), regression.mean, covariance)


def test_minibatches_keep_the_mean(regression) -> None:
    """With gradients linear in the parameters, noise of mean zero moves the variance alone."""
    weight = 0.05
    precision = weight * regression.precision + (1 - weight) * np.eye(3) / 4
    mean = np.linalg.solve(precision, weight * regression.x.T.astype(float) @ regression.y / 0.25)
    data = (regression.x, regression.y, np.full(40, weight))
    posterior = run(regression, data=data, batch_size=2, step_size=0.02, thinning=100)

    def law(draws: np.ndarray) -> float:
        return chain_means(draws, mean)

    draws, deviation = draws_of(posterior), np.sqrt(np.diag(np.linalg.inv(precision)))
    assert law(draws) > FAILURE_RATE
    assert weakest_power(law, draws, mean, deviation, ["shifted"]) > POWER
    assert set(posterior.sample_stats) == {"lp_estimate", "kinetic_temperature", "step_size"}


def test_heat_of_gradient_noise_is_warned_of(regression) -> None:
    with pytest.warns(UserWarning, match=r"kinetic temperature.*larger batch_size"):
        posterior = run(regression, batch_size=2, step_size=0.005, temperature=0.1, thinning=10)
    assert posterior.sample_stats["kinetic_temperature"].mean() > 0.13


@pytest.mark.parametrize("batch_size", [None, 5])
def test_sgld_reports_the_inflation_of_its_variances(regression, batch_size: int | None) -> None:
    """In a thousand independent draws' worth: the trace of P Cov, over d T, is the configurational temperature / T."""
    with pytest.warns(UserWarning, match=r"configurational temperature.*smaller step_size"):
        posterior = run(
            regression, kernel="sgld", batch_size=batch_size, step_size=0.006 if batch_size is None else 0.002,
            preconditioner=None,
        )  # fmt: skip
    draws = draws_of(posterior).reshape(-1, 3).astype(float) - regression.mean
    # -E[theta . g] / d by the draws, against what the gradients say
    wanted = np.mean(np.sum(draws @ regression.precision * draws, axis=1)) / 3
    assert wanted > 1.25
    assert posterior.sample_stats["configurational_temperature"].mean() == pytest.approx(wanted, rel=0.1)


def test_unstable_steps_of_sgld_are_warned_of() -> None:
    """A logistic regression, whose gradient is bounded: nothing overflows, draws are hundreds of times too wide."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2)).astype(np.float32)
    y = (rng.random(200) < 1 / (1 + np.exp(-x[:, 0]))).astype(np.int32)
    settings = dict(
        kernel="sgld", num_chains=4, num_warmup=50, num_samples=100, batch_size=None, progress=False,
        preconditioner=None, key=jax.random.key(0),
    )  # fmt: skip
    model = logistic_regression(num_classes=2).bind(x, y)
    with pytest.warns(UserWarning, match=r"configurational temperature of the chains is \S+ times"):
        wide = sample(model, (x, y), step_size=1.0, **settings)
    right = sample(model, (x, y), step_size=1e-3, **settings)  # without a warning
    assert np.std(wide.draws["coefficients"]) > 30 * np.std(right.draws["coefficients"])


@pytest.mark.parametrize("kernel", ["sghmc", "sgld"])
def test_one_chain_among_many_that_runs_hot_is_warned_of(regression, kernel: str) -> None:
    """Twice the temperature in one of forty chains, by which their mean is 1.025 times too high."""
    statistic = {"sghmc": "kinetic_temperature", "sgld": "configurational_temperature"}[kernel]
    asked = SimpleNamespace(plan=SimpleNamespace(model=regression.model, batch_size=None), thinning=10)
    values = {"friction": 1.0, "step_size": 0.1, "temperature": 0.5}
    tuning = {name: np.full(40, value) for name, value in values.items()}
    measured = 0.5 * (1 + 0.02 * np.random.default_rng(0).normal(size=(40, 500)))

    def look(values: np.ndarray) -> None:
        {"sghmc": SGHMC, "sgld": SGLD}[kernel]().warn({statistic: values}, asked, tuning)

    look(measured)  # without a warning
    measured[7] *= 2
    with pytest.warns(UserWarning, match=r"is 1.03 times the temperature asked for, and .*2(.00)? times"):
        look(measured)


def test_weights_act_as_multiplicities(regression) -> None:
    x, y = regression.x[:6], regression.y[:6]
    weights = np.array([2.0, 0.0, 3.0, 0.0, 1.0, 0.0])
    indices = np.repeat(np.arange(6), weights.astype(int))
    settings = {"num_chains": 2, "num_samples": 20, "num_warmup": 0}
    with jax.enable_x64(True):
        weighted = run(regression, data=(x, y, weights), **settings)
        repeated = run(regression, data=(x[indices], y[indices]), **settings)
        different = run(regression, data=(x, y), **settings)
    np.testing.assert_allclose(draws_of(weighted), draws_of(repeated), rtol=1e-4, atol=1e-4)
    assert np.max(np.abs(draws_of(weighted) - draws_of(different))) > 0.01


def test_thinning_takes_steps_between_draws(regression) -> None:
    posterior = run(regression, kernel="hmc", step_size=0.01, num_warmup=0, thinning=4)
    np.testing.assert_array_equal(posterior.sample_stats["n_steps"], 40)


def test_divergences_are_warned_of(regression) -> None:
    """Far above the stability limit every proposal is rejected, and the energy is that of the start."""
    with pytest.warns(UserWarning, match=r"5000 of 5000 hmc draws.*target_acceptance_rate"):
        posterior = run(regression, kernel="hmc", step_size=1.0, num_warmup=0, init_params={"b": regression.mean})
    stats = posterior.sample_stats
    np.testing.assert_allclose(draws_of(posterior), np.broadcast_to(regression.mean, (200, 25, 3)), rtol=1e-6)
    kinetic = (stats["energy"] + stats["lp"]).astype(float)
    assert kinetic.min() > -1e-3
    assert chain_means(kinetic, 1.5) > FAILURE_RATE


def test_the_key_decides(regression) -> None:
    first, again = run(regression, num_warmup=10), run(regression, num_warmup=10)
    other = run(regression, num_warmup=10, key=jax.random.key(8))
    np.testing.assert_array_equal(draws_of(first), draws_of(again))
    assert np.all(draws_of(first) != draws_of(other))
    assert np.all(draws_of(first)[0] != draws_of(first)[1])


def test_draws_do_not_depend_on_how_a_run_is_cut_into_blocks(regression) -> None:
    short, long = run(regression, num_samples=25), run(regression, num_samples=103)
    np.testing.assert_allclose(draws_of(short), draws_of(long)[:, :25], rtol=1e-4, atol=1e-5)


def test_a_run_compiles_each_part_once(regression, caplog) -> None:
    regression = regression.uncompiled()

    def compilations(**settings) -> list[str]:
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            run(regression, num_chains=3, num_samples=103, **settings)
        messages = [record.getMessage() for record in caplog.records]
        return [
            part
            for part in ("initial_positions", "_start", "run_block")
            for message in messages
            if message.startswith(f"Compiling jit({part})")
        ]

    assert compilations(num_warmup=77, step_size=0.02) == ["initial_positions", "_start", "run_block"]
    assert compilations(num_warmup=200, temperature=0.5, thinning=2, step_size=0.01) == []


def test_start_at_given_parameters(regression) -> None:
    """With tiny steps the first draw is the start."""
    settings = {"num_warmup": 0, "step_size": 1e-6}
    starts = np.random.default_rng(0).normal(size=(NUM_CHAINS, 3))
    stacked = run(regression, init_params={"b": starts}, **settings)
    np.testing.assert_allclose(draws_of(stacked)[:, 0], starts, atol=1e-3)
    single = run(regression, init_params={"b": starts[1]}, **settings)
    np.testing.assert_allclose(draws_of(single)[:, 0], np.tile(starts[1], (NUM_CHAINS, 1)), atol=1e-3)


def test_default_steps_are_free_of_the_scale_of_the_data(regression) -> None:
    data = (regression.x, regression.y, np.full(40, 10.0))
    sghmc = run(regression, data=data, preconditioner=None)
    step_size = 0.1 / np.sqrt(400)
    assert sghmc.metadata["step_size"] == pytest.approx([step_size] * NUM_CHAINS)
    assert np.exp(-sghmc.metadata["options"]["friction"] * step_size) == pytest.approx(0.9)
    sgld = run(regression, kernel="sgld", data=data, preconditioner=None)
    assert sgld.metadata["step_size"] == pytest.approx([0.01 / 400] * NUM_CHAINS)


def test_steps_of_a_network_respect_a_narrow_prior() -> None:
    """A prior of scale 0.01 alone lets an SGHMC step of 0.01 pass; the ten data would allow 0.03."""
    x, y = np.ones((10, 3), np.float32), np.arange(10) % 2
    model = bnn(MLP(widths=()), input_shape=(3,), num_outputs=2, prior_scale=0.01)
    settings = {"num_chains": 40, "num_samples": 50, "num_warmup": 0, "progress": False}
    start = {name: np.zeros(leaf.shape) for name, leaf in model.init(jax.random.key(0)).items()}
    posterior = sample(model, (x, y), key=jax.random.key(0), init_params=start, **settings)
    assert posterior.metadata["step_size"] == pytest.approx([0.01] * 40, rel=1e-5)
    weights = np.concatenate([array[:, 20:].ravel() for array in posterior.unconstrained.values()])
    assert 0.009 < np.std(weights) < 0.011


def test_many_data_use_minibatches_by_default(regression) -> None:
    x, y = np.tile(regression.x, (60, 1)), np.tile(regression.y, 60)
    many = run(regression, data=(x, y), num_chains=1, num_samples=2, num_warmup=0)
    assert many.metadata["batch_size"] == 128
    assert run(regression).metadata["batch_size"] is None


def test_a_chain_that_leaves_the_finite_numbers_is_reported(regression) -> None:
    message = r"sghmc.*chains \[0, 1, 2, .*\] and 190 more during warmup.*step_size \(now 5\)"
    with pytest.raises(FloatingPointError, match=message):
        run(regression, step_size=5.0)
    with pytest.raises(FloatingPointError, match=r"sgld.*during draws"):
        run(regression, kernel="sgld", step_size=5.0, num_warmup=0)


def test_importing_touches_no_device() -> None:
    """Without a platform, whatever makes an array fails."""
    nowhere = os.environ | {"JAX_PLATFORMS": "no_such_platform"}
    subprocess.run([sys.executable, "-c", "import pseudocoreset.inference"], env=nowhere, check=True)
