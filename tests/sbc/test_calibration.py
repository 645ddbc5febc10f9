"""Calibration finds right posteriors right and wrong ones wrong, and says by how much."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import warnings
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from matplotlib import pyplot
from scipy import stats

from pseudocoreset.diagnostics import Calibration, calibrate, plot_calibration
from pseudocoreset.models import Model, gaussian_location, linear_regression
from pseudocoreset.sbc.ranks import (
    chi_square_p_value,
    draws_to_independence,
    ecdf_band,
    ecdf_counts,
    ecdf_p_value,
    ranks_of,
)
from tests.inference.statistics import FAILURE_RATE, MISTAKES, POWER, rank_law, rank_power, two_sided

X = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
NOISE = 0.7
# One model and one shape: the simulations of all tests share a compilation. Four steps of the adapted size are about
# one and a half pi of a standard normal, far from a multiple of pi at which HMC would come back to where it was.
MODEL = linear_regression(noise_scale=NOISE).bind(X, np.zeros(12, np.float32))
# As many simulations as it takes to find a posterior that is a fifth too narrow, a quarter too wide or 0.3 standard
# deviations off, in one of four quantities, at the failure rate of a right one (``simulations_needed``).
NUM = 700
RUN: dict[str, Any] = {
    "kernel": "hmc", "num_integration_steps": 4, "num_simulations": NUM, "num_draws": 49, "num_warmup": 150,
    "key": jax.random.key(1),
}  # fmt: skip
DESIGN = np.column_stack([X, np.ones(12)]).astype(float)
COVARIANCE = np.linalg.inv(DESIGN.T @ DESIGN / NOISE**2 + np.eye(3))  # of the posterior, whatever the targets


def doubled(key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return x, y, 2 * jnp.ones(len(x))


def forgotten(key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return x, y, 1e-6 * jnp.ones(len(x))


def moved(key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Targets whose posterior mean is 0.3 standard deviations off in the first coefficient, and right in the others."""
    shift = np.linalg.solve(COVARIANCE @ DESIGN.T @ DESIGN / NOISE**2, [0.3 * np.sqrt(COVARIANCE[0, 0]), 0, 0])
    return x, y + DESIGN @ shift, jnp.ones(len(x))


@pytest.fixture(scope="module")
def right() -> Calibration:
    return calibrate(MODEL, X, **RUN)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_there_are_enough_simulations(mistake: str) -> None:
    assert rank_power(NUM, RUN["num_draws"], 4, MISTAKES[mistake]) > POWER


def test_a_right_posterior_passes(right: Calibration) -> None:
    assert rank_law(right.ranks, right.num_draws) > FAILURE_RATE
    assert right.p_value > FAILURE_RATE
    assert right.quantities == ("coefficients[0]", "coefficients[1]", "intercept", "log_likelihood")
    assert right.ranks.shape == right.truths.shape == right.means.shape == right.deviations.shape == (NUM, 4)
    assert 0 <= right.ranks.min() <= right.ranks.max() <= 49
    assert np.max(np.abs(right.autocorrelations)) < 0.2
    assert right.metadata["num_divergences"] == 0
    inside = right.coverage(0.9)[:3] * NUM
    assert np.min(two_sided(stats.binom.cdf(inside, NUM, 0.9), stats.binom.sf(inside - 1, NUM, 0.9))) > FAILURE_RATE


def test_truths_come_from_the_prior_and_posteriors_from_their_own_data(right: Calibration) -> None:
    truths = right.truths[:, :3]
    assert min(stats.kstest(column, "norm").pvalue for column in truths.T) > FAILURE_RATE
    # The posterior covariance does not depend on the data, and posterior means are as far from the truth. Variances
    # of 49 draws have an error of 0.8 % here, and deviations a fifth off would be 40 of those away.
    variances = (right.deviations[:, :3] ** 2).mean(axis=0)
    error = (right.deviations[:, :3] ** 2).std(axis=0) / np.sqrt(NUM)
    # Draws have a correlation of up to 0.1, by which a variance of 49 of them is at most 0.4 % short.
    assert np.all(np.abs(variances - np.diag(COVARIANCE)) < 5 * error + 0.004 * np.diag(COVARIANCE))
    white = np.linalg.solve(np.linalg.cholesky(COVARIANCE), (truths - right.means[:, :3]).T)
    # Means of 49 draws add a 49th to the variance, correlation at most a fifth of that.
    squares = np.sum(white**2) / (1 + 1.1 / 49)
    assert two_sided(stats.chi2.cdf(squares, 3 * NUM), stats.chi2.sf(squares, 3 * NUM)) > FAILURE_RATE


