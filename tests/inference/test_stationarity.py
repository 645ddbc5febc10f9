"""Chains that start at exact draws of the tempered target stay there, whatever the kernel, step or friction."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy.linalg import block_diag

from pseudocoreset.inference import sghmc
from tests.inference.statistics import FAILURE_RATE, gaussian_law
from tests.inference.targets import CORRELATED, REGRESSION, GaussianTarget, evolve

TARGETS = {"correlated": CORRELATED, "regression": REGRESSION}
CASES = [("regression", 1.0), ("regression", 0.3), ("regression", 0.1), ("correlated", 0.3)]
# Steps long enough for rejections, hence on the tempered scale where the kernel takes its units from the target.
METROPOLIS = {"hmc": {"num_integration_steps": 5}, "nuts": {"max_num_doublings": 5}}


def correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of each coordinate of the one with itself in the other."""
    a, b = (values - values.mean(axis=0) for values in (first, second))
    return (a * b).mean(axis=0) / (a.std(axis=0) * b.std(axis=0))


@pytest.mark.parametrize(
    ("target", "temperature"),
    [pytest.param(*case, marks=() if case[1] == 0.3 else pytest.mark.slow) for case in CASES],
)
@pytest.mark.parametrize("kernel", METROPOLIS)
def test_hmc_and_nuts(kernel: str, target: str, temperature: float) -> None:
    chosen = TARGETS[target]
    starts = chosen.draw(0, 2000 if kernel == "nuts" else 4000, temperature)
    step_size = chosen.step_size * np.sqrt(temperature)
    ends = evolve(chosen, kernel, temperature, starts, 2, step_size=step_size, **METROPOLIS[kernel])
    assert gaussian_law(ends, chosen.mean, temperature * chosen.covariance) > FAILURE_RATE
    assert np.min(np.abs(correlation(starts, ends))) < 0.9  # they moved


@pytest.mark.parametrize(("target", "temperature"), CASES)
@pytest.mark.parametrize(("kept", "num_steps"), [(0.9, 100), (0.05, 40)], ids=["small", "large"])
def test_sghmc_at_small_and_large_friction(kept: float, num_steps: int, target: str, temperature: float) -> None:
    """``kept`` is the share of the momentum that is left after a step, hence the steps that forget its start."""
    chosen = TARGETS[target]
    starts = chosen.draw(0, 6000, temperature)
    friction = -np.log(kept) / chosen.step_size
    ends = evolve(chosen, "sghmc", temperature, starts, num_steps, friction=friction)
    assert gaussian_law(ends, chosen.mean, temperature * chosen.covariance) > FAILURE_RATE
    assert np.min(np.abs(correlation(starts, ends))) < 0.9


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("friction", [0.0, 0.1, 30.0])
def test_joint_law_of_sghmc(friction: float, temperature: float) -> None:
    """Positions and momenta, from the first step on and without friction too.

    Half a kick after a step the two are independent, q ~ N(mu, T P^-1) and p ~ N(0, T (I - h^2 P / 4)), which
    the splitting of a Gaussian target keeps exactly.
    """
    precision, num_chains = np.linalg.inv(CORRELATED.covariance), 10_000
    step_size, dimension = CORRELATED.step_size, len(precision)
    law = np.eye(dimension) - step_size**2 / 4 * precision
    positions = CORRELATED.draw(0, num_chains, temperature)
    kick = 0.5 * step_size * precision
    momenta = np.random.default_rng(1).normal(size=positions.shape) @ np.linalg.cholesky(temperature * law).T
    kernel = sghmc.build_kernel()

    def gradient(position: jax.Array, minibatch: None) -> jax.Array:
        return -precision @ (position - CORRELATED.mean)

    def chain(key: jax.Array, state: sghmc.SGHMCState) -> sghmc.SGHMCState:
        for step_key in jax.random.split(key, 3):
            state, _ = kernel(step_key, state, gradient, None, step_size, friction, temperature)
        return state

    before = sghmc.SGHMCState(positions, momenta + (positions - CORRELATED.mean) @ kick)
    after = jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(2), num_chains), before)
    position, momentum = (np.asarray(part, float) for part in after)
    joint = np.concatenate([position, momentum - (position - CORRELATED.mean) @ kick], axis=1)
    centre = np.concatenate([CORRELATED.mean, np.zeros(dimension)])
    assert gaussian_law(joint, centre, temperature * block_diag(CORRELATED.covariance, law)) > FAILURE_RATE
    assert np.min(np.abs(correlation(positions, position))) < 0.9


def sgld_covariance(target: GaussianTarget, step_size: float) -> np.ndarray:
    """Of theta' = theta + e P (mu - theta) + sqrt(2 e T) xi: T (P - e P^2 / 2)^-1, here at temperature one."""
    precision = np.linalg.inv(target.covariance)
    return np.linalg.inv(precision - 0.5 * step_size * precision @ precision)


@pytest.mark.parametrize(("target", "temperature"), CASES)
def test_sgld_keeps_the_law_of_its_discretisation(target: str, temperature: float) -> None:
    chosen = TARGETS[target]
    step_size = 0.5 * chosen.step_size**2
    covariance = sgld_covariance(chosen, step_size)
    starts = chosen.draw(0, 6000, temperature, covariance)
    ends = evolve(chosen, "sgld", temperature, starts, 40, step_size=step_size)
    assert gaussian_law(ends, chosen.mean, temperature * covariance) > FAILURE_RATE
    assert np.min(np.abs(correlation(starts, ends))) < 0.9
    # The bias of the step is seen: these are not draws of the posterior.
    assert gaussian_law(ends, chosen.mean, temperature * chosen.covariance) < FAILURE_RATE
