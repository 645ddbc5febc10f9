"""FBPC's gradient against Proposition 3.1 where everything is exact: linear model, Gaussian noise and prior, float64.

The exact divergence is computed in NumPy from the conjugate posteriors, its gradient by central differences.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from pseudocoreset import Dataset
from pseudocoreset.compute.devices import Devices
from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.models import MLP, Model, bnn
from pseudocoreset.objectives import Rows, function_kl, function_kl_surrogate
from pseudocoreset.proxies import Isotropic, Side, Trajectory

NOISE = 0.7
RNG = np.random.default_rng(3)
THETA = RNG.normal(size=3)
X = RNG.normal(size=(40, 3))
Y = X @ THETA + NOISE * RNG.normal(size=40)
U = RNG.normal(size=(4, 3))
V = U @ THETA + NOISE * RNG.normal(size=4)
W = np.array([1.0, 2.0, 0.5, 3.0])


def linear(x, y=None):
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand((3,)).to_event(1))
    f = numpyro.deterministic("f", x @ theta)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(f, NOISE), obs=y)


def conjugate(x, y, w):
    """Mean and covariance of the posterior of theta with per-datum weights."""
    covariance = np.linalg.inv(np.eye(3) + (x.T * w) @ x / NOISE**2)
    return covariance @ (x.T * w) @ y / NOISE**2, covariance


def divergence(u):
    """KL(pi_x || pi_u) between the exact posteriors; equal to that of the function posteriors."""
    (m0, s0), (m1, s1) = conjugate(X, Y, np.ones(40)), conjugate(u, V, W)
    p1 = np.linalg.inv(s1)
    quadratic = (m1 - m0) @ p1 @ (m1 - m0)
    return 0.5 * (np.trace(p1 @ s0) + quadratic - 3 + np.log(np.linalg.det(s1) / np.linalg.det(s0)))


def exact_gradient(u, step=1e-5):
    gradient = np.zeros_like(u)
    for index in np.ndindex(*u.shape):
        shift = np.zeros_like(u)
        shift[index] = step
        gradient[index] = (divergence(u + shift) - divergence(u - shift)) / (2 * step)
    return gradient


def test_the_surrogate_has_the_gradient_of_the_divergence():
    with jax.enable_x64(True):
        model = Model.from_numpyro(linear).bind(X, Y)
        num_draws, repeats = 200, 400

        def one(key):
            """Mean gradient over independent draws of the weights from both exact posteriors."""
            keys = jax.random.split(key)
            moments = conjugate(X, Y, np.ones(40)), conjugate(U, V, W)
            thetas = [
                jax.random.multivariate_normal(k, jnp.asarray(m), jnp.asarray(s), (num_draws,))
                for k, (m, s) in zip(keys, moments, strict=True)
            ]

            def draws(theta):
                return lambda u: (theta @ u.T)[:, :, None]

            def loss(u):
                return function_kl_surrogate(model, {}, draws(thetas[0]), draws(thetas[1]), u, V, W)[0]

            return jax.grad(loss)(jnp.asarray(U)) * W.sum()

        gradients = np.asarray(jax.lax.map(one, jax.random.split(jax.random.key(0), repeats)))
    assert gradients.dtype == np.float64
    error = gradients.std(0, ddof=1) / np.sqrt(repeats)
    assert np.all(np.abs(gradients.mean(0) - exact_gradient(U)) < 5 * error)
    assert np.all(error < 0.05 * np.abs(exact_gradient(U)).max())


def mean_only_gradient(u, mean_x, mean_u):
    """Expectation of Eq. 17 for a linear model: gradient through the means, covariances stopped."""
    residual_x, residual_u = V - u @ mean_x, V - u @ mean_u
    # grad_u [ -E log p(y | f_x) + E log p(y | f_u) ], E over Gaussians with constant variance
    return (W / NOISE**2)[:, None] * (-residual_x[:, None] * mean_x + residual_u[:, None] * mean_u)


@pytest.mark.parametrize("proxy", [Isotropic(), Isotropic(0.3), Trajectory(5, 1e-3, 1e-3, 8)])
def test_the_objective_estimates_equation_17(proxy):
    """The MAP of the coreset is found by the inner training itself; the estimate is unbiased over its draws."""
    with jax.enable_x64(True):
        model = Model.from_numpyro(linear).bind(X, Y)
        objective = function_kl(
            model,
            proxy=proxy,
            num_draws=2000,
            inner_loss=1e-9,
            inner_learning_rate=0.05,
            inner_max_steps=4000,
        )
        coreset = Rows(jnp.asarray(U), jnp.asarray(V), jnp.asarray(W))
        data = DeviceData(jnp.asarray(X), jnp.asarray(Y), Float64())
        snapshot = {"theta": jnp.asarray([0.4, -1.0, 0.2])}

        @jax.jit
        def gradient(key):
            out, _, info = objective.gradient(key, (), coreset, data, (snapshot,))
            return out["inputs"], info

        results = [gradient(k) for k in jax.random.split(jax.random.key(1), 30)]
    gradients = np.stack([g for g, _ in results]) * W.sum()
    # The inner training minimises the weighted squares of the coreset alone: least squares, no prior.
    least_squares = np.linalg.solve((U.T * W) @ U, (U.T * W) @ V)
    wanted = mean_only_gradient(U, np.array([0.4, -1.0, 0.2]), least_squares)
    error = gradients.std(0, ddof=1) / np.sqrt(len(gradients))
    assert np.all(np.abs(gradients.mean(0) - wanted) < 5 * error + 1e-4 * np.abs(wanted).max())
    assert all(bool(info["inner_capped"]) for _, info in results)  # gamma is below the least loss there is


class Float64:
    """Preprocessing that leaves float64 alone, so that the test stays exact."""

    def apply(self, raw):
        return raw


def test_trajectory_scales_are_the_empirical_standard_deviations():
    """Eq. 16 along full-batch gradient descent on the coreset, recomputed by hand in NumPy."""
    with jax.enable_x64(True):
        model = Model.from_numpyro(linear).bind(X, Y)
        proxy = Trajectory(num_steps=6, coreset_learning_rate=0.02)
        start = np.array([0.5, 0.5, -0.5])

        def coreset(key):
            return Rows(jnp.asarray(U), jnp.asarray(V), jnp.asarray(W))

        side = Side({"theta": jnp.asarray(start)}, coreset, W.sum(), False, Devices())
        scales = proxy.scales(jax.random.key(0), model, side, jnp.asarray(U))
        gaussian = proxy.around(jax.random.key(0), model, side)
    theta, values, thetas = start.copy(), [], []
    for _ in range(6):
        # mean weighted negative log-likelihood: gradient of sum_j w_j (v_j - u_j theta)^2 / (2 noise^2) / sum_j w_j
        theta = theta - 0.02 * (U.T * W) @ (U @ theta - V) / NOISE**2 / W.sum()
        values.append(U @ theta)
        thetas.append(theta)
    np.testing.assert_allclose(scales[:, 0], np.std(values, axis=0), rtol=1e-8)
    np.testing.assert_allclose(gaussian.mean, start)
    np.testing.assert_allclose(gaussian.scale, np.std(thetas, axis=0), rtol=1e-8)


def classification():
    x = RNG.normal(size=(60, 4)).astype(np.float32)
    y = np.arange(60) % 3
    x[np.arange(60), y] += 2.0
    return Dataset.from_arrays(x, y.astype(np.int32))


def test_the_inner_training_stops_at_gamma_and_keeps_those_parameters():
    data = classification()
    model = bnn(MLP((8,)), data)
    objective = function_kl(model, proxy="isotropic", inner_loss=0.5, inner_learning_rate=0.02, inner_max_steps=300)
    coreset = Rows(jnp.asarray(data.train.x[:6]), jnp.asarray(data.train.y[:6]), jnp.ones(6))
    snapshot = model.init(jax.random.key(0))
    gradient = jax.jit(objective.gradient)
    _, _, info = gradient(jax.random.key(1), (), coreset, DeviceData.from_dataset(data), (snapshot,))
    assert float(info["inner_loss"]) <= 0.5
    assert 1 < int(info["inner_steps"]) < 300
    assert not bool(info["inner_capped"])


def test_a_batch_of_the_coreset_leaves_the_other_points_alone():
    data = classification()
    model = bnn(MLP((8,)), data)
    objective = function_kl(model, proxy="isotropic", coreset_batch_size=2, inner_max_steps=5)
    coreset = Rows(jnp.asarray(data.train.x[:6]), jnp.asarray(data.train.y[:6]), jnp.ones(6))
    snapshot = model.init(jax.random.key(0))
    gradient_fn = jax.jit(objective.gradient)
    gradient, _, _ = gradient_fn(jax.random.key(1), (), coreset, DeviceData.from_dataset(data), (snapshot,))
    assert int(jnp.sum(jnp.any(gradient["inputs"] != 0, axis=1))) == 2


def test_duplicating_a_point_at_half_the_weight_halves_its_gradient():
    """The divergence does not change, so the two halves share the gradient of the whole; isotropic means are fixed."""
    with jax.enable_x64(True):
        model = Model.from_numpyro(linear).bind(X, Y)

        def gradient(u, v, w):
            def draws(theta):
                return lambda inputs: (inputs @ jnp.asarray(theta))[None, :, None]

            def loss(inputs):
                x_draws, u_draws = draws([1.0, 0.5, -0.2]), draws([0.1, -0.4, 0.9])
                return function_kl_surrogate(model, {}, x_draws, u_draws, inputs, v, w)[0]

            return np.asarray(jax.grad(loss)(jnp.asarray(u)))

        whole = gradient(U, V, W)
        twice = gradient(U[[0, 0, 1, 2, 3]], V[[0, 0, 1, 2, 3]], np.array([0.5, 0.5, 2.0, 0.5, 3.0]))
    np.testing.assert_allclose(twice[0], whole[0] / 2, rtol=1e-10)
    np.testing.assert_allclose(twice[0] + twice[1], whole[0], rtol=1e-10)
    np.testing.assert_allclose(twice[2:], whole[1:], rtol=1e-10)


def test_several_networks_a_step_are_the_mean_of_steps_of_one():
    model = bnn(MLP((3,)), input_shape=(3,), num_outputs=1, likelihood="gaussian")
    settings = {"proxy": Trajectory(3, batch_size=4), "inner_loss": 1e-9, "inner_max_steps": 3}
    one, four = (function_kl(model, num_networks=count, **settings) for count in (1, 4))
    coreset = Rows(jnp.asarray(U, jnp.float32), jnp.asarray(V, jnp.float32), jnp.asarray(W, jnp.float32))
    data = DeviceData(jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32))
    experts = [model.init(key) for key in jax.random.split(jax.random.key(1), 4)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *experts)
    found, _, info = four.gradient(jax.random.key(0), (), coreset, data, (stack,))
    keys = jax.random.split(jax.random.key(0), 4)
    each = [one.gradient(key, (), coreset, data, (expert,)) for key, expert in zip(keys, experts, strict=True)]
    wanted = np.mean([gradient["inputs"] for gradient, _, _ in each], axis=0)
    np.testing.assert_allclose(found["inputs"], wanted, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(info["loss"], np.mean([one_info["loss"] for _, _, one_info in each]), rtol=1e-5)
    assert bool(info["inner_capped"])


def test_models_without_function_values_are_refused():
    def no_function(x, y=None):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    with pytest.raises(ValueError, match="no site 'f'"):
        function_kl(Model.from_numpyro(no_function).bind(X, Y))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(proxy="laplace"), "proxy='laplace' is unknown; use one of 'trajectory', 'isotropic', 'linearized'"),
        (dict(num_draws=0), "num_draws"),
        (dict(inner_loss=-1.0), "inner_loss"),
        (dict(first_epoch=-1), "first_epoch"),
        (dict(inner_max_steps=0), "inner_max_steps"),
        (dict(coreset_batch_size=0), "coreset_batch_size"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        function_kl(Model.from_numpyro(linear).bind(X, Y), **arguments)


def with_known_errors(x, y=None):
    """The last column of x is the known error of a row; the noise is a parameter of the likelihood."""
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand((2,)).to_event(1))
    noise = numpyro.sample("noise", dist.LogNormal(0.0, 1.0))
    f = numpyro.deterministic("f", x[:, :2] @ theta)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(f, jnp.sqrt(noise**2 + x[:, 2] ** 2)), obs=y)


def test_each_side_has_its_own_noise_and_every_point_its_own_error():
    """With draws of no spread both losses, and the gradient in the known errors, are those of a Gaussian by hand.

    It took the noise of the expert for both sides, and known errors of zero for all points.
    """
    x, u = np.abs(X) + 0.1, np.abs(U) + 0.1
    expert = {"theta": np.array([0.4, -1.0]), "noise": np.log(0.3)}
    trained = {"theta": np.array([0.1, 0.5]), "noise": np.log(1.5)}

    def losses(params, u):
        variance = np.exp(2 * params["noise"]) + u[:, 2] ** 2
        residual = V - u[:, :2] @ params["theta"]
        return 0.5 * np.log(2 * np.pi * variance) + 0.5 * residual**2 / variance

    with jax.enable_x64(True):
        bound = Model.from_numpyro(with_known_errors).bind(x, Y)
        model = replace(bound, initializer=lambda _: jax.tree.map(jnp.asarray, trained))
        # The network is at its end before the first step.
        objective = function_kl(model, proxy=Isotropic(1e-12), num_draws=2, inner_loss=1e9)
        coreset = Rows(jnp.asarray(u), jnp.asarray(V), jnp.asarray(W))
        data = DeviceData(jnp.asarray(x), jnp.asarray(Y), Float64())
        snapshot = jax.tree.map(jnp.asarray, expert)
        leaves, _, info = objective.gradient(jax.random.key(0), (), coreset, data, (snapshot,))
    for name, params in (("data_loss", expert), ("coreset_loss", trained)):
        np.testing.assert_allclose(info[name], W @ losses(params, u) / W.sum(), rtol=1e-9)
    step = 1e-6 * np.eye(3)[2]
    slope = [(losses(p, u + step) - losses(p, u - step)) / 2e-6 for p in (expert, trained)]
    np.testing.assert_allclose(leaves["inputs"][:, 2], W * (slope[0] - slope[1]) / W.sum(), rtol=1e-6)
