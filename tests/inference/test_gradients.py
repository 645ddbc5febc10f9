"""Log-density and gradient estimates from minibatches of weighted data."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pseudocoreset.compute.limits import limited
from pseudocoreset.data import Dataset
from pseudocoreset.inference import Rows, draw_minibatch, gradient_estimator, log_density_estimator, sample
from pseudocoreset.models import MLP, ConvNet, bnn

PARAMS = {"b": jnp.array([0.3, -0.2, 1.1])}


@pytest.fixture
def one_byte():
    """Activations of a chunk may take next to nothing."""
    with limited(activation_bytes=1):
        yield


def rows_of(regression, num_rows: int, weights: np.ndarray | None = None) -> Rows:
    weights = np.ones(num_rows) if weights is None else weights
    return Rows(*map(jnp.asarray, (regression.x[:num_rows], regression.y[:num_rows], weights)))


def full_gradient(regression, rows: Rows) -> np.ndarray:
    """Of the log posterior of the linear regression, by NumPy in double precision."""
    x, y, w, b = (np.asarray(a, float) for a in (*rows, PARAMS["b"]))
    return x.T @ (w * (y - x @ b)) / 0.5**2 - b / 2.0**2


def test_mean_over_all_minibatches_is_the_full_gradient(regression) -> None:
    weights = np.linspace(0.0, 3.0, 8)
    rows = rows_of(regression, 8, weights)
    estimate = jax.jit(gradient_estimator(regression.model, 8))
    gradients = [
        estimate(PARAMS, Rows(*(leaf[np.array(chosen)] for leaf in rows)))["b"]
        for chosen in itertools.combinations(range(8), 3)
    ]
    np.testing.assert_allclose(np.mean(gradients, axis=0), full_gradient(regression, rows), rtol=2e-5)
    np.testing.assert_allclose(estimate(PARAMS, rows)["b"], full_gradient(regression, rows), rtol=2e-5)


@pytest.mark.parametrize(("num_rows", "batch_size"), [(8, 3), (40, 2)], ids=["distinct", "replaced"])
def test_drawn_minibatches_are_unbiased(regression, num_rows: int, batch_size: int) -> None:
    rows = rows_of(regression, num_rows, np.linspace(0.5, 2.0, num_rows))
    estimate = gradient_estimator(regression.model, num_rows)

    def one(key):
        return estimate(PARAMS, draw_minibatch(key, rows, batch_size))["b"]

    gradients = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 20_000)), float)
    error = gradients.std(axis=0) / np.sqrt(len(gradients))
    assert np.all(np.abs(gradients.mean(axis=0) - full_gradient(regression, rows)) < 5 * error)


def test_small_data_are_drawn_without_replacement(regression) -> None:
    rows = rows_of(regression, 40)._replace(targets=jnp.arange(40.0))
    for seed in range(20):
        drawn = np.asarray(draw_minibatch(jax.random.key(seed), rows, 30).targets)
        assert len(np.unique(drawn)) == 30


@pytest.mark.parametrize("chunk_size", [1, 7, 10, 100])
def test_chunks_change_nothing(regression, chunk_size: int) -> None:
    rows = rows_of(regression, 40, np.linspace(0.0, 2.0, 40))
    whole = log_density_estimator(regression.model, 40)
    chunked = log_density_estimator(regression.model, 40, chunk_size=chunk_size)
    np.testing.assert_allclose(chunked(PARAMS, rows), whole(PARAMS, rows), rtol=1e-5)
    gradient = gradient_estimator(regression.model, 40, chunk_size=chunk_size)(PARAMS, rows)["b"]
    np.testing.assert_allclose(gradient, full_gradient(regression, rows), rtol=1e-4)


def test_weight_two_is_a_datum_twice_and_weight_zero_none(regression) -> None:
    weighted = rows_of(regression, 4, np.array([2.0, 1.0, 0.0, 1.0]))
    repeated = Rows(*(leaf[np.array([0, 0, 1, 3])] for leaf in rows_of(regression, 4)))
    density = log_density_estimator(regression.model, 4)
    np.testing.assert_allclose(density(PARAMS, weighted), density(PARAMS, repeated), rtol=1e-6)


def test_weight_zero_hides_an_impossible_datum(regression) -> None:
    rows = rows_of(regression, 4, np.array([1.0, 1.0, 1.0, 0.0]))
    impossible = rows._replace(targets=rows.targets.at[3].set(jnp.inf))
    density = log_density_estimator(regression.model, 4)
    np.testing.assert_allclose(density(PARAMS, impossible), density(PARAMS, rows), rtol=1e-6)


def test_bytes_are_preprocessed_on_the_fly() -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, size=(12, 4, 4, 1), dtype=np.uint8)
    data = Dataset.from_arrays(images, np.arange(12) % 3, normalize=True)
    model = bnn(MLP(widths=()), data)
    params = model.init(jax.random.key(0))
    targets, weights = jnp.asarray(data.train.y), jnp.ones(12)
    raw = Rows(jnp.asarray(images), targets, weights)
    preprocessed = Rows(jnp.asarray(data.train.x), targets, weights)
    on_the_fly = log_density_estimator(model, 12, preprocessing=data.train.preprocessing, chunk_size=5)
    whole = log_density_estimator(model, 12)(params, preprocessed)
    np.testing.assert_allclose(jax.jit(on_the_fly)(params, raw), whole, rtol=1e-5)


def test_rows_that_depend_on_one_another_are_not_evaluated_in_chunks(one_byte):
    x = np.random.default_rng(0).normal(size=(40, 4, 4, 1)).astype(np.float32)
    model = bnn(ConvNet(depth=1, width=3, norm="batch"), input_shape=(4, 4, 1), num_outputs=2)
    common = {"kernel": "hmc", "num_chains": 1, "num_warmup": 0, "num_samples": 2, "step_size": 0.01, "keep": "weights"}
    draws = [
        sample(model, (x, np.arange(40) % 2), key=jax.random.key(0), progress=False, chunk_size=size, **common)
        for size in (None, 40, 8)
    ]
    for name, array in draws[1].unconstrained.items():
        np.testing.assert_array_equal(draws[0].unconstrained[name], array)
    assert any(np.any(draws[2].unconstrained[name] != array) for name, array in draws[1].unconstrained.items())


def test_held_out_rows_that_depend_on_one_another_come_in_batches_of_256(one_byte):
    x = np.random.default_rng(0).normal(size=(512, 4, 4, 1)).astype(np.float32)
    y = np.arange(512) % 2
    model = bnn(ConvNet(depth=1, width=3, norm="batch"), input_shape=(4, 4, 1), num_outputs=2)
    common = {"kernel": "hmc", "num_chains": 1, "num_warmup": 0, "num_samples": 1, "step_size": 0.01}
    posterior = sample(
        model, (x[:40], y[:40]), key=jax.random.key(0), progress=False, predict_on=(x, y), keep="weights", **common
    )
    weights = {name: jnp.asarray(array[0, 0]) for name, array in posterior.unconstrained.items()}
    wanted = np.concatenate([model.apply(weights, x[i : i + 256]) for i in (0, 256)])
    np.testing.assert_allclose(posterior.function_values[0, 0], wanted, atol=1e-5)
    np.testing.assert_allclose(posterior.evaluate((x, y)).function_values[0, 0], wanted, atol=1e-5)
