"""Hamiltonian trajectories can be run backwards, and proposals are accepted with the right probability."""

from __future__ import annotations

from types import SimpleNamespace

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc import integrators, metrics
from scipy import stats

from tests.inference.statistics import FAILURE_RATE, combined, exchangeability, two_sided
from tests.inference.targets import REGRESSION, evolve

METRICS = {
    "diagonal": np.array([0.5, 1.0, 2.0]),
    "dense": np.array([[1.0, 0.5, 0.0], [0.5, 2.0, -0.3], [0.0, -0.3, 0.7]]),
}


def funnel(position: dict[str, jax.Array]) -> jax.Array:
    """Far from Gaussian: the scale of x is exp(v / 2)."""
    v, x = position["v"], position["x"]
    return -0.5 * v**2 / 4 - 0.5 * jnp.sum(x**2) * jnp.exp(-v) - 0.5 * x.size * v


def trajectory(metric: np.ndarray) -> SimpleNamespace:
    kinetic_energy = metrics.default_metric(jnp.asarray(metric)).kinetic_energy
    leapfrog = integrators.velocity_verlet(funnel, kinetic_energy)

    def integrate(state: integrators.IntegratorState, step_size: float) -> integrators.IntegratorState:
        return jax.lax.fori_loop(0, 50, lambda _, s: leapfrog(s, step_size), state)

    def start(position: dict[str, jax.Array], momentum: dict[str, jax.Array]) -> integrators.IntegratorState:
        return integrators.IntegratorState(position, momentum, *jax.value_and_grad(funnel)(position))

    def energy(state: integrators.IntegratorState) -> jax.Array:
        return kinetic_energy(state.momentum) - state.logdensity

    return SimpleNamespace(integrate=jax.jit(integrate), start=start, energy=energy)


@pytest.mark.parametrize("metric", METRICS)
def test_integrate_flip_integrate_returns(metric: str) -> None:
    with jax.enable_x64(True):
        path = trajectory(METRICS[metric])
        position = {"v": jnp.asarray(0.4), "x": jnp.array([1.1, -0.6])}
        momentum = {"v": jnp.asarray(-0.9), "x": jnp.array([0.7, 1.5])}
        first = path.start(position, momentum)
        there = path.integrate(first, 0.1)
        back = path.integrate(there._replace(momentum=jax.tree.map(jnp.negative, there.momentum)), 0.1)
        moved = max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(*map(jax.tree.leaves, (there, first)), strict=True))
        assert moved > 0.5
        for name in position:
            np.testing.assert_allclose(back.position[name], position[name], rtol=0, atol=1e-12)
            np.testing.assert_allclose(back.momentum[name], -momentum[name], rtol=0, atol=1e-12)
        # Second order: a quarter of the step, over the same time, a sixteenth of the error of the energy.
        errors = []
        for step_size, repeats in ((0.1, 1), (0.025, 4)):
            state = first
            for _ in range(repeats):
                state = path.integrate(state, step_size)
            errors.append(abs(float(path.energy(state) - path.energy(first))))
        assert 0 < errors[1] < errors[0] / 8


def hand_leapfrog(q: np.ndarray, p: np.ndarray, step_size: float, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """One step on exp(-q^4 / (4 T)) and the change of energy, in NumPy."""

    def energy(q: np.ndarray, p: np.ndarray) -> np.ndarray:
        return q**4 / (4 * temperature) + p**2 / 2

    half = p - 0.5 * step_size * q**3 / temperature
    end = q + step_size * half
    return end, energy(end, half - 0.5 * step_size * end**3 / temperature) - energy(q, p)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_acceptance_is_the_exponential_of_the_change_of_energy(temperature: float) -> None:
    """By hand for one leapfrog step; and that often proposals are accepted."""
    num_chains, step_size = 20_000, 1.0
    with jax.enable_x64(True):
        starts = jnp.asarray(np.random.default_rng(0).normal(size=num_chains))
        kernel = blackjax.hmc.build_kernel()

        def one(key: jax.Array, q: jax.Array):
            def density(q: jax.Array) -> jax.Array:
                return -(q**4) / (4 * temperature)

            state = blackjax.hmc.init(q, density)
            return kernel(key, state, density, step_size, jnp.ones(1), 1)

        new, info = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), num_chains), starts)
    end, change = hand_leapfrog(np.asarray(starts), np.asarray(info.momentum), step_size, temperature)
    probability = np.exp(np.minimum(0.0, -change))
    assert min(np.mean(change > 0.1), np.mean(change < -0.1)) > 0.1  # both directions are tried
    np.testing.assert_allclose(info.acceptance_rate, probability, rtol=1e-9, atol=1e-12)
    accepted = np.asarray(info.is_accepted)
    np.testing.assert_allclose(new.position, np.where(accepted, end, np.asarray(starts)), rtol=1e-9)
    assert np.all(accepted[change <= 0])
    # Of the uphill ones, by thirds of their probability.
    order = np.argsort(probability[change > 0])
    p_values = []
    for third in np.array_split(order, 3):
        p, hits = probability[change > 0][third], accepted[change > 0][third]
        score = (hits.sum() - p.sum()) / np.sqrt(np.sum(p * (1 - p)))
        p_values.append(two_sided(stats.norm.cdf(score), stats.norm.sf(score)))
    assert combined(p_values) > FAILURE_RATE


def test_two_states_by_hand() -> None:
    """Flow from A to B is flow from B to A: pi(A) a(A, B) = pi(B) a(B, A) along one trajectory and back."""
    temperature, step_size = 0.3, 0.7
    q, p = np.array(0.9), np.array(-0.4)
    end, change = hand_leapfrog(q, p, step_size, temperature)
    half = p - 0.5 * step_size * q**3 / temperature
    flipped = -(half - 0.5 * step_size * end**3 / temperature)
    returned, change_back = hand_leapfrog(end, flipped, step_size, temperature)
    np.testing.assert_allclose(returned, q, rtol=1e-12)

    def weight(q: np.ndarray, p: np.ndarray) -> np.ndarray:
        return np.exp(-(q**4) / (4 * temperature) - p**2 / 2)

    flows = weight(q, p) * min(1.0, np.exp(-change)), weight(end, flipped) * min(1.0, np.exp(-change_back))
    np.testing.assert_allclose(*flows, rtol=1e-12)
    assert abs(change) > 0.1


@pytest.mark.parametrize("kernel", ["hmc", "nuts"])
def test_successive_positions_can_be_exchanged(kernel: str) -> None:
    """Detailed balance of a stationary chain, at a step so large that a part of the proposals is refused."""
    temperature = 0.3
    starts = REGRESSION.draw(0, 3000, temperature)
    options = {"num_integration_steps": 3} if kernel == "hmc" else {"max_num_doublings": 4}
    step_size = 1.4 * REGRESSION.step_size * np.sqrt(temperature)
    ends = evolve(REGRESSION, kernel, temperature, starts, 1, step_size=step_size, **options)
    assert exchangeability(starts, ends) > FAILURE_RATE
    assert np.any(starts.astype(np.float32) != ends)
