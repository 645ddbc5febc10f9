"""Published update rules against their equations written again in NumPy, on softmax regression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pseudocoreset.evaluation.steps import (
    Moving,
    kim2022_hmc,
    kim2022_potential,
    kim2022_sghmc,
    normal_like,
    one_pass,
    sgd,
)
from pseudocoreset.objectives import Rows

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 4))
Y = RNG.integers(0, 3, 6)
START = {"kernel": RNG.normal(size=(4, 3)), "bias": RNG.normal(size=3)}
MOMENTUM = {"kernel": RNG.normal(size=(4, 3)), "bias": RNG.normal(size=3)}
NORMALS = [{"kernel": RNG.normal(size=(4, 3)), "bias": RNG.normal(size=3)} for _ in range(2)]
WEIGHT_DECAY = 0.7


def mean_loss(params):
    log_probabilities = jax.nn.log_softmax(X @ params["kernel"] + params["bias"])
    return -jnp.mean(log_probabilities[jnp.arange(len(Y)), Y])


def potential(params):
    return kim2022_potential(mean_loss(params), params, WEIGHT_DECAY)


def flat(params):
    return np.concatenate([np.ravel(params["kernel"]), np.ravel(params["bias"])])


def numpy_loss(theta):
    logits = X @ theta[:12].reshape(4, 3) + theta[12:]
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    error = (probabilities - np.eye(3)[Y]) / len(Y)
    loss = -np.mean(np.log(probabilities[np.arange(len(Y)), Y]))
    return loss, np.concatenate([(X.T @ error).ravel(), error.sum(0)])


def numpy_potential(theta):
    loss, slope = numpy_loss(theta)
    norm = np.sqrt(np.sum(theta**2))
    return loss + WEIGHT_DECAY * norm, slope + WEIGHT_DECAY * theta / norm


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def test_sghmc_of_kim2022_is_its_equation():
    eps, alpha, heat, m = 0.03, 0.1, 0.01, len(Y)
    theta, p = flat(START), flat(MOMENTUM)
    state = Moving(START, MOMENTUM)
    for normals in NORMALS:
        theta = theta + eps * p
        p = (1 - alpha) * p - eps * m * numpy_potential(theta)[1] + np.sqrt(2 * alpha * heat) * flat(normals)
        state = kim2022_sghmc(
            state,
            normals,
            jax.grad(lambda params: m * potential(params)),
            step_size=eps,
            friction=alpha,
            diffusion=alpha * heat,
        )
    np.testing.assert_allclose(flat(state.position), theta, rtol=1e-12)
    np.testing.assert_allclose(flat(state.momentum), p, rtol=1e-12)


@pytest.mark.parametrize("normals", NORMALS)
def test_hmc_of_kim2022_has_the_kinetic_energy_of_the_wrong_sign(normals):
    """Uphill, where it refuses what Metropolis would accept; both sides of the published probability."""
    eps, m = 0.05, len(Y)
    start = {name: 0.1 * values for name, values in START.items()}
    theta, p = flat(start), 1.5 * flat(normals)
    moved = theta
    kinetic = 0.5 * np.sum(p**2)
    for _ in range(3):
        p = p - 0.5 * eps * m * numpy_potential(moved)[1]
        moved = moved + eps * p
        p = p - 0.5 * eps * m * numpy_potential(moved)[1]
    fall = m * (numpy_potential(theta)[0] - numpy_potential(moved)[0])
    gain = 0.5 * np.sum(p**2) - kinetic
    published, metropolis = np.exp(min(0.0, fall + gain)), np.exp(min(0.0, fall - gain))
    assert published < metropolis - 0.2

    def transition(uniform):
        return kim2022_hmc(
            start,
            normals,
            jnp.asarray(uniform),
            potential,
            num_points=m,
            step_size=eps,
            num_steps=3,
            momentum_scale=1.5,
        )

    found, accepted = transition(published * (1 - 1e-9))
    assert bool(accepted)
    np.testing.assert_allclose(flat(found), moved, rtol=1e-10)
    found, accepted = transition(published * (1 + 1e-9))
    assert not bool(accepted)
    np.testing.assert_array_equal(flat(found), theta)


def test_sgd_is_that_of_torch():
    """Decay enters the velocity, and a new step size acts on the velocity that is there."""
    theta, v = flat(START), np.zeros(15)
    state = Moving(START, jax.tree.map(np.zeros_like, START))
    for rate in (0.1, 0.1, 0.01):
        v = 0.9 * v + numpy_loss(theta)[1] + 5e-4 * theta
        theta = theta - rate * v
        state = sgd(state, jax.grad(mean_loss), learning_rate=rate, momentum=0.9, weight_decay=5e-4)
    np.testing.assert_allclose(flat(state.position), theta, rtol=1e-12)


def test_the_norm_is_not_squared_and_one_for_all():
    params = {"a": jnp.asarray([3.0, 0.0]), "b": jnp.asarray([[4.0]])}
    assert float(kim2022_potential(jnp.asarray(1.0), params, 2.0)) == pytest.approx(1.0 + 2.0 * 5.0)


def test_normals_differ_from_leaf_to_leaf():
    draws = normal_like(jax.random.key(0), {"a": jnp.zeros((40, 50)), "b": jnp.zeros(2000, jnp.float32)})
    a, b = np.ravel(draws["a"]), np.asarray(draws["b"])
    assert (a.shape, b.shape, b.dtype) == ((2000,), (2000,), np.float32)
    for values in (a, b, a * b):
        assert abs(values.mean()) < 5 / np.sqrt(2000)
    assert abs(a.var() - 1) < 5 * np.sqrt(2 / 2000)


@pytest.mark.parametrize(("batch_size", "num_steps"), [(4, 3), (5, 2), (10, 1), (100, 1)])
def test_a_pass_sees_every_point_once(batch_size, num_steps):
    """The sum of 1 / batch size over points is the number of steps; the orders of two keys differ."""
    arrays = Rows(jnp.zeros((10, 1)), jnp.arange(10), jnp.ones(10))

    def step(state, key, batch):
        visits, count, _ = state
        return visits.at[batch.targets].add(1), count + 1, batch.targets[-1]

    @jax.jit
    def run(seed):
        return one_pass(step, (jnp.zeros(10), 0, jnp.asarray(0)), jax.random.key(seed), arrays, batch_size)

    visits, count, _ = run(0)
    np.testing.assert_array_equal(visits, np.ones(10))
    assert int(count) == num_steps
    if num_steps > 1:
        assert len({int(run(seed)[2]) for seed in range(20)}) > 1
