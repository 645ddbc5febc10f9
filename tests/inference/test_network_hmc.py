"""HMC with energies taken apart: reversible, exact on Gaussians, and exact in single precision where others are not."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pseudocoreset.inference import Rows, hmc, log_density_estimator, sample
from pseudocoreset.inference.data import log_density_terms
from pseudocoreset.models import MLP, bnn, logistic_regression
from tests.inference.statistics import FAILURE_RATE, POWER, chain_means, chain_moments, weakest_power

NUM_CHAINS = 3000
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.normal(size=(200, 64)).astype(np.float32)
LABELS = RANDOM.integers(0, 10, 200).astype(np.int32)


def quartic(q: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {"a": -0.25 * q["a"] ** 4, "b": -0.5 * q["b"] ** 2 + jnp.sin(q["b"])}


def quartic_gradient(q: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return jax.grad(lambda q: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(quartic(q))))(q)


def test_a_trajectory_leads_back() -> None:
    with jax.enable_x64(True):
        start = {"a": jnp.array([0.3, -1.2]), "b": jnp.array(0.7)}
        momentum = {"a": jnp.array([1.1, 0.4]), "b": jnp.array(-0.8)}
        scale = {"a": jnp.array([0.5, 1.0]), "b": jnp.array(2.0)}
        there = hmc.leapfrog(quartic_gradient, start, momentum, quartic_gradient(start), 0.1, 25, scale, 0.4)
        flipped = jax.tree.map(jnp.negative, there[1])
        back = hmc.leapfrog(quartic_gradient, there[0], flipped, there[2], 0.1, 25, scale, 0.4)
        far = max(float(jnp.max(jnp.abs(there[0][name] - start[name]))) for name in start)
        assert far > 0.3
        for name in start:
            np.testing.assert_allclose(back[0][name], start[name], atol=1e-12)
            np.testing.assert_allclose(back[1][name], -momentum[name], atol=1e-12)


def test_one_step_by_hand() -> None:
    with jax.enable_x64(True):
        q, r, h, s, temperature = 1.5, -0.4, 0.2, 0.5, 0.25
        new = hmc.leapfrog(lambda q: -3 * q, jnp.array(q), jnp.array(r), jnp.array(-3 * q), h, 1, s, temperature)
        half = r - 0.5 * h * s * 3 * q / temperature
        wanted = q + h * s * half
        np.testing.assert_allclose(new[0], wanted, rtol=1e-14)
        np.testing.assert_allclose(new[1], half - 0.5 * h * s * 3 * wanted / temperature, rtol=1e-14)
        np.testing.assert_allclose(new[2], -3 * wanted, rtol=1e-14)


def test_signs_of_the_change_of_energy() -> None:
    """Log pi falls from -1 to -3, the momentum grows from 1 to 2: H grows by 2 / T and by (4 - 1) / 2."""
    terms, new_terms = jnp.array([-0.25, -0.75]), jnp.array([-1.0, -2.0])
    change = hmc.energy_change(terms, new_terms, jnp.array(1.0), jnp.array(-2.0), 0.5)
    assert float(change) == pytest.approx(4.0 + 1.5)
    assert float(hmc.energy_change(new_terms, terms, jnp.array(-2.0), jnp.array(1.0), 0.5)) == pytest.approx(-5.5)


def test_compensated_sums_lose_nothing() -> None:
    values = (RANDOM.normal(size=10_001) * 10.0 ** RANDOM.integers(-3, 7, 10_001)).astype(np.float32)
    values = np.concatenate([values, -values[::-1], np.float32([0.125])])
    exact = math.fsum(values.astype(float))
    assert exact == 0.125
    assert float(jax.jit(hmc.compensated_sum)({"a": values[:7], "b": values[7:]})) == pytest.approx(exact, abs=1e-3)
    assert abs(float(jnp.sum(values)) - exact) > 0.01


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_terms_add_up_to_the_log_density(chunk_size: int | None) -> None:
    soft = np.eye(3, dtype=np.float32)[LABELS[:30] % 3] * 0.7 + 0.1
    weights = np.linspace(0, 2, 30).astype(np.float32)
    rows = Rows(jnp.asarray(PIXELS[:30]), jnp.asarray(soft), jnp.asarray(weights))
    model = logistic_regression(num_classes=3).bind(PIXELS[:30], LABELS[:30] % 3)
    params = model.init(jax.random.key(0))
    terms = log_density_terms(model, chunk_size=chunk_size)(params, rows)
    assert terms["likelihood"].shape == (30,)
    assert terms["prior"]["coefficients"].shape == params["coefficients"].shape
    total = float(hmc.compensated_sum(terms))
    assert total == pytest.approx(float(log_density_estimator(model, 30)(params, rows)), rel=1e-5)


def network_energies(dtype, ends, temperature: float) -> np.ndarray:
    """Delta H by terms, and as the difference of two energies, of each (position, momentum, position, momentum)."""
    rows = Rows(jnp.asarray(PIXELS, dtype), jnp.asarray(LABELS), jnp.ones(len(PIXELS), dtype))
    terms, density = log_density_terms(NETWORK), log_density_estimator(NETWORK, len(PIXELS))

    @jax.jit
    def changes(params, momentum, moved, moved_momentum):
        def energy(params, momentum):
            kinetic = sum(0.5 * jnp.sum(leaf**2) for leaf in momentum.values())
            return kinetic - density(params, rows) / temperature

        apart = hmc.energy_change(terms(params, rows), terms(moved, rows), momentum, moved_momentum, temperature)
        return apart, energy(moved, moved_momentum) - energy(params, momentum)

    return np.array([changes(*jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), end)) for end in ends], float)


NETWORK = bnn(MLP(widths=(128, 128)), input_shape=(64,), num_outputs=10)


def test_energies_in_single_precision_are_those_in_double() -> None:
    """26,000 parameters at temperature 0.001: differences of energies are wrong by what decides on acceptance."""
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0))

    def draw() -> dict[str, np.ndarray]:
        return {name: random.normal(size=leaf.shape).astype(np.float32) for name, leaf in shapes.items()}

    ends = []
    for _ in range(4):
        params, momentum = jax.tree.map(lambda leaf: np.float32(0.1) * leaf, draw()), draw()
        moved = jax.tree.map(lambda q, r: q + np.float32(1e-4) * r, params, momentum)
        ends.append((params, momentum, moved, jax.tree.map(lambda r: np.float32(0.99999) * r, momentum)))
    single = network_energies(jnp.float32, ends, 0.001)
    with jax.enable_x64(True):
        double = network_energies(jnp.float64, ends, 0.001)
    np.testing.assert_allclose(double[:, 0], double[:, 1], atol=1e-4)
    error = np.abs(single - double).max(axis=0)
    assert error[0] < 0.05
    assert error[1] > 20 * error[0]


def run(regression, **settings):
    settings = {"num_chains": NUM_CHAINS, "num_samples": 1, "num_warmup": 0, "progress": False, **settings}
    data = regression.x, regression.y
    return sample(regression.model, data, kernel="network_hmc", key=jax.random.key(3), **settings)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_the_law_of_a_gaussian_is_kept(regression, temperature: float) -> None:
    """From exact draws, three transitions of three steps so long that a fifth of them is rejected."""
    covariance = temperature * np.linalg.inv(regression.precision)
    starts = regression.mean + np.random.default_rng(0).multivariate_normal(np.zeros(3), covariance, NUM_CHAINS)
    step_size = 1.5 * np.sqrt(temperature / np.linalg.eigvalsh(regression.precision)[-1])
    posterior = run(
        regression, temperature=temperature, init_params={"b": starts}, step_size=step_size, thinning=3,
        trajectory_length=3 * step_size, trajectory_jitter=0.5,
    )  # fmt: skip
    assert 0.5 < posterior.sample_stats["acceptance_rate"].mean() < 0.95
    centred = posterior.draws["b"][:, -1].astype(float) - regression.mean
    variances = np.diag(covariance)
    errors = np.sqrt((np.outer(variances, variances) + covariance**2) / NUM_CHAINS)
    assert np.all(np.abs(centred.T @ centred / NUM_CHAINS - covariance) < 5 * errors)
    assert np.all(np.abs(centred.mean(axis=0)) < 5 * np.sqrt(variances / NUM_CHAINS))


def test_step_sizes_adapt_to_the_acceptance_rate(regression) -> None:
    covariance = np.linalg.inv(regression.precision)
    posterior = run(
        regression, num_chains=200, num_warmup=300, num_samples=40, trajectory_length=1.0,
        inverse_mass_matrix=np.diag(covariance),
    )  # fmt: skip
    assert 0.7 < posterior.sample_stats["acceptance_rate"].mean() < 0.95
    draws = posterior.draws["b"].astype(float)

    def law(draws: np.ndarray) -> float:
        return chain_moments(draws, regression.mean, covariance)

    assert law(draws) > FAILURE_RATE
    assert weakest_power(law, draws, regression.mean, np.sqrt(np.diag(covariance))) > POWER
    stats = posterior.sample_stats
    names = "lp acceptance_rate diverging energy energy_change n_steps step_size"
    assert set(stats) == set(names.split())
    # H = -lp + kinetic energy, which has the law of half a chi-squared variable of three degrees.
    assert chain_means((stats["energy"] + stats["lp"]).astype(float), 1.5) > FAILURE_RATE


def test_lengths_of_trajectories(regression) -> None:
    settings = {"num_chains": 20, "num_samples": 30, "step_size": 0.011}
    still = run(regression, trajectory_length=0.1, trajectory_jitter=0.0, **settings)
    np.testing.assert_array_equal(still.sample_stats["n_steps"], 10)
    moving = run(regression, trajectory_length=0.1, trajectory_jitter=0.5, **settings).sample_stats["n_steps"]
    assert set(np.unique(moving)) == set(range(5, 15))
    bounded = run(regression, trajectory_length=0.1, max_num_steps=3, thinning=4, **settings)
    np.testing.assert_array_equal(bounded.sample_stats["n_steps"], 12)


def test_divergences_stay_where_they_are(regression) -> None:
    with pytest.warns(UserWarning, match="divergent"):
        posterior = run(
            regression, num_chains=4, num_samples=5, step_size=3.0, trajectory_length=60.0,
            init_params={"b": regression.mean},
        )  # fmt: skip
    assert posterior.sample_stats["diverging"].all()
    np.testing.assert_allclose(posterior.draws["b"], np.broadcast_to(regression.mean, (4, 5, 3)), rtol=1e-6)


def test_networks_have_a_default_length() -> None:
    temperature = 0.25
    model = bnn(MLP(widths=(4,)), input_shape=(64,), num_outputs=10, prior_scale=0.3)
    posterior = sample(
        model, (PIXELS[:20], LABELS[:20]), kernel="network_hmc", num_chains=2, num_warmup=0, num_samples=2,
        temperature=temperature, step_size=0.1, key=jax.random.key(0), progress=False,
    )  # fmt: skip
    length = 0.5 * np.pi * 0.3 * np.sqrt(temperature)
    assert posterior.metadata["options"]["trajectory_length"] == pytest.approx(length, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "trajectory_length has a default.*for networks alone"),
        ({"trajectory_length": -1.0}, "trajectory_length must be a positive"),
        ({"trajectory_length": 1.0, "trajectory_jitter": 1.0}, "trajectory_jitter must be at least 0"),
        ({"trajectory_length": 1.0, "max_num_steps": 0}, "max_num_steps must be at least 1"),
        ({"trajectory_length": 1.0, "step_size": None}, "num_warmup=0 leaves kernel 'network_hmc'"),
        ({"trajectory_length": 1.0, "inverse_mass_matrix": np.eye(3)}, "takes a diagonal"),
        ({"trajectory_length": 1.0, "batch_size": 4}, "leave batch_size out"),
    ],
)
def test_what_does_not_fit_is_refused(regression, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        run(regression, **{"step_size": 0.1, **settings})
