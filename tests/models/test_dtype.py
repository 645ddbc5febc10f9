"""Networks that compute in half precision."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pseudocoreset.models import MLP, ConvNet, LeNet, ResNet18, bnn
from pseudocoreset.models.layers import Norm
from tests.marks import slow_but

SHAPE = (32, 32, 3)
X = jax.random.normal(jax.random.key(0), (6, *SHAPE))
Y = jnp.arange(6)
NETWORKS = {
    "ConvNet": ConvNet(width=8),
    "ConvNet, batch": ConvNet(width=8, norm="batch"),
    "ConvNet, layer": ConvNet(width=8, norm="layer"),
    "ConvNet, group": ConvNet(width=8, norm="group"),
    "MLP": MLP(),
    "LeNet": LeNet(),
    "ResNet18": ResNet18(width=8, norm="group", blocks_per_stage=(1, 1)),
}


def in_both(network):
    return (bnn(n, input_shape=SHAPE, num_outputs=10) for n in (network, network.clone(dtype="bfloat16")))


def products(fn, *arguments):
    """The types of the factors of every product."""
    found = []

    def look(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                found.append({str(v.aval.dtype) for v in equation.invars})
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                look(inner)

    look(jax.make_jaxpr(fn)(*arguments).jaxpr)
    return found


@pytest.mark.parametrize("name", slow_but(NETWORKS, "ConvNet", "MLP", "ResNet18"))
def test_function_values_are_near_those_in_single_precision(name):
    """Eight bits are 0.4 % of each number; some of that adds up over the layers."""
    single, half = in_both(NETWORKS[name])
    params = single.init(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, params, half.init(jax.random.key(1)))
    expected, found = single.apply(params, X), half.apply(params, X)
    assert found.dtype == jnp.float32
    error = jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)
    assert 1e-4 < error < 0.03
    features = half.features(params, X)
    assert features.dtype == jnp.float32


@pytest.mark.parametrize("name", ["ConvNet", "MLP"])
def test_gradients_are_in_single_precision_and_near(name):
    single, half = in_both(NETWORKS[name])
    params = single.init(jax.random.key(1))
    expected, found = (
        jax.jit(jax.grad(lambda p, x, m=model: m.log_likelihood(p, x, Y).sum(), (0, 1)))(params, X)
        for model in (single, half)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    norm = np.sqrt(sum(jnp.sum(a**2) for a in jax.tree.leaves(expected)))
    error = np.sqrt(sum(jnp.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, (expected, found)), strict=True)))
    assert error < 0.1 * norm


def test_all_products_but_the_last_take_half_precision():
    _, half = in_both(ConvNet(depth=3, width=8))
    params = half.init(jax.random.key(1))
    assert products(half.apply, params, X) == 3 * [{"bfloat16"}] + [{"float32"}]


def test_moments_keep_their_digits():
    """Of numbers far from zero, whose squares in half precision differ by more than their variance."""
    x = (10.0 + jax.random.normal(jax.random.key(2), (2, 16, 16, 4))).astype(jnp.bfloat16)
    norm = Norm("instance")
    found = norm.apply(norm.init(jax.random.key(0), x), x)
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean((1, 2), keepdims=True)) / np.sqrt(exact.var((1, 2), keepdims=True) + 1e-5)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, atol=0.02)


def test_a_network_of_someone_else_may_return_half_precision():
    class Small(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x.reshape(x.shape[0], -1)
            return nn.Dense(3, dtype=jnp.bfloat16)(nn.relu(nn.Dense(8, dtype=jnp.bfloat16)(x)))

    model = bnn(Small(), input_shape=SHAPE, num_outputs=3)
    params = model.init(jax.random.key(0))
    assert model.apply(params, X).dtype == jnp.float32
    assert model.log_likelihood(params, X, Y % 3).dtype == jnp.float32


def test_a_type_that_is_no_floating_point_type_is_refused():
    with pytest.raises(ValueError, match=r"dtype must be a floating-point type.*int8"):
        bnn(ConvNet(width=8, dtype="int8"), input_shape=SHAPE, num_outputs=10)


def test_it_is_given_by_name_alone():
    """Other arguments keep their places."""
    network = ConvNet(2, 16)
    assert (network.depth, network.width, network.dtype) == (2, 16, None)
