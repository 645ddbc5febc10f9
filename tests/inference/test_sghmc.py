"""The kernel alone, on Gaussian targets: its positions have the exact law at any step size and friction."""

from __future__ import annotations

import functools

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.base import SamplingAlgorithm

from pseudocoreset.inference import sghmc
from tests.inference.statistics import FAILURE_RATE, POWER, chain_moments, threshold, weakest_power

NUM_CHAINS = 10_000
STEP_SIZE = 0.3
PRECISION = np.array([[2.0, 0.8], [0.8, 0.7]])
CENTRE = np.array([1.0, -3.0])


def standard_gradient(position: jax.Array, minibatch: None) -> jax.Array:
    return -position


def correlated_gradient(position: dict[str, jax.Array], minibatch: None) -> dict[str, jax.Array]:
    value = jnp.stack([position["first"], position["second"]]) - CENTRE
    first, second = -PRECISION @ value
    return {"first": first, "second": second}


@functools.partial(jax.jit, static_argnames=("gradient", "num_steps"))
def run_chains(key, positions, gradient, num_steps, step_size, friction, temperature):
    def chain(key, position):
        init_key, step_key = jax.random.split(key)
        algorithm = sghmc.as_top_level_api(gradient, friction)
        state = sghmc.init(position, init_key, temperature)

        def step(state, key):
            return algorithm.step(key, state, None, step_size, temperature)[0], None

        return jax.lax.scan(step, state, jax.random.split(step_key, num_steps))[0]

    num_chains = jax.tree.leaves(positions)[0].shape[0]
    return jax.vmap(chain)(jax.random.split(key, num_chains), positions)


@functools.partial(jax.jit, static_argnames="num_steps")
def run_blackjax_chains(key, positions, num_steps, step_size, friction, temperature):
    kernel = blackjax.sghmc.build_kernel(friction)

    def chain(key, position):
        def step(position, key):
            return kernel(key, position, standard_gradient, None, step_size, 10, temperature), None

        return jax.lax.scan(step, position, jax.random.split(key, num_steps))[0]

    return jax.vmap(chain)(jax.random.split(key, positions.shape[0]), positions)


def variance_ratio(positions: jax.Array, temperature: float) -> float:
    return float(jnp.mean(jnp.square(positions))) / temperature


# Of the mean square of independent standard normal draws.
RATIO_ERROR = np.sqrt(2 / NUM_CHAINS)
LIMIT = threshold(5)  # standard errors, of a test that compares up to five numbers


@pytest.mark.parametrize("friction", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.1])
def test_law_of_a_standard_normal_is_kept(temperature: float, friction: float) -> None:
    start_key, key = jax.random.split(jax.random.key(1))
    exact = jnp.sqrt(temperature) * jax.random.normal(start_key, (NUM_CHAINS,))
    state = run_chains(key, exact, standard_gradient, 200, STEP_SIZE, friction, temperature)

    assert abs(variance_ratio(state.position, temperature) - 1) < LIMIT * RATIO_ERROR
    assert abs(float(jnp.mean(state.position))) < LIMIT * np.sqrt(temperature / NUM_CHAINS)
    assert abs(variance_ratio(state.momentum, temperature) - 1) < LIMIT * RATIO_ERROR


@pytest.mark.parametrize("step_size", [0.5, 1.9])
def test_the_momentum_has_its_temperature_at_every_stable_step(step_size: float) -> None:
    """Which is why its mean square tells of noisy gradients, not of steps that are too large."""
    start_key, key = jax.random.split(jax.random.key(5))
    exact = jnp.sqrt(0.3) * jax.random.normal(start_key, (NUM_CHAINS,))
    state = run_chains(key, exact, standard_gradient, 200, step_size, 1.0, 0.3)
    assert abs(variance_ratio(state.momentum, 0.3) - 1) < LIMIT * RATIO_ERROR


@pytest.mark.parametrize("friction", [1.0, pytest.param(5.0, marks=pytest.mark.slow)])
def test_the_same_test_fails_for_blackjax(friction: float) -> None:
    """A documented fact of BlackJAX 1.7.1, and the reason for a kernel of our own."""
    temperature = 0.1
    start_key, key = jax.random.split(jax.random.key(2))
    exact = jnp.sqrt(temperature) * jax.random.normal(start_key, (NUM_CHAINS,))
    theirs = run_blackjax_chains(key, exact, 50, 0.05, friction, temperature)
    ours = run_chains(key, exact, standard_gradient, 200, 0.05, friction, temperature)

    assert variance_ratio(theirs, temperature) > 2
    assert abs(variance_ratio(ours.position, temperature) - 1) < LIMIT * RATIO_ERROR