@pytest.mark.parametrize("scale", [0.8, 1.25])
def test_a_posterior_of_another_width_is_rejected_and_its_width_told(right: Calibration, scale: float) -> None:
    """At the temperature whose deviations are that many times the right ones."""
    wrong = calibrate(MODEL, X, **RUN, temperature=scale**2, thinning=right.metadata["thinning"])
    assert rank_law(wrong.ranks, wrong.num_draws) < FAILURE_RATE
    assert not wrong.is_calibrated
    assert min(wrong.p_values.values()) * 4 == pytest.approx(wrong.p_value)
    # Root mean squares of 700 have an error of 3 %, the same truths and data in part the same ones.
    np.testing.assert_allclose(wrong.spread[:3] / right.spread[:3], 1 / scale, rtol=0.1)
    assert np.all((wrong.coverage(0.9)[:3] < right.coverage(0.9)[:3]) == (scale < 1))


def test_a_posterior_of_another_place_is_rejected_in_what_is_off(right: Calibration) -> None:
    wrong = calibrate(MODEL, X, **RUN, coreset=moved, thinning=right.metadata["thinning"])
    assert rank_law(wrong.ranks[:, :1], wrong.num_draws) < FAILURE_RATE
    assert rank_law(wrong.ranks[:, 1:3], wrong.num_draws) > FAILURE_RATE
    np.testing.assert_allclose(wrong.bias[:3] - right.bias[:3], [-0.3, 0, 0], atol=0.05)


def test_data_counted_twice_are_rejected() -> None:
    found = calibrate(MODEL, X, **RUN, coreset=doubled, thinning=16)
    assert rank_law(found.ranks, found.num_draws) < FAILURE_RATE


def test_a_posterior_that_forgot_its_data_is_given_away_by_the_log_likelihood() -> None:
    """The prior passes in every parameter; what ranks of functions of the data are for."""
    prior = calibrate(MODEL, X, **RUN, coreset=forgotten, thinning=16)
    p_values = prior.p_values
    assert p_values.pop("log_likelihood") < FAILURE_RATE
    assert min(p_values.values()) > FAILURE_RATE
    assert prior.metadata["total_weight"] == pytest.approx(12e-6)


def test_all_simulations_are_one_computation(caplog: pytest.LogCaptureFixture) -> None:
    settings: dict[str, Any] = {
        "kernel": "sgld",
        "num_simulations": 12,
        "num_draws": 9,
        "num_warmup": 20,
        "preconditioner": None,
    }
    model = replace(MODEL)  # for which no other test can have compiled anything

    def compilations(**changes: Any) -> int:
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of correlated draws
            calibrate(model, X, **{**settings, "key": jax.random.key(0), **changes})
        return sum(bool(re.match(r"Compiling jit\((warm_up|draw)\)", r.getMessage())) for r in caplog.records)

    assert compilations() == 2
    assert compilations(temperature=0.5, thinning=3, num_warmup=20, key=jax.random.key(3)) == 0
    assert compilations(step_size=1e-4, coreset=doubled) == 0
    with pytest.raises(FloatingPointError, match="'sgld' left the finite numbers in 12 of 12 simulations"):
        compilations(step_size=10.0, num_warmup=20, thinning=50)


def test_the_key_decides(right: Calibration) -> None:
    again = calibrate(MODEL, X, **RUN)
    np.testing.assert_array_equal(again.ranks, right.ranks)
    np.testing.assert_array_equal(again.means, right.means)
    other = calibrate(MODEL, X, **{**RUN, "key": jax.random.key(2)}, thinning=16)
    assert np.any(other.truths != right.truths)


