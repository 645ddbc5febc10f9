"""Preconditioners and steps of SGHMC and SGLD from the curvature at the mode: by default right in any units."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from pseudocoreset.inference import SGHMC, sample
from pseudocoreset.inference.adaptation import curvature
from pseudocoreset.inference.data import Rows
from pseudocoreset.inference.engine.prepare import set_up
from pseudocoreset.models import MLP, Model, bnn

SCALES = np.array([0.1, 1.0, 30.0, 100.0])


def linear(x, y=None):
    coefficients = numpyro.sample("b", dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ coefficients, 0.5), obs=y)


def counts(x, y=None):
    slope = numpyro.sample("b", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Poisson(jnp.exp(x[:, 0] * slope)), obs=y)


def binary(x, y=None):
    coefficients = numpyro.sample("b", dist.Normal(0.0, 2.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=x @ coefficients), obs=y)


def table(scales, offset=0.0):
    """300 rows of correlated columns, and the exact posterior: mean, covariance."""
    random = np.random.default_rng(3)
    z = random.normal(size=(300, 4)) @ (np.eye(4) + 0.5 * np.eye(4, k=1)) + offset
    x = (z * scales).astype(np.float32)
    y = (z @ [1.0, -1.0, 0.5, 0.0] + 0.5 * random.normal(size=300)).astype(np.float32)
    wide = x.astype(float)
    precision = wide.T @ wide / 0.25 + np.eye(4) / 100
    return (x, y), np.linalg.solve(precision, wide.T @ y.astype(float) / 0.25), np.linalg.inv(precision)


@functools.cache
def bound(program, width):
    """One model, one compilation."""
    return Model.from_numpyro(program).bind(np.ones((2, width), np.float32), np.zeros(2, np.float32))


def run(data, program=linear, **settings):
    # A thousand draws, sixty steps apart: next to independent.
    settings = {"num_chains": 50, "num_warmup": 150, "num_samples": 20, "thinning": 60, "progress": False, **settings}
    return sample(bound(program, data[0].shape[1]), data, key=jax.random.key(1), **settings)


@pytest.mark.parametrize("kernel", ["sghmc", "sgld"])
@pytest.mark.parametrize(("scales", "offset"), [(SCALES, 0.0), (SCALES, 20.0), (np.ones(4), 0.0)])
def test_defaults_have_the_posterior_in_any_units(kernel: str, scales, offset: float) -> None:
    """Means to 0.16 sd, sd within 0.88 to 1.16, on minibatches.

    With a thousand independent draws the errors of a right sampler are 0.032 and 0.022: it passes at five of them, SGLD
    with the 5 % that its step adds. A bias of 0.3 sd, or an sd off by 0.8 or 1.25, fails with probability above 0.999;
    by the rule of thumb, without a preconditioner, sd are off by 40 and more.
    """
    data, mean, covariance = table(scales, offset)
    draws = run(data, kernel=kernel, batch_size=16).draws["b"].reshape(-1, 4)
    # In the principal axes of the posterior too, where the intercept of an offset hides.
    for turn in (np.diag(1 / np.sqrt(np.diag(covariance))), np.linalg.inv(np.linalg.cholesky(covariance))):
        z = (draws - mean) @ turn.T
        assert np.abs(z.mean(axis=0)).max() < 0.16
        assert z.std(axis=0).min() > 0.88
        assert z.std(axis=0).max() < 1.16


def test_sgld_by_defaults_knows_how_wide_its_step_makes_it() -> None:
    """Exact gradients: in units of the posterior variances are 1 / (1 - e / 2), and so is the reported temperature.

    Its error is 0.001, that of an sd 0.022. Without the units of the dense mass it is off by orders of magnitude.
    """
    data, mean, covariance = table(SCALES, 20.0)
    posterior = run(data, kernel="sgld")
    z = (posterior.draws["b"].reshape(-1, 4) - mean) @ np.linalg.inv(np.linalg.cholesky(covariance)).T
    wide = 1 / (1 - posterior.metadata["step_size"][0] / 2)
    assert wide == pytest.approx(1 / 0.95, rel=1e-2)
    assert np.abs(z.mean(axis=0)).max() < 0.16
    assert np.abs(z.std(axis=0) / np.sqrt(wide) - 1).max() < 0.11
    assert posterior.sample_stats["configurational_temperature"].mean() == pytest.approx(wide, abs=0.006)


@pytest.mark.parametrize("kernel", ["sghmc", "sgld"])
def test_counts_on_a_raw_scale(kernel: str) -> None:
    """The posterior of one coefficient by quadrature; the errors of a thousand draws are 0.032 and 0.022."""
    random = np.random.default_rng(0)
    x = (100 * random.normal(size=(400, 1))).astype(np.float32)
    y = random.poisson(np.exp(0.004 * x[:, 0].astype(float)))
    grid = np.linspace(0.0, 0.008, 4001)
    log = x[:, 0].astype(float) @ y * grid - np.exp(np.outer(grid, x[:, 0].astype(float))).sum(axis=1) - grid**2 / 2
    weights = np.exp(log - log.max())
    mean = np.average(grid, weights=weights)
    deviation = np.sqrt(np.average((grid - mean) ** 2, weights=weights))
    z = (run((x, y), counts, kernel=kernel, batch_size=20).draws["b"].ravel() - mean) / deviation
    assert abs(z.mean()) < 0.16
    assert 0.88 < z.std() < 1.16


def test_a_column_that_few_rows_carry() -> None:
    """The posterior of an intercept and a slope by quadrature, on minibatches of 128 of 20,000 rows: sd within 10 %.

    The errors of a thousand draws are 0.032 and 0.022. A step that suits most minibatches, but not those with several
    of the rows that carry the column, makes the sd 1.3 times too large.
    """
    random = np.random.default_rng(0)
    column = random.normal(size=20_000) * (random.random(20_000) < 0.05)
    y = (random.random(20_000) < 1 / (1 + np.exp(5 - column))).astype(np.int32)
    x = np.stack([np.ones(20_000), column], axis=1).astype(np.float32)
    draws = run((x, y), binary, num_chains=20, num_warmup=400, num_samples=50).draws["b"].reshape(-1, 2)

    def log_density(a, b):
        carried = column != 0
        logits = a + b * np.float32(column[carried]).astype(float)[:, None]
        log = (y[carried, None] * logits - np.logaddexp(0, logits)).sum(axis=0) - (a**2 + b**2) / 8
        return log + y[~carried].sum() * a - (~carried).sum() * np.logaddexp(0, a)

    centre, spread = draws.mean(axis=0), draws.std(axis=0)
    grid = centre + 6 * spread * np.stack(np.meshgrid(*2 * [np.linspace(-1, 1, 81)]), axis=-1).reshape(-1, 2)
    log = log_density(grid[:, 0], grid[:, 1])
    weights = np.exp(log - log.max())
    mean = np.average(grid, axis=0, weights=weights)
    deviation = np.sqrt(np.average((grid - mean) ** 2, axis=0, weights=weights))
    assert np.abs((centre - mean) / deviation).max() < 0.16
    assert np.abs(spread / deviation - 1).max() < 0.10


@pytest.mark.parametrize("batch_size", [16, 100])  # with and without replacement
def test_the_noise_is_that_of_minibatches(batch_size: int) -> None:
    """The largest eigenvalue of the covariance of 20,000 gradient estimates, whose error is 0.01, in units of L."""
    data, _, covariance = table(SCALES)
    settings = {"num_warmup": 0, "num_samples": 1, "thinning": 1, "num_chains": 1, "temperature": 1.0}
    sizes = {"num_data": 300, "feature_shape": (4,), "batch_size": batch_size}
    asked = set_up(bound(linear, 4), SGHMC(), step_size=None, **settings, **sizes)
    density = asked.plan.density(Rows(*map(jnp.asarray, (*data, np.ones(300, np.float32)))))
    factor = np.linalg.cholesky(covariance)
    points = jnp.asarray(factor @ [1.0, -1.0, 0.5, 2.0], jnp.float32)[None]
    found = curvature._noise(asked.plan, density, lambda v: {"b": v}, jnp.asarray(factor), points, None)
    gradient = jax.jit(lambda key: density.gradient({"b": points[0]}, density.minibatch(key))["b"])
    estimates = np.asarray(jax.lax.map(gradient, jax.random.split(jax.random.key(2), 20_000))) @ factor
    assert float(found) == pytest.approx(np.linalg.eigvalsh(np.cov(estimates.T))[-1], rel=0.06)


def test_steps_do_not_depend_on_units() -> None:
    settings = {"num_chains": 2, "num_warmup": 0, "num_samples": 1, "batch_size": 16}
    steps = [run(table(scales)[0], **settings).metadata["step_size"] for scales in (np.ones(4), SCALES)]
    np.testing.assert_allclose(*steps, rtol=0.02)
    assert 0.05 < steps[0][0] <= 0.3
    whole = run(table(SCALES)[0], num_chains=2, num_warmup=0, num_samples=1, thinning=1).metadata
    np.testing.assert_allclose(whole["step_size"], 0.3, rtol=1e-3)  # of a Gaussian without noise
    assert whole["options"]["preconditioner"] == "curvature"
    assert np.exp(-whole["options"]["friction"] * whole["step_size"][0]) == pytest.approx(0.9)


def test_chains_start_at_the_mode() -> None:
    data, mean, covariance = table(SCALES)
    posterior = run(
        data, preconditioner="curvature", step_size=1e-6, num_chains=2, num_warmup=0, num_samples=1, thinning=1
    )
    z = (posterior.draws["b"][:, 0] - mean) / np.sqrt(np.diag(covariance))
    assert np.abs(z).max() < 0.05


@pytest.mark.parametrize("options", [{}, {"preconditioner": None, "control_variate": True}])
def test_without_a_warmup_chains_start_where_they_are_told_to(options) -> None:
    """With a warmup at the mode, or at the centre that was found from there."""
    data, mean, covariance = table(SCALES)
    start = mean + 8 * np.sqrt(np.diag(covariance))
    settings = {"num_chains": 2, "num_samples": 1, "thinning": 1, "batch_size": 16, "init_params": {"b": start}}
    if options:
        settings["step_size"] = 1e-6
    for num_warmup, wanted in ((0, 8.0), (1, 0.0)):
        draws = run(data, num_warmup=num_warmup, **settings, **options).draws["b"][:, 0]
        np.testing.assert_allclose((draws - mean) / np.sqrt(np.diag(covariance)), wanted, atol=5.0 if wanted else 2.0)


def test_a_posterior_without_a_mode_is_warned_of() -> None:
    def funnel(x, y=None):
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 3.0))
        effects = numpyro.sample("effects", dist.Normal(0.0, scale).expand([8]).to_event(1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(effects[x[:, 0].astype(int)], 10.0), obs=y)

    x = np.repeat(np.arange(8.0), 2)[:, None].astype(np.float32)
    y = np.zeros(16, np.float32)
    with pytest.warns(UserWarning, match=r"found no mode.*kernel='nuts'"):
        run((x, y), funnel, num_chains=2, num_warmup=5, num_samples=2)


def test_networks_and_given_steps_keep_theirs() -> None:
    (x, y), _, _ = table(np.ones(4))
    network = bnn(MLP(widths=(4,)), input_shape=(4,), num_outputs=1, likelihood="gaussian")
    settings = {"num_chains": 1, "num_warmup": 1, "num_samples": 1, "key": jax.random.key(0), "progress": False}
    for options in (
        sample(network, (x, y), batch_size=10, **settings).metadata["options"],
        run((x, y), step_size=1e-3, num_chains=1, num_warmup=1, num_samples=1).metadata["options"],
    ):
        assert options["preconditioner"] is None
        assert options["control_variate"] is False


@pytest.mark.parametrize(
    ("width", "message"),
    [(301, "for at most 300 of them; the model has 301. Take 'rmsprop'"), (4, "preconditioner='curved' is unknown")],
)
def test_what_does_not_fit_is_refused(width: int, message: str) -> None:
    x = np.ones((5, width), np.float32)
    with pytest.raises(ValueError, match=message):
        run((x, np.ones(5, np.float32)), preconditioner="curvature" if width > 4 else "curved", num_chains=1)
