"""The larger networks: published sizes, and their functions written again with flax's own layers."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pseudocoreset.models import VGG11, AlexNet, LeNet, ResNet18, ResNet34, bnn
from pseudocoreset.models.layers import max_pool

IMAGES = jax.random.normal(jax.random.key(0), (3, 32, 32, 3))


def convolve(x, weights, padding, stride=1):
    y = jax.lax.conv_general_dilated(
        x, weights["kernel"], (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + weights.get("bias", 0.0)


def normalise(x, weights):
    norm = nn.GroupNorm(num_groups=None, group_size=1, epsilon=1e-5)
    return norm.apply({"params": {"scale": weights["scale"], "bias": weights["bias"]}}, x)


def pool(x):
    return nn.max_pool(x, (2, 2), (2, 2))


def dense(x, weights):
    return x @ weights["kernel"] + weights["bias"]


def lenet(p, x):
    for name in ("conv_0", "conv_1"):
        x = pool(nn.relu(convolve(x, p[name], 0)))
    x = x.reshape(len(x), -1)
    for name in ("hidden_0", "hidden_1"):
        x = nn.relu(dense(x, p[name]))
    return dense(x, p["head"])


def alexnet(p, x):
    x = pool(nn.relu(convolve(x, p["convs_0"], 2)))
    x = pool(nn.relu(convolve(x, p["convs_1"], 2)))
    for place in (2, 3, 4):
        x = nn.relu(convolve(x, p[f"convs_{place}"], 1))
    return dense(pool(x).reshape(len(x), -1), p["head"])


def vgg(p, x):
    place = 0
    for step in "CMCMCCMCCMCCM":
        if step == "M":
            x = pool(x)
        else:
            x = nn.relu(normalise(convolve(x, p[f"convs_{place}"], 1), p[f"norms_{place}"]))
            place += 1
    return dense(x.reshape(len(x), -1), p["head"])


def resnet(stages):
    def apply(p, x):
        x = nn.relu(normalise(convolve(x, p["conv"], 1), p["norm_0"]))
        block = 0
        for stage, count in enumerate(stages):
            for place in range(count):
                w = p[f"blocks_{block}"]
                stride = 2 if stage > 0 and place == 0 else 1
                y = nn.relu(normalise(convolve(x, w["conv_0"], 1, stride), w["norm_0"]))
                y = normalise(convolve(y, w["conv_1"], 1), w["norm_1"])
                if stride == 2:
                    x = normalise(convolve(x, w["shortcut"], 0, 2), w["shortcut_norm"])
                x = nn.relu(x + y)
                block += 1
        return dense(nn.avg_pool(x, (4, 4)).reshape(len(x), -1), p["head"])

    return apply


@pytest.mark.parametrize(
    ("network", "size"),
    [(LeNet, 62_006), (AlexNet, 1_872_202), (VGG11, 9_231_114), (ResNet18, 11_173_962), (ResNet34, 21_282_122)],
)
def test_sizes_on_cifar10(network, size):
    shapes = jax.eval_shape(network(num_outputs=10).init, jax.random.key(0), IMAGES)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == size


@pytest.mark.parametrize(
    ("network", "reference"),
    [
        (LeNet(num_outputs=7), lenet),
        pytest.param(AlexNet(num_outputs=7), alexnet, marks=pytest.mark.slow),
        pytest.param(VGG11(width=4, num_outputs=7), vgg, marks=pytest.mark.slow),
        pytest.param(ResNet18(width=4, num_outputs=7), resnet((2, 2, 2, 2)), marks=pytest.mark.slow),
    ],
    ids=["LeNet", "AlexNet", "VGG11", "ResNet18"],
)
def test_the_function_is_that_of_flaxs_layers(network, reference):
    variables = network.init(jax.random.key(1), IMAGES)
    # Scales and shifts of norms away from one and zero, so that leaving one out shows.
    params = jax.tree.map(lambda a: a + 0.1 * jnp.cos(jnp.arange(a.size)).reshape(a.shape), variables["params"])
    ours = jax.jit(network.apply)({"params": params}, IMAGES)
    np.testing.assert_allclose(ours, jax.jit(reference)(params, IMAGES), rtol=2e-3, atol=2e-3 * np.abs(ours).max())


def test_maximum_pooling_drops_an_odd_row():
    x = jax.random.normal(jax.random.key(4), (2, 7, 6, 3))
    np.testing.assert_array_equal(max_pool(x), pool(x))


def test_they_are_programs_with_features():
    model = bnn(LeNet(), input_shape=(28, 28, 1), num_outputs=10)
    params = model.init(jax.random.key(0))
    x = jnp.zeros((2, 28, 28, 1))
    assert model.apply(params, x).shape == (2, 10)
    assert model.features(params, x).shape == (2, 84)


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (LeNet(), (12, 12, 3), "LeNet needs sides of at least 16 pixels; got 12x12"),
        (VGG11(), (16, 16, 3), "VGG11 needs sides of at least 32 pixels; got 16x16"),
        (ResNet18(norm="spectral"), (32, 32, 3), "norm='spectral' is unknown"),
        (ResNet34(), (32,), "ResNet34 takes images"),
        (VGG11(norm="group", width=6), (32, 32, 3), "width=6 must be a multiple of 4"),
    ],
)
def test_what_does_not_fit_is_named(network, shape, message):
    with pytest.raises(ValueError, match=message):
        bnn(network, input_shape=shape, num_outputs=10)
