"""Simulation-based calibration of the kernels on small models, as users would run it on theirs."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from pseudocoreset.diagnostics import calibrate
from pseudocoreset.models import MLP, Model, bnn, logistic_regression, poisson_regression
from tests.inference.statistics import FAILURE_RATE, MISTAKES, POWER, rank_law, rank_power

X = np.random.default_rng(0).normal(size=(15, 2)).astype(np.float32)
# Enough to find every mistake of ``MISTAKES``; see test_there_are_enough_simulations.
RUN: dict[str, Any] = {"num_simulations": 700, "num_draws": 49, "num_warmup": 150, "key": jax.random.key(0)}


LOGISTIC = logistic_regression(num_classes=2).bind(X, np.zeros(15, int))


def logistic() -> Model:
    return LOGISTIC


def poisson() -> Model:
    return poisson_regression(prior_scale=0.5)


def network() -> Model:
    return bnn(MLP(widths=(3,)), input_shape=(2,), num_outputs=1, likelihood="gaussian", noise_scale=0.5)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "nuts": (poisson, {"kernel": "nuts"}),
    "hmc": (logistic, {"kernel": "hmc", "num_integration_steps": 4}),
    "sghmc": (logistic, {"kernel": "sghmc", "step_size": 0.1, "friction": 2.0, "num_warmup": 200}),
    "sgld": (logistic, {"kernel": "sgld", "step_size": 0.02, "num_warmup": 300, "thinning": 100}),
    "network_hmc": (logistic, {"kernel": "network_hmc", "trajectory_length": 1.0}),
    "mclmc": (logistic, {"kernel": "mclmc", "num_warmup": 1000}),
    "adjusted_mclmc": (logistic, {"kernel": "adjusted_mclmc", "num_warmup": 1000}),
    "network": (network, {"kernel": "sghmc", "step_size": 0.025, "friction": 1.0, "num_warmup": 4000, "thinning": 240}),
}


@pytest.mark.parametrize(
    "case",
    # HMC is calibrated in tests/diagnostics/test_calibration.py too.
    [pytest.param(case, marks=() if case == "sghmc" else pytest.mark.slow) for case in CASES],
)
def test_kernels_are_calibrated(case: str) -> None:
    model, settings = CASES[case]
    found = calibrate(model(), X, **{**RUN, **settings})
    assert rank_law(found.ranks, found.num_draws) > FAILURE_RATE, str(found)
    assert found.p_value > FAILURE_RATE, str(found)
    if case == "network":
        assert found.quantities == ("log_likelihood", "f[0]", "f[1]", "f[2]")


@pytest.mark.parametrize("temperature", [0.64, pytest.param(1.5625, marks=pytest.mark.slow)])
def test_chains_at_another_temperature_are_not(temperature: float) -> None:
    """Of deviations 0.8 or 1.25 times the right ones, about: the posterior is not quite normal."""
    model, settings = CASES["sghmc"]
    found = calibrate(model(), X, **{**RUN, **settings}, temperature=temperature, thinning=32)
    assert rank_law(found.ranks, found.num_draws) < FAILURE_RATE


@pytest.mark.parametrize("num_quantities", [4, pytest.param(6, marks=pytest.mark.slow)])
def test_there_are_enough_simulations(num_quantities: int) -> None:
    """Of posteriors a fifth too narrow, a quarter too wide, or 0.3 standard deviations off in one quantity alone."""
    for mistake in MISTAKES.values():
        assert rank_power(RUN["num_simulations"], RUN["num_draws"], num_quantities, mistake) > POWER
