"""The three divergences where everything is exact, against NumPy in float64 that shares no code with the package."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.models import gaussian_location, linear_regression, logistic_regression
from pseudocoreset.objectives import Chains, Rows, forward_kl, reverse_kl, wasserstein

RNG = np.random.default_rng(7)
NOISE, PRIOR, PRIOR_MEAN = 0.7, 1.3, 0.4
X = RNG.normal(size=(60, 3))
Y = X @ np.array([0.5, -1.0, 0.8]) + 0.3 + NOISE * RNG.normal(size=60)
U = RNG.normal(size=(5, 3))
V = U @ np.array([0.2, -0.5, 1.0]) + NOISE * RNG.normal(size=5)
W = np.array([5.0, 12.0, 3.0, 20.0, 9.0])


class Float64:
    """Preprocessing that leaves float64 alone, so that the tests stay exact."""

    def apply(self, raw):
        return raw


def location_posterior(x, y, w):
    variance = 1 / (1 / PRIOR**2 + w.sum() / NOISE**2)
    return variance * (w @ x) / NOISE**2, variance * np.eye(3)


def regression_posterior(x, y, w):
    design = np.c_[x, np.ones(len(x))]
    covariance = np.linalg.inv(np.eye(4) / PRIOR**2 + design.T @ np.diag(w) @ design / NOISE**2)
    return covariance @ (design.T @ (w * y) / NOISE**2 + PRIOR_MEAN / PRIOR**2), covariance


def kl(p, q):
    (m0, s0), (m1, s1) = p, q
    inverse = np.linalg.inv(s1)
    determinants = np.linalg.slogdet(s1)[1] - np.linalg.slogdet(s0)[1]
    return 0.5 * (np.trace(inverse @ s0) + (m1 - m0) @ inverse @ (m1 - m0) - len(m0) + determinants)


def root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values)) @ vectors.T


def w2(p, q):
    (m0, s0), (m1, s1) = p, q
    half = root(s1)
    return np.sum((m0 - m1) ** 2) + np.trace(s0 + s1 - 2 * root(half @ s0 @ half))


MODELS = {
    "location": (lambda: gaussian_location(noise_scale=NOISE, prior_scale=PRIOR), location_posterior),
    "regression": (
        lambda: linear_regression(noise_scale=NOISE, prior_mean=PRIOR_MEAN, prior_scale=PRIOR),
        regression_posterior,
    ),
}
# of (coreset posterior, full-data posterior)
DIVERGENCES = {
    "reverse_kl": (reverse_kl, lambda u, x: kl(u, x)),
    "forward_kl": (forward_kl, lambda u, x: kl(x, u)),
    "wasserstein": (wasserstein, w2),
}
LEAVES = ("inputs", "targets", "weights")


def exact(posterior, divergence, leaves=(U, V, W)):
    return divergence(posterior(*leaves), posterior(X, Y, np.ones(60)))


def differences(value, leaves, step=1e-5):
    """The gradient of ``value(u, v, w)`` by central differences."""
    gradients = {}
    for i, name in enumerate(LEAVES):
        gradient = np.zeros_like(leaves[i])
        for index in np.ndindex(*gradient.shape):
            ends = []
            for sign in (1, -1):
                moved = [leaf.copy() for leaf in leaves]
                moved[i][index] += sign * step
                ends.append(value(*moved))
            gradient[index] = (ends[0] - ends[1]) / (2 * step)
        gradients[name] = gradient
    return gradients


def exact_gradient(posterior, divergence):
    return differences(lambda *leaves: exact(posterior, divergence, leaves), (U, V, W))


def arrays(leaves=(U, V, W)):
    return Rows(*map(jnp.asarray, leaves))


def full_data(y=Y):
    return DeviceData(jnp.asarray(X), jnp.asarray(y), Float64())


def evaluated(objective, coreset, data):
    """Gradient and what is reported of it, from a fresh state, in one program."""

    @jax.jit
    def run(coreset, data):
        state = objective.init(jax.random.key(0), coreset, data)
        gradient, _, info = objective.gradient(jax.random.key(1), state, coreset, data, ())
        return gradient, info

    return run(coreset, data)


@pytest.mark.parametrize(
    ("kind", "proxy"),
    [
        ("location", "conjugate"),
        ("regression", "conjugate"),
        ("regression", "laplace"),
        pytest.param("location", "laplace", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_closed_form_value_and_gradients(kind, name, proxy):
    """Laplace is exact for Gaussian posteriors, its derivative by the implicit function theorem included."""
    make, posterior = MODELS[kind]
    build, divergence = DIVERGENCES[name]
    with jax.enable_x64(True):
        model = make().bind(X, Y)
        extra = {} if name == "wasserstein" else {"estimator": "closed_form"}
        objective = build(model, proxy=proxy, free=LEAVES, **extra)
        gradient, info = evaluated(objective, arrays(), full_data())
    np.testing.assert_allclose(info["loss"], exact(posterior, divergence), rtol=1e-8)
    for leaf, wanted in exact_gradient(posterior, divergence).items():
        np.testing.assert_allclose(gradient[leaf], wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max() + 1e-9)


@pytest.mark.parametrize("batch_size", [None, 20])
@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl"])
@pytest.mark.parametrize("kind", MODELS)
def test_monte_carlo_gradients_are_unbiased(kind, name, batch_size):
    """Within 4 standard errors of the exact gradient in inputs, targets and weights.

    Of each leaf: one four fifths as large, or five fourths, would fail in 95 % of cases.
    """
    if name == "forward_kl" and batch_size is not None:
        pytest.skip("forward_kl looks at the data through its posterior only")
    make, posterior = MODELS[kind]
    build, divergence = DIVERGENCES[name]
    with jax.enable_x64(True):
        model = make().bind(X, Y)
        extra = {"batch_size": batch_size} if name == "reverse_kl" else {}
        objective = build(model, proxy="conjugate", num_draws=64, free=LEAVES, **extra)
        state = objective.init(jax.random.key(0), arrays(), full_data())

        def one(key):
            return objective.gradient(key, state, arrays(), full_data(), ())[0]

        found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), 2000))
    scale = W.sum() if name == "forward_kl" else 1.0  # which is divided by the mass
    for leaf, wanted in exact_gradient(posterior, divergence).items():
        values = np.asarray(found[leaf]) * scale
        error = values.std(0, ddof=1) / np.sqrt(len(values))
        assert np.all(np.abs(values.mean(0) - wanted) < 4 * error + 1e-8)
        if np.any(wanted):  # the location has no targets
            assert np.max(0.2 * np.abs(wanted) / error) > 4 + 1.65


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("reverse_kl", {"estimator": "closed_form"}),
        ("reverse_kl", {"num_draws": 40, "batch_size": None}),
        ("forward_kl", {"estimator": "closed_form"}),
        ("forward_kl", {"num_draws": 40}),
        ("wasserstein", {}),
    ],
)
@pytest.mark.parametrize("kind", [pytest.param("location", marks=pytest.mark.slow), "regression"])
def test_optimisers_close_the_divergence(kind, name, extra):
    """With enough points for the sufficient statistics it goes below 1e-6, from draws too: their noise dies."""
    make, posterior = MODELS[kind]
    build, divergence = DIVERGENCES[name]
    steps = 3000
    with jax.enable_x64(True):
        model = make().bind(X, Y)
        objective = build(model, proxy="conjugate", free=LEAVES, **extra)
        optimizer = optax.adam(optax.cosine_decay_schedule(0.05, steps), b2=0.9)
        begin = arrays((U, V, np.full(5, 12.0)))
        state = objective.init(jax.random.key(0), begin, full_data())

        @jax.jit
        def run(begin, state):
            def step(carry, key):
                leaves, moments, s = carry
                gradient, s, _ = objective.gradient(key, s, leaves, full_data(), ())
                updates, moments = optimizer.update(Rows(**gradient), moments)
                leaves = optax.apply_updates(leaves, updates)
                return (leaves._replace(weights=jnp.maximum(leaves.weights, 0.0)), moments, s), None

            keys = jax.random.split(jax.random.key(3), steps)
            return jax.lax.scan(step, (begin, optimizer.init(begin), state), keys)[0][0]

        end = run(begin, state)
    before = exact(posterior, divergence, (U, V, np.full(5, 12.0)))
    after = exact(posterior, divergence, tuple(map(np.asarray, end)))
    assert before > 1e-2
    assert -1e-9 < after < 1e-6


def test_draws_of_chains_give_the_same_gradient():
    """NUTS on a coreset at rest: the mean of the gradient over steps is the exact one."""
    _, posterior = MODELS["regression"]
    with jax.enable_x64(True):
        model = MODELS["regression"][0]().bind(X, Y)
        proxy = Chains(num_chains=192, num_warmup=200)
        objective = reverse_kl(model, proxy=proxy, batch_size=None, free=("weights",))
        state = objective.init(jax.random.key(0), arrays(), full_data())

        def step(state, key):
            gradient, state, info = objective.gradient(key, state, arrays(), full_data(), ())
            return state, (gradient["weights"], info["acceptance_rate"])

        _, (found, rates) = jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 400))
    blocks = np.asarray(found).reshape(20, 20, -1).mean(1)  # of 20 steps: nearly independent
    wanted = exact_gradient(posterior, lambda u, x: kl(u, x))["weights"]
    error = blocks.std(0, ddof=1) / np.sqrt(20)
    assert np.all(np.abs(blocks.mean(0) - wanted) < 4 * error)
    assert np.max(0.2 * np.abs(wanted) / error) > 4 + 1.65  # a fifth off, it would fail
    assert 0.7 < np.asarray(rates).mean() < 0.95


def test_laplace_of_a_logistic_regression():
    """Mode and curvature against Newton in NumPy; the derivative of both through the coreset by differences."""
    labels = (Y > 0).astype(np.int32)
    small = (V > 0).astype(np.int32)

    def fit(x, y, w):
        design, t = np.c_[x, np.ones(len(x))], np.zeros(4)
        for _ in range(50):
            p = 1 / (1 + np.exp(-design @ t))
            hessian = np.eye(4) + (design.T * (w * p * (1 - p))) @ design
            t = t - np.linalg.solve(hessian, t + design.T @ (w * (p - y)))
        return t, np.linalg.inv(hessian)

    def reverse(u):
        return kl(fit(u, small, W), fit(X, labels, np.ones(60)))

    with jax.enable_x64(True):
        model = logistic_regression(num_classes=2).bind(X, labels)
        objective = reverse_kl(model, proxy="laplace", estimator="closed_form", free=("inputs",))
        gradient, info = evaluated(objective, arrays((U, small, W)), full_data(labels))
        inputs = np.asarray(gradient["inputs"])
    np.testing.assert_allclose(info["loss"], reverse(U), rtol=1e-8)
    shift = np.zeros_like(U)
    shift[3, 1] = 1e-5
    difference = (reverse(U + shift) - reverse(U - shift)) / 2e-5
    np.testing.assert_allclose(inputs[3, 1], difference, rtol=1e-5)


@pytest.mark.parametrize("mass", [5.0, 49.0])
def test_the_published_residual_of_networks_is_of_a_tempered_target(mass):
    """It is the gradient for the posterior of the data weighted down to the mass of the coreset, M, times m / M^2.

    At unequal weights, so that no residual is zero: weights that are left out, in the residual or in the other factor,
    are dozens of standard errors away, and so is the gradient for the posterior of the data as they are.
    """
    weights = W * mass / W.sum()

    def tempered(u, v, w):
        return kl(regression_posterior(u, v, w), regression_posterior(X, Y, np.full(60, mass / 60)))

    with jax.enable_x64(True):
        model = MODELS["regression"][0]().bind(X, Y)
        objective = reverse_kl(model, proxy="conjugate", target="tempered", batch_size=None, num_draws=64, free=LEAVES)
        leaves = arrays((U, V, weights))
        state = objective.init(jax.random.key(0), leaves, full_data())

        def one(key):
            return objective.gradient(key, state, leaves, full_data(), ())[0]

        found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), 4000))
    for leaf, wanted in differences(tempered, (U, V, weights)).items():
        values = np.asarray(found[leaf]) * mass**2 / 5
        error = values.std(0, ddof=1) / np.sqrt(len(values))
        assert np.all(np.abs(values.mean(0) - wanted) < 4.5 * error)
        assert np.max(0.2 * np.abs(wanted) / error) > 4.5 + 1.65  # a fifth off, it would fail
    assert objective.mass == "kept"


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (reverse_kl, dict(proxy="advi"), "proxy='advi'"),
        (reverse_kl, dict(num_draws=1), "num_draws"),
        (reverse_kl, dict(estimator="exact"), "estimator='exact'"),
        (reverse_kl, dict(target="full"), "target='full'"),
        (reverse_kl, dict(target="tempered", estimator="closed_form"), "no closed form here"),
        (reverse_kl, dict(free=("labels",)), "free"),
        (reverse_kl, dict(proxy="isotropic", estimator="closed_form"), "Gaussian posteriors"),
        (forward_kl, dict(proxy="chains"), "data_draws"),
        (wasserstein, dict(proxy="trajectory"), "proxy='trajectory'"),
        (wasserstein, dict(proxy="isotropic", rematerialise="all"), "rematerialise='all'"),
        (wasserstein, dict(proxy="isotropic", learn_step_size=-1.0), "learn_step_size"),
    ],
)
def test_bad_arguments_are_named(build, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(MODELS["regression"][0]().bind(X, Y), **arguments)


def test_models_without_a_conjugate_posterior_say_so():
    with pytest.raises(ValueError, match="no conjugate posterior; use proxy='laplace'"):
        reverse_kl(logistic_regression(num_classes=2).bind(X, (Y > 0).astype(np.int32)), proxy="conjugate")
