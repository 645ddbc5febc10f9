"""The checks that the kernels pass reject kernels that are wrong: each mistake here is one that people make.

A wrong kernel is the right one with one of the numbers in ``Recipe`` changed. Both start at exact draws of the
target and are judged by the functions that judge the kernels elsewhere.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pseudocoreset.inference import Rows
from pseudocoreset.inference.engine import Density
from pseudocoreset.inference.kernels import HMC, KERNELS
from tests.inference.statistics import (
    FAILURE_RATE,
    MISTAKES,
    POWER,
    chain_means,
    chain_moments,
    combined,
    exchangeability,
    gaussian_law,
    power,
    rank_law,
    rank_power,
    simulations_needed,
    weakest_power,
)
from tests.inference.targets import REGRESSION, density

TEMPERATURE = 0.3
SITE, NUM_DATA, BATCH_SIZE = REGRESSION.site, len(REGRESSION.data[0]), 6
OPTIONS = {"num_integration_steps": 3}


class Recipe(NamedTuple):
    """What a kernel is made of; the defaults are right."""

    potential: float = -1.0  # times the change of potential energy, and
    kinetic: float = -1.0  # times that of kinetic energy: the logarithm of the acceptance probability of HMC
    momentum: float = 1.0  # variance of the momentum of HMC
    heat: float = 1.0  # temperature of the noise over that of the target
    fresh: bool = False  # whether SGHMC draws its momentum anew at every step
    prior: float = 1.0  # times the gradient of the log prior
    likelihood: float = 1.0  # times the gradient of the log-likelihood


def wrong_density(recipe: Recipe, kernel: str, batch_size: int | None) -> Density:
    right, prior = density(REGRESSION, kernel, batch_size), jax.grad(REGRESSION.model.log_prior)

    def gradient(params: Any, rows: Rows) -> Any:
        return jax.tree.map(
            lambda whole, part: recipe.likelihood * (whole - part) + recipe.prior * part,
            right.gradient(params, rows),
            prior(params),
        )

    return right._replace(gradient=gradient)


def textbook_hmc(key: jax.Array, state: Any, tuning: Any, target: Density, recipe: Recipe) -> Any:
    """HMC in fifteen lines."""
    momentum_key, accept_key = jax.random.split(key)

    def value_and_grad(q: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, gradient = jax.value_and_grad(target.log_density)({SITE: q}, target.data)
        return value / tuning["temperature"], gradient[SITE] / tuning["temperature"]

    q = state.position[SITE]
    p = first = jnp.sqrt(recipe.momentum) * jax.random.normal(momentum_key, q.shape)
    value, gradient = value_and_grad(q)
    for _ in range(OPTIONS["num_integration_steps"]):
        p = p + 0.5 * tuning["step_size"] * gradient
        q = q + tuning["step_size"] * p
        value, gradient = value_and_grad(q)
        p = p + 0.5 * tuning["step_size"] * gradient
    potential, kinetic = state.logdensity - value, 0.5 * (p @ p - first @ first)
    accepted = jnp.log(jax.random.uniform(accept_key)) < recipe.potential * potential + recipe.kinetic * kinetic
    new = state._replace(position={SITE: q}, logdensity=value, logdensity_grad={SITE: gradient})
    return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, state)


@functools.partial(jax.jit, static_argnames=("kernel", "num_steps", "num_draws", "batch_size"))
def run(
    kernel: str,
    starts: jax.Array,
    tuning: dict[str, Any],
    recipe: Recipe,
    num_steps: int,
    num_draws: int = 1,
    batch_size: int | None = None,
) -> jax.Array:
    """Positions (chain, draw, d), ``num_steps`` apart, of chains of the kernel that the recipe makes."""
    name = "hmc" if kernel == "textbook" else kernel
    moves = HMC(**OPTIONS) if name == "hmc" else KERNELS[name]()
    target = wrong_density(recipe, name, batch_size)
    heated = {**tuning, "temperature": recipe.heat * tuning["temperature"], "is_warmup": False}

    def step(state: Any, key: jax.Array) -> tuple[Any, None]:
        if kernel == "textbook":
            return textbook_hmc(key, state, tuning, target, recipe), None
        if kernel == "sghmc":
            key, momentum_key = jax.random.split(key)
            fresh = moves.init(momentum_key, state.position, tuning, target)
            state = jax.tree.map(lambda a, b: jnp.where(recipe.fresh, a, b), fresh, state)
        rows_key, key = jax.random.split(key) if moves.uses_minibatches else (key, key)
        return moves.step(key, state, heated, target, target.minibatch(rows_key))[0], None

    def draw(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        state, _ = jax.lax.scan(step, state, jax.random.split(key, num_steps))
        return state, moves.position(state)[SITE]

    def chain(key: jax.Array, start: jax.Array) -> jax.Array:
        init_key, key = jax.random.split(key)
        state = moves.init(init_key, {SITE: start}, tuning, target)
        return jax.lax.scan(draw, state, jax.random.split(key, num_draws))[1]

    return jax.vmap(chain)(jax.random.split(jax.random.key(1), len(starts)), starts)


def judge_hmc(kernel: str, recipe: Recipe) -> float:
    """The law after a few transitions, and detailed balance between the first and the last."""
    starts = REGRESSION.draw(0, 4000, TEMPERATURE)
    step_size = 1.4 * REGRESSION.step_size * np.sqrt(TEMPERATURE)  # a third of the proposals are refused
    tuning = {"temperature": TEMPERATURE, "step_size": step_size, "inverse_mass_matrix": jnp.ones(4)}
    ends = np.asarray(run(kernel, jnp.asarray(starts), tuning, recipe, 3))[:, 0]
    law = gaussian_law(ends, REGRESSION.mean, TEMPERATURE * REGRESSION.covariance)
    return combined([law, exchangeability(starts, ends)])


@pytest.mark.parametrize("kernel", ["hmc", "textbook"])
def test_right_hmc_passes(kernel: str) -> None:
    assert judge_hmc(kernel, Recipe()) > FAILURE_RATE


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(Recipe(kinetic=1.0), id="kinetic energy of the wrong sign"),
        pytest.param(Recipe(kinetic=0.0), id="kinetic energy forgotten"),
        pytest.param(Recipe(potential=1.0, kinetic=1.0), id="change of energy of the wrong sign"),
        pytest.param(Recipe(potential=0.0, kinetic=0.0), id="no Metropolis step"),
        pytest.param(Recipe(momentum=0.5), id="momentum of another variance"),
        pytest.param(Recipe(potential=-0.3, kinetic=-1.0), id="acceptance without temperature"),
    ],
)
def test_wrong_hmc_is_rejected(recipe: Recipe) -> None:
    assert judge_hmc("textbook", recipe) < FAILURE_RATE


def judge_langevin(kernel: str, recipe: Recipe) -> float:
    starts = REGRESSION.draw(0, 6000, TEMPERATURE)
    step_size = REGRESSION.step_size
    tuning = {"temperature": TEMPERATURE, "step_size": step_size, "friction": 1.0 / step_size}
    if kernel == "sgld":
        tuning["step_size"] = 0.01 * step_size**2  # its bias is below what can be seen
    ends = run(kernel, jnp.asarray(starts), tuning, recipe, 60)
    return gaussian_law(np.asarray(ends)[:, 0], REGRESSION.mean, TEMPERATURE * REGRESSION.covariance)


@pytest.mark.parametrize("kernel", ["sghmc", "sgld"])
def test_right_langevin_dynamics_pass(kernel: str) -> None:
    assert judge_langevin(kernel, Recipe()) > FAILURE_RATE


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(Recipe(heat=2.0), id="noise too large by the square root of two"),
        pytest.param(Recipe(heat=0.5), id="noise too small by the square root of two"),
        pytest.param(Recipe(heat=1 / TEMPERATURE), id="noise without temperature"),
        pytest.param(Recipe(prior=-1.0), id="prior of the wrong sign"),
        pytest.param(Recipe(prior=0.0), id="prior forgotten"),
    ],
)
@pytest.mark.parametrize("kernel", ["sghmc", "sgld"])
def test_wrong_langevin_dynamics_are_rejected(kernel: str, recipe: Recipe) -> None:
    assert judge_langevin(kernel, recipe) < FAILURE_RATE


def test_momentum_that_does_not_persist_is_rejected() -> None:
    assert judge_langevin("sghmc", Recipe(fresh=True)) < FAILURE_RATE


def judge_minibatches(recipe: Recipe) -> float:
    """Noise of mean zero leaves the mean of a Gaussian target where it is, the only thing judged here."""
    starts = REGRESSION.draw(0, 300, TEMPERATURE)
    step_size = 0.3 * REGRESSION.step_size
    tuning = {"temperature": TEMPERATURE, "step_size": step_size, "friction": 0.2 / step_size}
    draws = run("sghmc", jnp.asarray(starts), tuning, recipe, 10, 20, BATCH_SIZE)
    return chain_means(np.asarray(draws), REGRESSION.mean)


def test_minibatch_gradients_that_are_not_scaled_are_rejected() -> None:
    assert judge_minibatches(Recipe()) > FAILURE_RATE
    assert judge_minibatches(Recipe(likelihood=BATCH_SIZE / NUM_DATA)) < FAILURE_RATE


def test_p_values_are_those_of_chance() -> None:
    """Right draws give p-values below 5 % that often at most; a small error of scale or place gives tiny ones."""
    random = np.random.default_rng(0)
    centre, covariance = np.array([1.0, -2.0]), np.array([[2.0, 0.6], [0.6, 0.5]])
    factor = np.linalg.cholesky(covariance)
    chance = []
    for _ in range(200):
        draws, other = centre + random.normal(size=(2, 200, 2)) @ factor.T
        chance.append(
            [
                gaussian_law(draws, centre, covariance),
                chain_means(draws.reshape(50, 4, 2), centre),
                exchangeability(draws, other),
            ]
        )
    shares = (np.array(chance) < 0.05).mean(axis=0)
    assert np.all(shares < 0.05 + 5 * np.sqrt(0.05 * 0.95 / len(chance))), shares
    assert np.all(shares > 0), shares
    ranks = random.integers(0, 50, (200, 150, 4))
    share = np.mean([rank_law(some, 49) < 0.05 for some in ranks])
    assert 0 < share < 0.05 + 5 * np.sqrt(0.05 * 0.95 / 200)
    many = random.normal(size=(10_000, 2)) @ factor.T
    assert gaussian_law(centre + 1.06 * many, centre, covariance) < FAILURE_RATE
    assert gaussian_law(centre + many + 0.08 * factor[:, 0], centre, covariance) < FAILURE_RATE
    assert chain_means(many[:, None] + centre + 0.1, centre) < FAILURE_RATE
    assert exchangeability(many, 0.9 * many + 0.5) < FAILURE_RATE
    assert combined([0.5, 0.01]) == pytest.approx(0.02)


@pytest.mark.parametrize("dimension", [3, 10])
def test_power_of_the_law_of_two_thousand_draws(dimension: int) -> None:
    """The fewest draws that ``gaussian_law`` is given, and about the most coordinates."""
    draws = np.random.default_rng(0).normal(size=(2000, dimension))

    def law(draws: np.ndarray) -> float:
        return gaussian_law(draws, np.zeros(dimension), np.eye(dimension))

    assert law(draws) > FAILURE_RATE
    assert weakest_power(law, draws, np.zeros(1), np.ones(1)) > 0.999


@pytest.mark.parametrize("name", MISTAKES)
def test_power_is_how_often_a_mistake_is_found(name: str) -> None:
    """Over repetitions, where it is neither sure nor hopeless: of chains, and of ranks."""
    random, mistake = np.random.default_rng(0), MISTAKES[name]
    zero, one = np.zeros(1), np.ones(1)
    num_draws = {"narrow": 2, "wide": 3, "shifted": 2}[name]
    p_values = []
    for _ in range(300):
        draws = mistake.made(random.normal(size=(150, num_draws, 1)), zero, one, 0)
        p_values.append(chain_moments(draws, zero, np.eye(1)))
    share = np.mean(np.array(p_values) < FAILURE_RATE)
    assert 0.05 < share < 0.95
    # Each of them is a guess, off by about one in the score: right on average, and near 0 and 1 alike.
    assert abs(np.mean([power(p) for p in p_values]) - share) < 0.1

    num_simulations, num_draws = 450, 49
    found = []
    for _ in range(200):
        truths = random.normal(size=(num_simulations, 1))
        posterior = mistake.made(random.normal(size=(num_simulations, num_draws, 1)), zero, one, 0)
        ranks = np.sum(posterior < truths[:, None], axis=1)
        found.append(4 * rank_law(ranks, num_draws) < FAILURE_RATE)  # as one of four quantities
    said = rank_power(num_simulations, num_draws, 4, mistake)
    assert 0.1 < said < 0.9
    assert abs(np.mean(found) - said) < 4.5 * np.sqrt(said * (1 - said) * (1 / 200 + 1 / 1000))


def test_no_more_simulations_than_needed() -> None:
    count = simulations_needed(49, 4, step=350)
    assert count == 700
    assert min(rank_power(count, 49, 4, mistake) for mistake in MISTAKES.values()) > POWER
    assert min(rank_power(count - 100, 49, 4, mistake) for mistake in MISTAKES.values()) < POWER
