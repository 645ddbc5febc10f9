"""Laplace approximations: their modes are modes, and their diagonals count every parameter."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from pseudocoreset import Dataset, fit_bpc_fkl, fit_bpc_rkl, fit_bpc_w
from pseudocoreset.models import MLP, Model, bnn
from pseudocoreset.proxies.laplace import best_mode, diagonal_laplace


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
        batch = jnp.asarray(x), jnp.asarray(f + residual), jnp.ones(n)
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
    assert fit_bpc_fkl is not None
