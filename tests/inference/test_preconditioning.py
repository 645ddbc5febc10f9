"""Fixed masses keep the law of badly scaled Gaussians; masses from gradients are estimated, then frozen."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.linalg import solve_discrete_lyapunov

from pseudocoreset.inference import SGLD, sample, sghmc
from pseudocoreset.inference.engine import Density
from pseudocoreset.models import Model

NUM_CHAINS = 8000
SCALES = np.array([1e-3, 1.0, 30.0])  # standard deviations
CORRELATION = np.array([[1.0, 0.5, 0.0], [0.5, 1.0, -0.6], [0.0, -0.6, 1.0]])


def assert_covariance(draws: np.ndarray, wanted: np.ndarray) -> None:
    """Of centred independent draws (n, d)."""
    draws = draws.astype(float)
    variances = np.diag(wanted)
    errors = np.sqrt((np.outer(variances, variances) + wanted**2) / len(draws))
    assert np.all(np.abs(draws.T @ draws / len(draws) - wanted) < 5 * errors)
    assert np.all(np.abs(draws.mean(axis=0)) < 5 * np.sqrt(variances / len(draws)))


@pytest.mark.parametrize(("temperature", "friction"), [(1.0, 0.3), (0.1, 5.0)])
def test_badly_scaled_law_is_kept(temperature: float, friction: float) -> None:
    """Condition number 1e9; the step is of the order of one in units of the mass."""
    covariance = temperature * CORRELATION * np.outer(SCALES, SCALES)
    precision = np.linalg.inv(covariance / temperature)
    starts = np.random.default_rng(0).normal(size=(NUM_CHAINS, 3)) @ np.linalg.cholesky(covariance).T
    kernel = sghmc.build_kernel()

    @jax.jit
    def run(key, positions):
        def chain(key, position):
            init_key, key = jax.random.split(key)

            def step(state, key):
                gradient = lambda q, _: -jnp.asarray(precision) @ q  # noqa: E731
                inverse = jnp.asarray(SCALES**2)
                return kernel(key, state, gradient, None, 0.7, friction, temperature, inverse)[0], None

            state = sghmc.init(position, init_key, temperature)
            return jax.lax.scan(step, state, jax.random.split(key, 60))[0]

        return jax.vmap(chain)(jax.random.split(key, NUM_CHAINS), positions)

    with jax.enable_x64(True):
        state = jax.tree.map(np.asarray, run(jax.random.key(0), jnp.asarray(starts)))
    assert_covariance(state.position, covariance)
    moved = state.position / SCALES - starts / SCALES
    assert np.all(moved.std(axis=0) > 0.5 * np.sqrt(temperature))
    # The momentum has unit mass, so that its temperature is that of the chain.
    assert abs(np.mean(state.momentum**2) / temperature - 1) < 5 * np.sqrt(2 / NUM_CHAINS / 3)


def two_sites(x, y=None):
    """Posterior precisions 10,001 for each element of ``stiff`` and 2 for each of ``soft``."""
    stiff = numpyro.sample("stiff", dist.Normal(0.0, 1.0).expand([20]).to_event(1))
    soft = numpyro.sample("soft", dist.Normal(0.0, 1.0).expand([30]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        mean = jnp.concatenate([stiff, soft]) + x[:, :1] * 0
        noise = jnp.concatenate([jnp.full(20, 0.01), jnp.ones(30)])
        numpyro.sample("y", dist.Normal(mean, noise).to_event(1), obs=y)


X, Y = np.zeros((1, 1), np.float32), np.zeros((1, 50), np.float32)
PRECISIONS = {"stiff": 10_001.0, "soft": 2.0}


def run(regression=None, **settings):
    model, data = (Model.from_numpyro(two_sites), (X, Y))
    if regression is not None:
        model, data = regression.model, (regression.x, regression.y)
    settings = {"num_chains": 40, "num_samples": 1, "num_warmup": 400, "progress": False, **settings}
    return sample(model, data, key=jax.random.key(2), **settings)


@pytest.mark.parametrize("kernel", ["sghmc", "sgld"])
def test_sampling_with_a_given_mass(regression, kernel: str) -> None:
    """SGHMC has the law of the posterior, SGLD that of its discretisation in units of the mass."""
    step_size, temperature = {"sghmc": 0.5, "sgld": 0.1}[kernel], 0.4
    mass = np.array([0.5, 1.0, 2.0]) * np.diag(np.linalg.inv(regression.precision))
    posterior = run(
        regression, kernel=kernel, step_size=step_size, temperature=temperature, num_chains=4000, num_warmup=150,
        preconditioner={"b": mass}, init_params={"b": regression.mean},
    )  # fmt: skip
    covariance = temperature * np.linalg.inv(regression.precision)
    if kernel == "sgld":
        move = np.eye(3) - step_size * np.diag(mass) @ regression.precision
        covariance = solve_discrete_lyapunov(move, 2 * step_size * temperature * np.diag(mass))
    assert_covariance(posterior.draws["b"][:, -1] - regression.mean, covariance)
    assert posterior.metadata["options"]["preconditioner"] == "given"


@pytest.mark.slow
def test_a_mass_in_three_forms() -> None:
    settings = {"step_size": 0.3, "num_chains": 2, "num_warmup": 5, "num_samples": 5}
    numbers = run(preconditioner={"stiff": 1e-4, "soft": 0.5}, **settings)
    arrays = run(preconditioner={"stiff": np.full(20, 1e-4), "soft": np.full(30, 0.5)}, **settings)
    vector = run(preconditioner=np.repeat([0.5, 1e-4], [30, 20]), **settings)  # sites by name
    for site in PRECISIONS:
        np.testing.assert_allclose(arrays.draws[site], numbers.draws[site], rtol=1e-5)
        np.testing.assert_array_equal(arrays.draws[site], vector.draws[site])


def test_masses_from_gradients_make_a_large_step_stable() -> None:
    """At equilibrium the root mean squares of gradients differ by the root of the precisions, a factor of 71."""
    step_size = 0.1  # h^2 times the larger precision is 100, where 4 is the limit
    posterior = run(step_size=step_size, preconditioner="rmsprop", num_chains=100)
    for site, precision in PRECISIONS.items():
        draws = posterior.draws[site][:, -1].ravel() * np.sqrt(precision)
        assert abs(np.mean(draws**2) - 1) < 5 * np.sqrt(2 / draws.size)
        assert abs(np.mean(draws)) < 5 / np.sqrt(draws.size)
    assert posterior.metadata["options"]["preconditioner"] == "rmsprop"


def test_masses_are_frozen_after_the_warmup() -> None:
    """One SGLD step at temperature zero moves by step size times inverse mass times gradient."""
    kernel = SGLD()
    gradient = {"stiff": jnp.array([30.0, -40.0]), "soft": jnp.array([0.1, 0.7])}
    density = Density(None, lambda params, batch: gradient, lambda key: None, None, None)
    tuning = {"step_size": jnp.array(1e-3), "temperature": jnp.array(0.0), "rmsprop_decay": jnp.array(0.9)}
    start = {"stiff": jnp.zeros(2), "soft": jnp.zeros(2)}
    state = kernel.init(jax.random.key(0), start, tuning, density)
    moves, squares = [], []
    for scale, is_warmup in ((1, True), (2, True), (3, False), (4, False)):
        grown = jax.tree.map(lambda g, scale=scale: scale * g, gradient)
        density = density._replace(gradient=lambda params, batch, grown=grown: grown)
        new, _ = kernel.step(jax.random.key(1), state, {**tuning, "is_warmup": jnp.array(is_warmup)}, density, None)
        moves.append(jax.tree.map(lambda a, b: np.asarray(a - b) / 1e-3, kernel.position(new), kernel.position(state)))
        squares.append({name: float(square / new.weight) for name, square in new.squares.items()})
        state = new
    # Root mean squares of the sites are in the proportion 35.36 to 0.5 throughout; the least gives one.
    for scale, move in zip((1, 2, 3, 4), moves, strict=True):
        np.testing.assert_allclose(move["stiff"], scale * gradient["stiff"] / np.sqrt(5000), rtol=1e-4)
        np.testing.assert_allclose(move["soft"], scale * gradient["soft"], rtol=1e-4)
    assert squares[0] == pytest.approx({"stiff": 1250.0, "soft": 0.25})
    assert squares[1] == pytest.approx({"stiff": 1250 * (0.9 + 4) / 1.9, "soft": 0.25 * (0.9 + 4) / 1.9})
    assert squares[3] == squares[2] == squares[1]


def test_the_configurational_temperature_is_in_units_of_the_mass() -> None:
    """T + e g^T M^-1 g / (2 d), whatever form the inverse mass has; sites are ordered by name in a dense one."""
    kernel = SGLD()
    gradient = {"stiff": jnp.array([30.0, -40.0]), "soft": jnp.array([0.1, 0.7])}
    density = Density(None, lambda params, batch: gradient, lambda key: None, None, None)
    flat = np.array([0.1, 0.7, 30.0, -40.0])
    matrix = np.random.default_rng(0).normal(size=(4, 4))
    diagonal = {"stiff": jnp.array([1e-3, 2.0]), "soft": jnp.array(0.5)}
    forms = [(sghmc.Factor(jnp.asarray(matrix)), matrix @ matrix.T), (diagonal, np.diag([0.5, 0.5, 1e-3, 2.0]))]
    start = {"stiff": jnp.zeros(2), "soft": jnp.zeros(2)}
    for given, inverse in [*forms, (None, np.eye(4))]:
        tuning = {"step_size": jnp.array(0.02), "temperature": jnp.array(0.3), "preconditioner": given}
        _, stats = kernel.step(jax.random.key(1), start, tuning, density, None)
        wanted = 0.3 + 0.02 * flat @ inverse @ flat / 8
        np.testing.assert_allclose(stats["configurational_temperature"], wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preconditioner": "adam", "step_size": 0.1}, "preconditioner='adam' is unknown"),
        ({"preconditioner": "rmsprop", "num_warmup": 0}, "num_warmup=0 leaves it none"),
        ({"preconditioner": {"stiff": 1.0}, "step_size": 0.1}, r"must have the sites \['soft', 'stiff'\]"),
        ({"preconditioner": {"stiff": 1.0, "soft": np.ones(3)}, "step_size": 0.1}, r"\['soft'\] has shape \(3,\)"),
        ({"preconditioner": {"stiff": 1.0, "soft": -1.0}, "step_size": 0.1}, "must be positive.*'soft'"),
        ({"preconditioner": np.ones(7), "step_size": 0.1}, r"has shape \(7,\); wanted \(50,\)"),
        ({"preconditioner": np.ones(50)}, "give step_size"),
        ({"preconditioner": "rmsprop", "kernel": "hmc"}, "no option 'preconditioner'"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**settings)
