"""The Laplace estimate of the divergence at the mode of the full data."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from pseudocoreset import Dataset, Pseudocoreset
from pseudocoreset.models import MLP, Model, bnn, linear_regression, logistic_regression
from pseudocoreset.proxies import divergence_at_mode

SCALES = np.array([0.1, 1.0, 100.0])


def table(rows=400, seed=0):
    random = np.random.default_rng(seed)
    z = random.normal(size=(rows, 3))
    return z * SCALES, z @ [1.0, -0.5, 0.3] + 0.5 * random.normal(size=rows)


def gaussian(x, y, weights, noise=0.5, scale=3.0):
    design = np.c_[x, np.ones(len(x))]
    precision = (design.T * weights) @ design / noise**2 + np.eye(4) / scale**2
    return np.linalg.solve(precision, (design.T * weights) @ y / noise**2), precision


def coreset_of(data, x, y, weights):
    return Pseudocoreset(inputs=x, targets=y, weights=weights, num_data=data.train.num_data)


@pytest.mark.parametrize("rows", [400, 12_000])
def test_of_a_linear_regression_it_is_the_closed_form(rows: int) -> None:
    x, y = table(rows)
    points = np.random.default_rng(1).choice(rows, 30, replace=False)
    weights = np.random.default_rng(2).uniform(0.5, 1.5, 30) * rows / 30
    with jax.enable_x64(True):
        data = Dataset.from_arrays(x, y)
        model = linear_regression(data, noise_scale=0.5, prior_scale=3.0)
        coreset = coreset_of(data, data.train.x[points], data.train.y[points], weights.astype(np.float32))
        found = divergence_at_mode(model, data, coreset)
    # What the library holds, wherever it rounds to single precision.
    mean, precision = gaussian(np.asarray(data.train.x, float), np.asarray(data.train.y, float), np.ones(rows))
    of_coreset, their = gaussian(*(np.asarray(a, float) for a in (coreset.inputs, coreset.targets, coreset.weights)))
    moved = of_coreset - mean
    trace = np.trace(np.linalg.solve(their, precision))
    logs = np.linalg.slogdet(their)[1] - np.linalg.slogdet(precision)[1]
    assert found.nats == pytest.approx(0.5 * (trace - 4 + logs + moved @ precision @ moved), rel=1e-5)
    slope, excess = their @ moved, np.linalg.solve(precision, their) - np.eye(4)
    mismatch = 0.5 * slope @ np.linalg.solve(precision, slope) + 0.25 * np.trace(excess @ excess)
    assert found.mismatch == pytest.approx(mismatch, rel=1e-5)


def test_all_data_are_no_distance_away_and_single_precision_suffices() -> None:
    x, y = table()
    data = Dataset.from_arrays(x.astype(np.float32), (y > 0).astype(int))
    model = logistic_regression(data, prior_scale=1000.0)
    everything = coreset_of(data, data.train.x, data.train.y, np.ones(400, np.float32))
    assert divergence_at_mode(model, data, everything).nats == pytest.approx(0.0, abs=1e-3)
    half = coreset_of(data, data.train.x, data.train.y, np.full(400, 0.5, np.float32))
    # Half the weight: precision halved in four directions; so wide a prior moves no mean.
    assert divergence_at_mode(model, data, half).nats == pytest.approx(0.5 * 4 * (2 - 1 - np.log(2)), rel=0.05)


def test_what_is_not_known_is_said() -> None:
    x, y = table(50)
    data = Dataset.from_arrays(x.astype(np.float32), y.astype(np.float32))
    coreset = Pseudocoreset.from_data(data, size=5, key=jax.random.key(0), mass="data")
    network = bnn(MLP(widths=(3,)), data, likelihood="gaussian")
    assert str(divergence_at_mode(network, data, coreset)) == "not known: networks have many modes"

    def two_modes(x, y=None):
        """The sign of ``a`` is free; away from the data's modes its curvature is that of a saddle."""
        a = numpyro.sample("a", dist.Normal(0.0, 3.0))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(a**2 * jnp.ones(x.shape[0]), 0.5), obs=y)

    flat = Dataset.from_arrays(x.astype(np.float32), np.full(50, 1.0, np.float32))
    far = coreset_of(flat, flat.train.x[:2], np.full(2, 30.0, np.float32), np.full(2, 25.0, np.float32))
    found = divergence_at_mode(Model.from_numpyro(two_modes), flat, far)
    assert found.nats is None
    assert "not positive definite" in str(found)


def two_groups(centre):
    """Errors of Cauchy's law around ``a``: a mode at each of two groups of data, the higher at the larger group."""

    def program(x, y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 10.0))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Cauchy(a * jnp.ones(x.shape[0]), 0.05), obs=y)

    random = np.random.default_rng(0)
    y = np.r_[centre + 0.05 * random.normal(size=55), -centre + 0.05 * random.normal(size=45)]
    return Model.from_numpyro(program), Dataset.from_arrays(np.zeros((100, 1), np.float32), y.astype(np.float32))


@pytest.mark.parametrize("centre", [3.0, -3.0])
def test_it_is_at_the_highest_mode_of_those_that_four_starts_lead_to(centre: float) -> None:
    """One start leads to the lower mode for one of the two signs, whatever it is."""
    model, data = two_groups(centre)
    y = np.asarray(data.train.y, float)
    larger = np.flatnonzero(np.sign(y) == np.sign(centre))
    coreset = coreset_of(data, data.train.x[larger], data.train.y[larger], np.full(55, 0.8, np.float32))
    scale = 0.05

    def derivatives(a, y, weight):
        z = (y - a) / scale
        slope = weight * np.sum(2 * z / (1 + z**2)) / scale - a / 100
        return slope, weight * np.sum(2 * (1 - z**2) / (1 + z**2) ** 2) / scale**2 + 1 / 100

    mode = centre
    for _ in range(20):
        slope, precision = derivatives(mode, y, 1.0)
        mode += slope / precision
    slope, their = derivatives(mode, y[larger], 0.8)
    ratio = their / precision
    wanted = 0.5 * (1 / ratio - 1 + np.log(ratio) + slope**2 / (precision * ratio**2))
    assert divergence_at_mode(model, data, coreset).nats == pytest.approx(wanted, rel=0.1)  # as near as the search goes


def test_a_saddle_at_a_start_does_not_hide_the_mode() -> None:
    """At zero, one of the starts, the product of two parameters is stationary; modes are where it is what was seen."""

    def program(x, y=None):
        u = numpyro.sample("u", dist.Normal(0.0, 1.0))
        v = numpyro.sample("v", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(u * v * jnp.ones(x.shape[0]), 0.3), obs=y)

    data = Dataset.from_arrays(np.zeros((20, 1), np.float32), np.full(20, 2.0, np.float32))
    everything = coreset_of(data, data.train.x, data.train.y, np.ones(20, np.float32))
    found = divergence_at_mode(Model.from_numpyro(program), data, everything)
    assert found.nats == pytest.approx(0.0, abs=1e-4)
