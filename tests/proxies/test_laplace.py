"""Laplace approximations: their modes are modes, and their diagonals count every parameter."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from pseudocoreset import Dataset, fit_bpc_fkl, fit_bpc_rkl, fit_bpc_w, fit_giga, fit_sparse_vi
from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.models import MLP, Model, bnn
from pseudocoreset.proxies.laplace import best_mode, data_potential, diagonal_laplace, starts_of_search
from pseudocoreset.rows import Rows


def test_a_saddle_is_no_mode():
    """With u v = 2 observed and Gaussian priors zero is stationary; the modes are at u = v = +- sqrt(2 - s^2)."""
    scale = 0.3

    def potential(vector):
        u, v = vector
        return 0.5 * (u**2 + v**2) + 0.5 * ((2.0 - u * v) / scale) ** 2

    with jax.enable_x64(True):
        found, is_mode = best_mode(potential, jnp.asarray([[0.0, 0.0], [1.0, 0.5]]))
        assert bool(is_mode)
        np.testing.assert_allclose(np.abs(found), np.sqrt(2 - scale**2), rtol=1e-6)
        _, is_mode = best_mode(potential, jnp.zeros((1, 2)))
        assert not bool(is_mode)


def test_a_direction_without_curvature_is_no_mode():
    with jax.enable_x64(True):
        _, is_mode = best_mode(lambda v: (v[0] - v[1]) ** 2, jnp.ones((2, 2)))
    assert not bool(is_mode)


def test_the_diagonal_counts_parameters_of_the_likelihood():
    """The log of a noise scale has precision 2 n at the maximum of the likelihood, and 2 sigma^2 of its prior."""
    n = 3000
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = rng.normal(size=(n, 2))
        model = bnn(MLP(widths=(3,)), input_shape=(2,), likelihood="gaussian")
        params = jax.tree.map(lambda a: a.astype(float), model.init(jax.random.key(0)))
        f = np.asarray(model.apply(params, jnp.asarray(x)))[:, 0]
        residual = rng.normal(size=n)
        residual *= 0.2 / np.sqrt(np.mean(residual**2))
        params = {**params, "noise": jnp.log(jnp.asarray(0.2))}
        batch = Rows(jnp.asarray(x), jnp.asarray(f + residual), jnp.ones(n))
        gaussian = diagonal_laplace(model, params, batch)
        scale = jax.device_get(model.unflatten(gaussian.scale))
    # The half-normal prior of the noise, as a density of its logarithm t, is exp(t - exp(2 t) / 2).
    np.testing.assert_allclose(scale["noise"], (2 * n + 2 * 0.2**2) ** -0.5, rtol=1e-6)
    assert scale["noise"] < 0.02


def flat(x, y=None):
    """Two parameters of which the data see the sum, under priors so wide that single precision sees no more."""
    a = numpyro.sample("a", dist.Normal(0.0, 1e5))
    b = numpyro.sample("b", dist.Normal(0.0, 1e5))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x[:, 0] + a + b, 0.1), obs=y)


def test_without_a_mode_chains_take_over_or_the_fit_is_refused(caplog):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 1))
    data = Dataset.from_arrays(x, x[:, 0] + 1 + 0.1 * rng.normal(size=60))
    model = Model.from_numpyro(flat)
    options = {"size": 5, "steps": 2, "key": jax.random.key(0), "progress": False}
    with caplog.at_level(logging.WARNING):
        result = fit_bpc_rkl(model, data, **options)
    assert "no mode" in caplog.text
    assert result.coreset.metadata["objectives"][0]["proxy"] == "chains"
    with pytest.raises(ValueError, match="no mode with a positive definite curvature"):
        fit_bpc_rkl(model, data, proxy="laplace", **options)
    with pytest.raises(ValueError, match="no mode with a positive definite curvature"):
        fit_bpc_w(model, data, **options)
    # The remedy is one that the method has.
    for fit, remedy in [(fit_bpc_w, "tighter priors"), (fit_giga, "posterior= a Gaussian"), (fit_sparse_vi, "tighter")]:
        quick = {name: value for name, value in options.items() if fit is fit_bpc_w or name != "steps"}
        with pytest.raises(ValueError, match=f"Take {remedy}") as refused:
            fit(model, data, **quick)
        assert "Take proxy='chains'" not in str(refused.value)
    with pytest.raises(ValueError, match=r"Take proxy='chains' with data_draws=.* and estimator='monte_carlo'"):
        fit_bpc_fkl(model, data, estimator="closed_form", **options)
    with pytest.raises(ValueError, match=r"Take proxy='chains' with estimator='monte_carlo'"):
        fit_bpc_rkl(model, data, estimator="closed_form", **options)


def raw_columns(x, y=None):
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 2.0).expand((3,)).to_event(1))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ slopes, noise), obs=y)


def test_the_mode_does_not_depend_on_units():
    """Columns of scale 1, 100 and a million in single precision; 1, year, year**2 and z in double precision."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)) * [1.0, 1e2, 1e6]
    y = x @ [1.0, 1e-2, 1e-6] + 0.5 * rng.normal(size=400)
    data = Dataset.from_arrays(x.astype(np.float32), y.astype(np.float32))
    result = fit_giga(Model.from_numpyro(raw_columns), data, size=8, key=jax.random.key(0), progress=False)
    assert result.history["error"][-1] < 0.8 * result.history["error"][0]

    year, z = rng.integers(2000, 2010, 400).astype(float), rng.normal(size=400)
    x = np.c_[np.ones(400), year, year**2, z]
    y = 0.3 * (year - 2004) + 0.8 * z + 0.5 * rng.normal(size=400)
    scales = np.array([1.0, 2e3, 4e6, 1.0])
    base = x / scales  # in other units, with the priors in them
    wanted = np.linalg.solve(base.T @ base / 0.25 + np.diag(0.25 / scales**2), base.T @ y / 0.25) / scales
    with jax.enable_x64(True):
        for design, units in ((x, np.ones(4)), (base, scales)):

            def potential(vector, design=design, units=units):
                return jnp.sum((vector / units) ** 2) / 8 + jnp.sum((y - design @ vector) ** 2) / 0.5

            found, is_mode = best_mode(potential, jnp.asarray([[0.5, -1.0, 2.0, 1.0]]))
            assert bool(is_mode)
            np.testing.assert_allclose(found / units, wanted, rtol=1e-3)


