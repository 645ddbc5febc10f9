"""Step sizes that change: draws have the law of the recursion that the schedule defines, by NumPy."""

from __future__ import annotations

import logging

import jax
import numpy as np
import pytest

from pseudocoreset.inference import sample
from pseudocoreset.inference.schedules import Constant, Cyclical, Polynomial

NUM_CHAINS = 2000
FRICTION = 10.0


def run(regression, **settings):
    settings = {"num_chains": NUM_CHAINS, "num_warmup": 30, "progress": False, **settings}
    settings.setdefault("init_params", {"b": regression.mean})
    return sample(regression.model, (regression.x, regression.y), key=jax.random.key(5), **settings)


def polynomial_steps(step_size: float, power: float, offset: float, length: int) -> np.ndarray:
    return step_size * (1 + np.arange(length) / offset) ** -power


def cosine_steps(step_size: float, cycle: int, length: int) -> np.ndarray:
    return 0.5 * step_size * (np.cos(np.pi * (np.arange(length) % cycle) / cycle) + 1)


def covariance_after(kernel: str, precision: np.ndarray, steps, temperatures, decay: float = 0.0) -> np.ndarray:
    """Of the position of a chain that starts at the mean (with momentum from N(0, 1)), after all these steps."""
    d = len(precision)
    identity = np.eye(d)
    if kernel == "sgld":
        covariance = np.zeros((d, d))
        for step, temperature in zip(steps, temperatures, strict=True):
            move = identity - step * precision
            covariance = move @ covariance @ move + 2 * step * temperature * identity
        return covariance
    covariance = np.block([[np.zeros((d, d)), np.zeros((d, d))], [np.zeros((d, d)), identity]])
    for step, temperature in zip(steps, temperatures, strict=True):
        kick = np.block([[identity, 0 * identity], [-step * precision, identity]])
        drift = np.block([[identity, 0.5 * step * identity], [0 * identity, identity]])
        damp = np.block([[identity, 0 * identity], [0 * identity, decay * identity]])
        noise = np.block([[0 * identity, 0 * identity], [0 * identity, (1 - decay**2) * temperature * identity]])
        move = drift @ damp @ drift @ kick
        covariance = move @ covariance @ move.T + drift @ noise @ drift.T
    return covariance[:d, :d]


def assert_covariance(draws: np.ndarray, mean: np.ndarray, wanted: np.ndarray) -> None:
    centred = draws.astype(float) - mean
    variances = np.diag(wanted)
    errors = np.sqrt((np.outer(variances, variances) + wanted**2) / len(draws))
    assert np.all(np.abs(centred.T @ centred / len(draws) - wanted) < 5 * errors)
    assert np.all(np.abs(centred.mean(axis=0)) < 5 * np.sqrt(variances / len(draws)))


STEP_SIZES = {"sgld": 2e-3, "sghmc": 0.05}


@pytest.mark.parametrize(("kernel", "warmup"), [("sgld", 15), ("sghmc", 0)])
def test_polynomial_decay_has_the_law_of_its_recursion(regression, kernel: str, warmup: int) -> None:
    """Far from equilibrium, where the factor of the momentum shows; the warmup runs at the first step size."""
    step_size, draws, thinning = STEP_SIZES[kernel], 2, 5
    options = {"friction": FRICTION} if kernel == "sghmc" else {}
    posterior = run(
        regression, kernel=kernel, step_size=step_size, num_samples=draws, thinning=thinning, num_warmup=warmup,
        schedule=Polynomial(power=0.8, offset=1.0), **options,
    )  # fmt: skip
    steps = polynomial_steps(step_size, 0.8, 1.0, draws * thinning)
    np.testing.assert_allclose(
        posterior.sample_stats["step_size"], np.tile(steps[thinning - 1 :: thinning], (NUM_CHAINS, 1)), rtol=1e-5
    )
    all_steps = np.concatenate([np.full(warmup, step_size), steps])
    decay = np.exp(-FRICTION * step_size)
    wanted = covariance_after(kernel, regression.precision, all_steps, np.ones(len(all_steps)), decay)
    assert_covariance(posterior.draws["b"][:, -1], regression.mean, wanted)


