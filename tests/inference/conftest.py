"""A Bayesian linear regression with known noise, whose posterior is Gaussian in closed form."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from pseudocoreset.models import Model

NOISE = 0.5
PRIOR_SCALE = 2.0


def program(x: jax.Array, y: jax.Array | None = None) -> None:
    coefficients = numpyro.sample("b", dist.Normal(0.0, PRIOR_SCALE).expand([x.shape[1]]).to_event(1))
    f = numpyro.deterministic("f", x @ coefficients)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(f, NOISE), obs=y)


@dataclass(frozen=True)
class Regression:
    """Model, data, and the Gaussian posterior N(mean, temperature * inverse precision) by NumPy."""

    model: Model
    x: np.ndarray
    y: np.ndarray
    mean: np.ndarray
    precision: np.ndarray

    def uncompiled(self) -> Regression:
        """The same with a model of its own, for which no other test can have compiled anything."""
        return replace(self, model=replace(self.model))


@pytest.fixture(scope="session")
def regression() -> Regression:
    generator = np.random.default_rng(0)
    x = (generator.normal(size=(40, 3)) @ np.array([[1, 0.6, 0], [0, 1, 0.3], [0, 0, 0.7]])).astype(np.float32)
    y = (x @ [1.0, -2.0, 0.5] + NOISE * generator.normal(size=40)).astype(np.float32)
    precision = x.T.astype(float) @ x / NOISE**2 + np.eye(3) / PRIOR_SCALE**2
    mean = np.linalg.solve(precision, x.T.astype(float) @ y / NOISE**2)
    return Regression(Model.from_numpyro(program).bind(x, y), x, y, mean, precision)