def test_a_mode_far_below_what_another_search_reached_is_none():
    """exp(-50 v^2) and, far away, a density that grows without end: zero is a mode, and not that of the posterior."""

    def potential(vector):
        v = vector[0]
        return -jnp.logaddexp(-50.0 * v**2, v - 5.0)

    found, is_mode = best_mode(potential, jnp.asarray([[0.0]]))
    assert is_mode
    assert abs(float(found[0])) < 0.01
    found, is_mode = best_mode(potential, jnp.asarray([[0.0], [20.0]]))
    assert not is_mode
    assert float(found[0]) > 5


def test_a_small_network_has_the_mode_that_fits_and_not_the_one_at_zero():
    """At zero a product of three layers has no first and no second derivative: with its prior it is a mode there."""
    rng = np.random.default_rng(13)
    x = rng.uniform(-1, 1, size=(100, 1)).astype(np.float32)
    y = (np.sin(4 * x[:, 0]) + 0.1 * rng.normal(size=100)).astype(np.float32)

    def program(x, y=None):
        w1 = numpyro.sample("w1", dist.Normal(0, 1).expand([1, 5]).to_event(2))
        w2 = numpyro.sample("w2", dist.Normal(0, 1).expand([5, 5]).to_event(2))
        w3 = numpyro.sample("w3", dist.Normal(0, 1).expand([5, 1]).to_event(2))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal((jnp.tanh(jnp.tanh(x @ w1) @ w2) @ w3)[:, 0], 0.1), obs=y)

    model = Model.from_numpyro(program).bind(x, y)
    potential = data_potential(model, DeviceData.from_dataset(Dataset.from_arrays(x, y)))
    found, is_mode = best_mode(potential, starts_of_search(model, jax.random.key(0)))
    assert is_mode
    assert float(potential(found)) < float(potential(jnp.zeros_like(found))) - 1000
