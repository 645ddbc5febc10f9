"""Batches that pass through a network a few data at a time give what they give in one piece."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pseudocoreset.compute import chunks
from pseudocoreset.compute.devices import Devices
from pseudocoreset.compute.limits import limited
from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.models import MLP, ConvNet, bnn
from pseudocoreset.objectives import Rows, function_kl
from pseudocoreset.proxies import Trajectory, mean_loss_and_gradient

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(17, 8, 8, 1)).astype(np.float32)
LABELS = (np.arange(17) % 3).astype(np.int32)
WEIGHTS = RNG.uniform(0.5, 2.0, 17).astype(np.float32)


@pytest.fixture
def three_at_once():
    """Chunks of three data, whatever the model."""
    with limited(rows=3):
        yield


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_loss_and_gradient_are_those_of_the_whole_batch(three_at_once, norm):
    model = bnn(ConvNet(depth=1, width=4, norm=norm), input_shape=(8, 8, 1), num_outputs=3)
    params = model.init(jax.random.key(0))

    def whole(p):
        return -jnp.sum(WEIGHTS * model.log_likelihood(p, IMAGES, LABELS)) / WEIGHTS.sum()

    loss, gradient = jax.jit(lambda p: mean_loss_and_gradient(model, p, Rows(IMAGES, LABELS, WEIGHTS)))(params)
    expected, slope = jax.jit(jax.value_and_grad(whole))(params)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for name in params:
        np.testing.assert_allclose(gradient[name], slope[name], rtol=1e-4, atol=1e-6)
    assert model.is_separable == (norm == "instance")


def test_results_come_back_in_order_and_without_what_fills_up(three_at_once):
    devices = Devices().for_rows_of(bnn(MLP((4,)), input_shape=(8, 8, 1), num_outputs=3))
    seen = []

    def fn(rows):
        seen.append(len(rows.weights))
        return jnp.sum(rows.weights * rows.inputs), 2 * rows.inputs

    total, doubled = devices.sum_rows(fn, Rows(jnp.arange(17.0), None, jnp.asarray(WEIGHTS)), has_aux=True)
    np.testing.assert_allclose(total, np.sum(WEIGHTS * np.arange(17.0)), rtol=1e-5)
    np.testing.assert_array_equal(doubled, 2 * np.arange(17.0))
    assert max(seen) <= 3


@pytest.mark.parametrize("proxy", [Trajectory(3, 1e-2, 1e-2, 10), "linearized"])
def test_function_kl_is_the_same_in_chunks_and_in_one_piece(three_at_once, proxy):
    model = bnn(MLP((4,)), input_shape=(5,), num_outputs=3)
    x = jnp.asarray(RNG.normal(size=(17, 5)), jnp.float32)
    points = Rows(x[:11], jnp.asarray(LABELS[:11]), jnp.asarray(WEIGHTS[:11]))
    snapshot = model.init(jax.random.key(0))
    results = []
    for one in (model, replace(model, is_separable=False)):
        objective = function_kl(
            one, proxy=proxy, num_draws=3, inner_max_steps=4, free=("inputs", "weights"), coreset_batch_size=10
        )
        gradient = jax.jit(objective.gradient)
        leaves, _, info = gradient(jax.random.key(1), (), points, DeviceData(x, jnp.asarray(LABELS)), (snapshot,))
        results.append((leaves, info))
    (some, some_info), (whole, whole_info) = results
    for name in ("inputs", "weights"):
        assert np.linalg.norm(whole[name]) > 0
        np.testing.assert_allclose(some[name], whole[name], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(some_info["data_loss"], whole_info["data_loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("n", "most", "expected"), [(10, 5, 2), (10, 4, 3), (256, 5, 52), (256, 7, 37), (100, 9, 13), (7, 7, 1), (13, 4, 4)]
)
def test_chunks_are_few_and_full(n, most, expected):
    assert chunks.even_size(n, most) == math.ceil(n / expected)


def test_a_function_of_chunks_is_traced_once():
    """Tracing the gradient of a deep network takes seconds."""
    traced = []

    def fn(x, is_new):
        traced.append(x.shape)
        return jnp.sum(jnp.where(is_new, x, 0)), x

    total, same = jax.jit(lambda x: chunks.in_chunks(fn, x, 3))(jnp.arange(8.0))
    assert traced == [(3,)]
    assert total == 28
    np.testing.assert_array_equal(same, np.arange(8))