@pytest.mark.parametrize(
    ("temperature", "friction"),
    [
        (0.3, 0.2),
        (0.1, 10.0),
        pytest.param(1.0, 0.2, marks=pytest.mark.slow),
        pytest.param(1.0, 10.0, marks=pytest.mark.slow),
    ],
)
def test_a_correlated_gaussian_is_reached_from_a_wrong_start(temperature: float, friction: float) -> None:
    start = {"first": jnp.full(NUM_CHAINS, 8.0), "second": jnp.full(NUM_CHAINS, 5.0)}
    state = run_chains(jax.random.key(3), start, correlated_gradient, 600, STEP_SIZE, friction, temperature)
    centred = np.stack([state.position["first"], state.position["second"]], axis=1) - CENTRE
    covariance = temperature * np.linalg.inv(PRECISION)

    mean_errors = np.sqrt(np.diag(covariance) / NUM_CHAINS)
    assert np.all(np.abs(centred.mean(axis=0)) < LIMIT * mean_errors)
    variances = np.diag(covariance)
    covariance_errors = np.sqrt((np.outer(variances, variances) + covariance**2) / NUM_CHAINS)
    assert np.all(np.abs(centred.T @ centred / NUM_CHAINS - covariance) < LIMIT * covariance_errors)


def test_one_step_by_hand() -> None:
    """At temperature zero a step is deterministic."""
    position, momentum, step_size, friction = 1.5, -0.4, 0.2, 3.0
    state = sghmc.SGHMCState(jnp.asarray(position), jnp.asarray(momentum))
    kernel = sghmc.build_kernel()
    new, info = kernel(jax.random.key(0), state, standard_gradient, None, step_size, friction, 0.0)

    kicked = momentum - step_size * position
    damped = np.exp(-friction * step_size) * kicked
    np.testing.assert_allclose(new.momentum, damped, rtol=1e-6)
    np.testing.assert_allclose(new.position, position + 0.5 * step_size * (kicked + damped), rtol=1e-6)
    np.testing.assert_allclose(info.kinetic_temperature, damped**2, rtol=1e-6)
    np.testing.assert_allclose(info.gradient_norm, position, rtol=1e-6)


def test_form_of_a_blackjax_algorithm() -> None:
    algorithm = sghmc.as_top_level_api(correlated_gradient, friction=1.0)
    assert isinstance(algorithm, SamplingAlgorithm)
    position = {"first": jnp.zeros(()), "second": jnp.zeros(())}
    resting = algorithm.init(position)
    assert resting._fields == ("position", "momentum")
    assert all(float(leaf) == 0 for leaf in jax.tree.leaves(resting.momentum))
    moving = algorithm.init(position, jax.random.key(0))
    new, info = jax.jit(algorithm.step)(jax.random.key(1), moving, None, 0.1)
    assert jax.tree.structure(new) == jax.tree.structure(moving)
    assert info._fields == ("kinetic_temperature", "gradient_norm")


def test_takes_gradient_estimators_of_blackjax() -> None:
    data = jnp.linspace(-1.0, 3.0, 50)
    estimator = blackjax.sgmcmc.gradients.grad_estimator(
        lambda mean: -0.5 * mean**2, lambda mean, datum: -0.5 * (datum - mean) ** 2, len(data)
    )
    algorithm = sghmc.as_top_level_api(estimator, friction=5.0)

    @jax.jit
    def run(key):
        init_key, key = jax.random.split(key)

        def step(state, key):
            state, _ = algorithm.step(key, state, data, 0.05)
            return state, state.position

        return jax.lax.scan(step, algorithm.init(jnp.zeros(()), init_key), jax.random.split(key, 2000))[1][500:]

    draws = np.asarray(jax.vmap(run)(jax.random.split(jax.random.key(4), 200)))[..., None]
    mean = np.array([float(data.sum()) / 51])

    def law(draws: np.ndarray) -> float:
        return chain_moments(draws, mean, np.eye(1) / 51)

    assert law(draws) > FAILURE_RATE
    assert weakest_power(law, draws, mean, np.ones(1) / np.sqrt(51)) > POWER


def test_no_key_is_used_twice() -> None:
    with jax.debug_key_reuse(True):
        algorithm = sghmc.as_top_level_api(standard_gradient, friction=1.0)
        init_key, step_key = jax.random.split(jax.random.key(0))
        state, _ = algorithm.step(step_key, algorithm.init(jnp.zeros(3), init_key), None, 0.1)
    assert bool(jnp.all(jnp.isfinite(state.position)))
