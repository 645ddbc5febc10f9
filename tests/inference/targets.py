"""Gaussian targets that can be drawn from exactly, and chains that start there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from pseudocoreset.inference import Rows, sample
from pseudocoreset.inference.engine import Density, Kernel, Plan
from pseudocoreset.inference.kernels import KERNELS
from pseudocoreset.models import Model, linear_regression

__all__ = ["CORRELATED", "REGRESSION", "GaussianTarget", "density", "evolve", "flat_likelihood"]

NUM_DATA = 30
NOISE = 1.0


@dataclass(frozen=True)
class GaussianTarget:
    """A model and data whose posterior at temperature T is N(mean, T * covariance), by NumPy.

    ``site`` is the one latent site, ``step_size`` a large but stable one of SGHMC, at any temperature.
    """

    model: Model
    data: tuple[np.ndarray, np.ndarray]
    site: str
    mean: np.ndarray
    covariance: np.ndarray

    @property
    def step_size(self) -> float:
        return 1.2 * float(np.sqrt(np.linalg.eigvalsh(self.covariance)[0]))

    def draw(self, seed: int, num_draws: int, temperature: float, covariance: np.ndarray | None = None) -> np.ndarray:
        """Independent draws (num_draws, d), from another covariance where one is given."""
        factor = np.linalg.cholesky(temperature * (self.covariance if covariance is None else covariance))
        return self.mean + np.random.default_rng(seed).normal(size=(num_draws, len(self.mean))) @ factor.T


def flat_likelihood(x: jax.Array, y: jax.Array | None) -> None:
    """Data that say nothing about the parameters: the posterior is the prior."""
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def _correlated() -> GaussianTarget:
    """A prior alone: standard deviations from 0.5 to 2, correlations up to 0.7."""
    scale = np.array([0.5, 0.7, 1.0, 1.5, 2.0])
    lags = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    covariance = np.outer(scale, scale) * (-0.7) ** lags
    mean = np.array([1.0, -2.0, 0.0, 5.0, -1.0])
    rest = np.linalg.inv(covariance) - np.eye(5)  # of the precision

    def program(x: jax.Array, y: jax.Array | None = None) -> None:
        # NumPyro's multivariate normal solves a triangular system at every step of every chain, which takes longer.
        theta = numpyro.sample("theta", dist.Normal(mean, 1.0).to_event(1))
        numpyro.factor("correlations", -0.5 * (theta - mean) @ rest @ (theta - mean))
        flat_likelihood(x, y)

    data = np.zeros((1, 1), np.float32), np.zeros(1, np.float32)
    return GaussianTarget(Model.from_numpyro(program).bind(*data), data, "theta", mean, covariance)


def _regression() -> GaussianTarget:
    """Prior and data: four coefficients of correlated inputs."""
    generator = np.random.default_rng(0)
    x = (generator.normal(size=(NUM_DATA, 4)) @ generator.normal(size=(4, 4))).astype(np.float32)
    y = (x @ [1.0, -1.0, 0.5, 2.0] + NOISE * generator.normal(size=NUM_DATA)).astype(np.float32)
    covariance = np.linalg.inv(x.T.astype(float) @ x / NOISE**2 + np.eye(4))
    mean = covariance @ (x.T.astype(float) @ y) / NOISE**2
    model = linear_regression(noise_scale=NOISE, intercept=False).bind(x, y)
    return GaussianTarget(model, (x, y), "coefficients", mean, covariance)


CORRELATED = _correlated()
REGRESSION = _regression()


def evolve(
    target: GaussianTarget,
    kernel: str | Kernel,
    temperature: float,
    starts: np.ndarray,
    num_steps: int,
    **settings: Any,
) -> np.ndarray:
    """Positions (n, d) of as many chains as starts, after some steps without warmup."""
    posterior = sample(
        target.model,
        target.data,
        kernel=kernel,
        temperature=temperature,
        num_chains=len(starts),
        num_warmup=0,
        num_samples=1,
        thinning=num_steps,
        init_params={target.site: starts},
        progress=False,
        **{"key": jax.random.key(1), "step_size": target.step_size, **settings},
    )
    return posterior.draws[target.site][:, 0]


def density(target: GaussianTarget, kernel: str, batch_size: int | None = None) -> Density:
    """What ``sample`` gives the kernel of the target, for steps by hand."""
    x, y = map(jnp.asarray, target.data)
    num_data = len(x)
    plan = Plan(
        model=target.model,
        kernel=KERNELS[kernel]().compiled_form(),
        num_data=num_data,
        batch_size=batch_size,
        preprocessing=None,
        held_out_preprocessing=None,
        held_out_chunk_size=num_data,
        keep_weights=True,
    )
    return plan.density(Rows(x, y, jnp.ones(num_data)))
