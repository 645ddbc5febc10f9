"""Sampling with an augmentation a gradient: the posterior whose log-likelihood is the mean over augmentations."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from pseudocoreset.inference import sample
from pseudocoreset.models import Model
from tests.inference.statistics import FAILURE_RATE, POWER, chain_means, weakest_power

NOISE = 0.5
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(12, 2, 2, 1)).astype(np.float32)
REAL = (IMAGES.reshape(12, 4) @ [1.0, -1.0, 0.5, 2.0] + NOISE * RNG.normal(size=12)).astype(np.float32)


def program(x, y=None):
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand((4,)).to_event(1))
    f = numpyro.deterministic("f", x.reshape(len(x), 4) @ theta)
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(f, NOISE), obs=y)


def exact(*views):
    """Mean of the Gaussian posterior whose log-likelihood is the mean over the views."""
    flat = [view.reshape(12, 4).astype(float) for view in views]
    precision = np.eye(4) + sum(x.T @ x for x in flat) / len(flat) / NOISE**2
    return np.linalg.solve(precision, sum(x.T @ REAL for x in flat) / len(flat) / NOISE**2)


@pytest.mark.parametrize("batch_size", [6, pytest.param(None, marks=pytest.mark.slow)])
def test_the_mean_over_flips_is_what_is_sampled(batch_size):
    with pytest.warns(UserWarning, match="augment='flip' changes the posterior"):
        posterior = sample(
            Model.from_numpyro(program), (IMAGES, REAL), augment="flip", batch_size=batch_size, num_chains=120,
            num_warmup=2000, num_samples=50, thinning=100, step_size=0.006, key=jax.random.key(0), progress=False,
        )  # fmt: skip
    draws, wanted = posterior.draws["theta"], exact(IMAGES, IMAGES[:, :, ::-1])

    def law(draws):
        return chain_means(draws, wanted)

    assert law(draws) > FAILURE_RATE
    assert chain_means(draws, exact(IMAGES)) < FAILURE_RATE
    # The mean is right, the width is that of minibatches.
    assert weakest_power(law, draws, wanted, draws.std((0, 1)), ["shifted"]) > POWER
    assert posterior.metadata["augment"] == "flip"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(kernel="nuts", augment="flip"), "augment='flip': kernel 'nuts'"),
        (dict(augment="sharpen"), "unknown groups"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample(Model.from_numpyro(program), (IMAGES, REAL), key=jax.random.key(0), **arguments)