@pytest.mark.parametrize(("kernel", "warmup"), [("sgld", 20), ("sghmc", 0)])
def test_cycles_explore_without_noise_then_draw(regression, kernel: str, warmup: int) -> None:
    """Two cycles of eight steps: five without noise or draws, then three draws; the warmup has its noise."""
    step_size, temperature, cycle, exploration = STEP_SIZES[kernel], 0.5, 8, 5
    options = {"friction": FRICTION} if kernel == "sghmc" else {}
    posterior = run(
        regression, kernel=kernel, step_size=step_size, temperature=temperature, num_samples=6, num_warmup=warmup,
        schedule=Cyclical(num_cycles=2, exploration=0.6), **options,
    )  # fmt: skip
    steps = cosine_steps(step_size, cycle, 2 * cycle)
    recorded = np.arange(2 * cycle) % cycle >= exploration
    np.testing.assert_allclose(
        posterior.sample_stats["step_size"], np.tile(steps[recorded], (NUM_CHAINS, 1)), rtol=1e-5
    )
    all_steps = np.concatenate([np.full(warmup, step_size), steps])
    relative = np.concatenate([np.ones(warmup), recorded])  # temperatures; momenta start from N(0, T) too
    decay = np.exp(-FRICTION * step_size)
    for draw, index in enumerate(warmup + np.flatnonzero(recorded)):
        law = covariance_after(kernel, regression.precision, all_steps[: index + 1], relative[: index + 1], decay)
        assert_covariance(posterior.draws["b"][:, draw], regression.mean, temperature * law)


def test_thinning_separates_draws_within_the_sampling_phase(regression) -> None:
    schedule = Cyclical(num_cycles=3, exploration=0.5)
    posterior = run(regression, num_chains=2, num_samples=12, thinning=5, step_size=0.01, schedule=schedule)
    steps = cosine_steps(0.01, 40, 120).reshape(3, 40)[:, 20 + 4 :: 5]  # four draws a cycle, after 20 steps
    np.testing.assert_allclose(posterior.sample_stats["step_size"][0], steps.ravel(), rtol=1e-5)
    assert posterior.metadata["options"]["schedule"] == {"name": "cyclical", "num_cycles": 3, "exploration": 0.5}


@pytest.mark.parametrize("kernel", ["sgld", "sghmc"])
def test_a_constant_schedule_changes_nothing(regression, kernel: str) -> None:
    settings = {"kernel": kernel, "num_chains": 2, "num_samples": 7, "init_params": None}
    plain = run(regression, **settings)
    named = run(regression, schedule="constant", **settings)
    given = run(regression, schedule=Constant(), **settings)
    np.testing.assert_array_equal(plain.draws["b"], named.draws["b"])
    np.testing.assert_array_equal(plain.draws["b"], given.draws["b"])
    assert np.all(np.ptp(plain.sample_stats["step_size"], axis=1) == 0)


def test_draws_do_not_depend_on_how_a_run_is_cut_into_blocks(regression) -> None:
    """25 draws are cut into blocks of two, 50 into blocks of three; both have cycles of 30 steps."""
    settings = {"num_chains": 3, "step_size": 0.02, "thinning": 2}
    short = run(regression, num_samples=25, schedule=Cyclical(5, 1 / 3), **settings)
    long = run(regression, num_samples=50, schedule=Cyclical(10, 1 / 3), **settings)
    np.testing.assert_allclose(short.draws["b"], long.draws["b"][:, :25], rtol=1e-4, atol=1e-5)


def test_a_run_compiles_each_part_once(regression, caplog) -> None:
    regression = regression.uncompiled()

    def compilations(**settings) -> list[str]:
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            run(regression, num_chains=3, num_samples=101, **settings)
        messages = [record.getMessage() for record in caplog.records]
        return [message for message in messages if message.startswith("Compiling jit(run_block)")]

    assert len(compilations(schedule=Polynomial(power=0.5, offset=10.0), step_size=0.02)) == 1
    assert compilations(schedule=Polynomial(power=1, offset=20.0), thinning=2, step_size=0.01) == []


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"schedule": "linear"}, ValueError, r"schedule='linear'.*'constant', 'polynomial', 'cyclical'"),
        ({"schedule": 0.55}, TypeError, r"schedule must be.*0\.55"),
        ({"schedule": "cyclical", "num_samples": 10}, ValueError, r"num_samples=10.*multiple of num_cycles=4"),
        ({"schedule": "polynomial", "kernel": "nuts"}, ValueError, r"no option 'schedule'"),
    ],
)
def test_what_does_not_fit_is_refused(regression, settings, error, message) -> None:
    with pytest.raises(error, match=message):
        run(regression, **settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Polynomial(power=1.5), "power must be at most 1"),
        (lambda: Polynomial(power=0.0), "power must be a positive"),
        (lambda: Polynomial(offset=-1.0), "offset"),
        (lambda: Cyclical(num_cycles=0), "num_cycles must be at least 1"),
        (lambda: Cyclical(exploration=1.0), "exploration must be"),
    ],
)
def test_values_out_of_range_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
