"""Gaussians around a MAP solution: curvature against dense Hessians, the push-forward against J Sigma J^T."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pseudocoreset.compute.devices import Devices
from pseudocoreset.compute.limits import limited
from pseudocoreset.models import MLP, bnn, logistic_regression
from pseudocoreset.proxies import Isotropic, Laplace, Linearized, Side, Trajectory
from pseudocoreset.proxies.laplace import best_mode, coreset_potential, data_potential
from pseudocoreset.rows import Rows

RNG = np.random.default_rng(0)
X = RNG.normal(size=(9, 3))
Y = np.arange(9) % 3
W = RNG.uniform(0.5, 2.0, size=9)


def side(model, params, is_data=False):
    def batch(key):
        return Rows(jnp.asarray(X), jnp.asarray(Y), jnp.asarray(W))

    return Side(params, batch, W.sum(), is_data, Devices())


def around(proxy, model, params, mass=None, key=None):
    """The Gaussian around the parameters, in one program."""

    @jax.jit
    def gaussian(params, mass, key):
        return proxy.around(key, model, side(model, params)._replace(mass=mass))

    return gaussian(params, W.sum() if mass is None else mass, jax.random.key(1) if key is None else key)


def softmax():
    return logistic_regression(num_classes=3, prior_scale=0.7).bind(X, Y)


def test_the_diagonal_is_that_of_the_hessian_where_the_network_is_linear():
    with jax.enable_x64(True):
        model = softmax()
        params = model.init(jax.random.key(0))
        gaussian = around(Laplace("diagonal"), model, params)
        vector = model.flatten(params)
        potential = coreset_potential(model, Rows(jnp.asarray(X), jnp.asarray(Y), jnp.asarray(W)))
        hessian = jax.jit(jax.hessian(potential))(vector)
        np.testing.assert_allclose(gaussian.scale, 1 / np.sqrt(np.diagonal(hessian)), rtol=1e-8)
        dense = around(Laplace("dense"), model, params)
        np.testing.assert_allclose(dense.covariance, np.linalg.inv(hessian), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(dense.mean, vector)


def test_a_batch_is_scaled_to_the_data():
    with jax.enable_x64(True):
        model = softmax()
        params = model.init(jax.random.key(0))
        many = around(Laplace("diagonal"), model, params, mass=1000 * W.sum())
        single = around(Laplace("diagonal"), model, params)
        prior = 1 / 0.7**2
        np.testing.assert_allclose(1 / many.scale**2 - prior, 1000 * (1 / single.scale**2 - prior), rtol=1e-8)


@pytest.mark.parametrize("weights", [Laplace("diagonal"), Trajectory(6, rank=3)])
def test_draws_have_the_covariance_of_the_push_forward(weights):
    """J Sigma J^T between all inputs and outputs, J dense and by hand here."""
    with jax.enable_x64(True):
        model = bnn(MLP((4,)), input_shape=(3,), num_outputs=3)
        params = jax.tree.map(lambda a: a.astype(jnp.float64), model.init(jax.random.key(0)))
        inputs = jnp.asarray(X[:2])

        @jax.jit
        def noise_of(params):
            return Linearized(weights).noise(jax.random.key(2), model, side(model, params), inputs, 5_000)

        @jax.jit
        @jax.jacobian
        def jacobian_at(vector):
            return model.apply(model.unflatten(vector), inputs).ravel()

        noise = noise_of(params)
        gaussian = around(weights, model, params, key=jax.random.split(jax.random.key(2))[0])
        jacobian = jacobian_at(model.flatten(params))
        wanted = np.asarray(jacobian @ gaussian.covariance @ jacobian.T)
    found = np.cov(np.asarray(noise).reshape(5_000, 6).T)
    scale = np.sqrt(np.outer(np.diagonal(wanted), np.diagonal(wanted)))
    np.testing.assert_array_less(np.abs(found - wanted) / scale, 0.1)  # five standard errors
    assert np.abs(np.asarray(noise).mean(0)).max() < 0.1 * np.sqrt(wanted.max())


def test_the_mode_is_found_from_far_away():
    """Newton's method alone diverges from there; the full data are summed in chunks."""
    from pseudocoreset.data.on_device import DeviceData

    with jax.enable_x64(True):
        model = logistic_regression(num_classes=2, prior_scale=100.0).bind(X, Y % 2)
        x = np.tile(X, (1000, 1)).astype(np.float32)
        y = RNG.integers(0, 2, size=9000).astype(np.int32)
        potential = data_potential(model, DeviceData(jnp.asarray(x), jnp.asarray(y)))
        direct = coreset_potential(model, Rows(jnp.asarray(x), jnp.asarray(y), jnp.ones(9000)))
        far = jnp.full(4, 20.0)
        np.testing.assert_allclose(potential(far), direct(far), rtol=1e-5)
        found, is_mode = jax.jit(lambda start: best_mode(potential, start[None]))(far)
        assert bool(is_mode)
        assert float(jnp.linalg.norm(jax.grad(direct)(found))) < 1e-2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Laplace("full"), "structure='full'"),
        (lambda: Trajectory(rank=1), "rank must be 0 or from 2"),
        (lambda: Trajectory(num_steps=5, rank=6), "rank must be 0 or from 2 to num_steps=5"),
        (lambda: Linearized("swag"), "weights='swag'"),
        (lambda: Isotropic(0.0), "scale"),
        (lambda: Laplace("dense").is_dense(bnn(MLP((64, 64)), input_shape=(64,), num_outputs=3)), "at most 2000"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("chunk", [9, 4])
def test_variances_along_the_trajectory_are_equation_16(fixed, chunk):
    """Steps by hand; where every batch is the same points, the values are those that the gradients pass through."""
    with limited(rows=chunk), jax.enable_x64(True):
        model = softmax()
        params = model.init(jax.random.key(0))
        proxy = Trajectory(5, coreset_learning_rate=0.3)
        small = side(model, params)._replace(fixed=fixed)
        found = jax.jit(lambda: proxy.scales(jax.random.key(1), model, small, jnp.asarray(X)))()

        def loss(p):
            return -jnp.sum(W * model.log_likelihood(p, jnp.asarray(X), jnp.asarray(Y))) / W.sum()

        values = []
        for _ in range(5):
            params = jax.tree.map(lambda p, g: p - 0.3 * g, params, jax.grad(loss)(params))
            values.append(model.apply(params, jnp.asarray(X)))
        np.testing.assert_allclose(found, np.std(np.stack(values), axis=0), rtol=1e-8)