def test_control_variates_have_the_centres_of_each_simulation() -> None:
    """Chains that hardly move stay where they start, at the mode of their own data, which is the posterior mean."""
    design = jnp.column_stack([X, np.ones(12)])
    precision = design.T @ design / NOISE**2 + jnp.eye(3)

    def mode(values: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
        return dict(zip("abc", jnp.linalg.solve(precision, design.T @ y / NOISE**2), strict=True))

    found = calibrate(
        MODEL, X, quantities=mode, kernel="sgld", batch_size=4, control_variate=True, step_size=1e-10, num_warmup=0,
        num_simulations=10, num_draws=3, thinning=1, at_once=4, key=jax.random.key(0),
    )  # fmt: skip
    assert found.quantities == ("coefficients[0]", "coefficients[1]", "intercept", "log_likelihood", "a", "b", "c")
    assert np.all(found.truths[:, 4:].std(axis=0) > 0.1)
    np.testing.assert_allclose(found.means[:, :3], found.truths[:, 4:], atol=2e-3)
    assert found.metadata["options"]["control_variate"] is True


def test_simulations_without_a_mode_are_warned_of() -> None:
    def hierarchy(x, y=None):
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 3.0))
        effects = numpyro.sample("effects", dist.Normal(0.0, scale).expand([8]).to_event(1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(x @ effects, 10.0), obs=y)

    with pytest.warns(UserWarning, match=r"simulations \[.*found no mode.*kernel='nuts'"):
        calibrate(
            Model.from_numpyro(hierarchy), np.eye(8, dtype=np.float32), kernel="sghmc", num_warmup=0, num_draws=3,
            thinning=1, num_simulations=10, key=jax.random.key(0),
        )  # fmt: skip


@pytest.mark.slow
def test_fewer_at_once_are_the_same_simulations(right: Calibration) -> None:
    parts = calibrate(MODEL, X, **RUN, at_once=NUM // 2, thinning=right.metadata["thinning"])
    np.testing.assert_array_equal(parts.truths, right.truths)
    assert rank_law(parts.ranks, parts.num_draws) > FAILURE_RATE


@pytest.mark.slow
def test_inputs_of_a_key_quantities_and_functions() -> None:
    """A model that is not bound, whose inputs are drawn too; it observes its inputs in the second half."""
    settings = {"key": jax.random.key(1)}

    def asked(values: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
        return {"residual": jnp.mean(y - x @ values["coefficients"])}

    found = calibrate(
        linear_regression(intercept=False), lambda key: jax.random.normal(key, (8, 1)), quantities=asked,
        num_inputs=2, **{**RUN, **settings},
    )  # fmt: skip
    assert found.quantities == ("coefficients[0]", "noise", "log_likelihood", "f[0]", "f[1]", "residual")
    assert rank_law(found.ranks, found.num_draws) > FAILURE_RATE
    # Columns are what their names say.
    truth = dict(zip(found.quantities, found.truths.T, strict=True))
    assert stats.kstest(truth["coefficients[0]"], "norm").pvalue > FAILURE_RATE
    assert stats.kstest(truth["noise"], "halfnorm").pvalue > FAILURE_RATE
    assert np.all(np.abs(truth["residual"]) < 6 * truth["noise"] / np.sqrt(8))
    located = calibrate(gaussian_location(), X, kernel="sghmc", num_warmup=400, **settings)
    assert located.quantities == ("theta[0]", "theta[1]", "log_likelihood")
    assert rank_law(located.ranks, located.num_draws) > FAILURE_RATE
    np.testing.assert_allclose(located.deviations[:, :2].mean(axis=0), np.sqrt(1 / 13), rtol=0.1)


def test_the_table_and_json_tell_the_same(right: Calibration) -> None:
    text, content = str(right), right.as_dict()
    assert json.loads(json.dumps(content)) == content
    assert "ranks pass for uniform" in text
    assert "linear_regression" in text
    assert f"{NUM} simulations of 49 draws" in text
    row = content["quantities"]["intercept"]
    assert row["coverage_50"] == right.coverage(0.5)[2]
    assert row["p_value"] == right.p_values["intercept"]
    assert f"{row['spread']:.3f}" in next(line for line in text.splitlines() if line.startswith("intercept"))


def test_the_plot_shows_the_ranks(right: Calibration) -> None:
    figure = plot_calibration(right, max_panels=3)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert len(panels) == 3
    name = panels[0].get_title().partition(", p ")[0]
    drawn = panels[0].lines[-1].get_xydata()
    column = right.ranks[:, right.quantities.index(name)]
    for place, height in drawn[::10]:
        assert height == pytest.approx(np.mean(column < round(place * 50)) - place)
    figure.savefig(io.BytesIO(), format="png")
    assert pyplot.get_fignums() == []


def made_up(ranks: np.ndarray, num_draws: int) -> Calibration:
    values = ranks / num_draws
    return Calibration(("a",), num_draws, ranks, values, values, np.ones_like(values), np.zeros(1))


@pytest.mark.parametrize(("num_simulations", "num_draws", "trials"), [(40, 9, 400), (100, 63, 100)])
def test_p_values_and_bands_are_exact(num_simulations: int, num_draws: int, trials: int) -> None:
    random = np.random.default_rng(0)
    ranks = random.integers(0, num_draws + 1, (trials, num_simulations))
    _, low, high = ecdf_band(num_simulations, num_draws, 0.9)
    outside, p_values = 0, []
    for row in ranks:
        shares = ecdf_counts(row, num_draws)[1] / num_simulations
        outside += bool(np.any((shares < low) | (shares > high)))
        p_values.append(ecdf_p_value(row, num_draws))
    # Counts are whole numbers, so a band of 90 % holds somewhat more, and p-values are somewhat large.
    assert stats.binom.sf(outside - 1, trials, 0.1) > FAILURE_RATE
    assert stats.binom.cdf(outside, trials, 0.06) > FAILURE_RATE
    for level in (0.05, 0.3):
        hits = np.sum(np.array(p_values) <= level)
        assert stats.binom.sf(hits - 1, trials, level) > FAILURE_RATE
        assert stats.binom.cdf(hits, trials, 0.6 * level) > FAILURE_RATE
    chi_square = np.mean([chi_square_p_value(row, num_draws) <= 0.3 for row in ranks])
    assert abs(chi_square - 0.3) < 5 * np.sqrt(0.3 * 0.7 / trials) + 0.03


def test_the_p_value_of_two_ranks_by_enumeration() -> None:
    """All nine pairs of ranks among two draws, each of probability a ninth."""
    p_values = np.array([[ecdf_p_value(np.array([a, b]), 2) for b in range(3)] for a in range(3)])
    # Two ranks of 0, or two of 2, put both below or none below a third or two thirds: probability 1/9 at the place.
    extreme = np.array([[True, False, False], [False, False, False], [False, False, True]])
    np.testing.assert_allclose(p_values[extreme], 2 / 9)
    # The other seven: by the least probable of their counts below ranks 1 and 2, which is 4/9 or 5/9 for all.
    assert np.all(p_values[~extreme] > 2 / 9 + 0.05)


@pytest.mark.parametrize(
    ("ranks", "what"),
    [
        (np.repeat([0, 49], 50), "narrow"),
        (np.full(100, 25), "wide"),
        (np.arange(100) // 4, "biased"),
    ],
)
def test_ranks_that_are_not_uniform(ranks: np.ndarray, what: str) -> None:
    found = made_up(ranks[:, None], 49)
    assert found.p_value < FAILURE_RATE
    assert not found.is_calibrated
    assert "NOT calibrated" in str(found)
    narrow = {"narrow": 0.0, "wide": 1.0}.get(what)
    if narrow is not None:
        assert found.coverage(0.9)[0] == narrow


def test_ties_are_broken_at_random() -> None:
    ranks = ranks_of(np.zeros((4000, 9, 1)), np.zeros((4000, 1)), jax.random.key(0))
    assert ecdf_p_value(ranks[:, 0], 9) > FAILURE_RATE
    below = ranks_of(np.arange(5.0).reshape(1, 5, 1), np.array([[2.5]]), jax.random.key(0))
    assert below.item() == 3


def test_thinning_follows_the_correlation_of_draws() -> None:
    """Autoregressive chains with correlation 0.7 a step, 0.08 over seven; means of 100 draws take 0.06 off all."""
    random = np.random.default_rng(0)
    values = random.normal(size=(400, 100, 2))
    assert draws_to_independence(values) == 1
    for i in range(1, 100):
        values[:, i, 1] = 0.7 * values[:, i - 1, 1] + np.sqrt(1 - 0.49) * values[:, i, 1]
    assert draws_to_independence(values) in (6, 7, 8)
    assert draws_to_independence(np.cumsum(values, axis=1)) is None


def program_with(what: str) -> Model:
    def program(x: jax.Array, y: jax.Array | None = None) -> None:
        rate = numpyro.sample("rate", dist.Normal(0.0, 1.0))
        if what == "factor":
            numpyro.factor("extra", -(rate**2))
        observed = y if what != "transform" or y is None else jnp.log(y)
        scale = numpyro.handlers.scale(scale=2.0) if what == "scale" else contextlib.nullcontext()
        with numpyro.plate("data", x.shape[0]), scale:
            numpyro.sample("y", dist.Normal(rate, 1.0), obs=observed)

    return Model.from_numpyro(program)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "factor": ({"model": program_with("factor")}, ValueError, "'extra'.*is a factor"),
    "scale": ({"model": program_with("scale")}, ValueError, "'y'.*has a scale"),
    "transform": ({"model": program_with("transform")}, ValueError, "neither its targets nor its inputs"),
    "key": ({"key": 0}, TypeError, "typed key"),
    "kernel": ({"kernel": "gibbs"}, ValueError, "kernel='gibbs'"),
    "option": ({"friction": 1.0}, ValueError, "no option 'friction'"),
    "few": ({"num_simulations": 5}, ValueError, "num_simulations must be at least 10"),
    "no inputs": ({"x": 3}, ValueError, r"x must be inputs \(n, \*feature_shape\)"),
    "words": ({"x": "data"}, TypeError, "x must be inputs"),
    "features": ({"x": X[:, :1]}, ValueError, r"\(1,\)"),
    "functions": ({"model": gaussian_location(), "num_inputs": 2}, ValueError, "no function values"),
    "warmup": ({"num_warmup": 0}, ValueError, "num_warmup=0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(case: str) -> None:
    changes, error, message = BAD[case]
    settings = {"model": MODEL, "x": X, **RUN, **changes}
    with pytest.raises(error, match=re.compile(message, re.DOTALL)):
        calibrate(settings.pop("model"), settings.pop("x"), **settings)
