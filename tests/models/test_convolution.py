"""Convolution in Winograd's form against the compiler's, in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pseudocoreset.models.layers import conv2d
from pseudocoreset.models.winograd import winograd

CHANNELS, FILTERS = 3, 5


def direct(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )


@pytest.fixture(params=[(8, 4), (5, 7), (2, 1)], ids=["whole tiles", "cut tiles", "less than a tile"])
def problem(request):
    """Images, kernels, and directions to move them in."""
    with jax.enable_x64():
        keys = jax.random.split(jax.random.key(0), 4)
        shapes = 2 * [(2, *request.param, CHANNELS), (3, 3, CHANNELS, FILTERS)]
        yield [jax.random.normal(k, shape, jnp.float64) for k, shape in zip(keys, shapes, strict=True)]


def loss(convolve, x, kernel):
    return jnp.sum(jnp.sin(convolve(x, kernel)))


def test_value_and_derivatives_are_those_of_the_direct_sum(problem):
    """Value, gradient, and the change of the gradient in a direction: reverse mode, and forward over reverse."""
    x, kernel, *directions = problem

    def everything(convolve):
        gradient = jax.grad(lambda *a: loss(convolve, *a), (0, 1))
        return convolve(x, kernel), jax.jvp(gradient, (x, kernel), tuple(directions))

    ours, theirs = jax.jit(lambda: everything(winograd))(), jax.jit(lambda: everything(direct))()
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)


@pytest.mark.parametrize("axes", [(1, None), (None, 3), (0, 0)], ids=["images", "kernels", "both"])
def test_stacks_are_mapped_over(axes, problem):
    """A stack anywhere in the shapes, of values and of gradients."""
    arrays = [a if axis is None else jnp.stack([a, 2 * a, a - 1], axis) for a, axis in zip(problem, axes, strict=False)]
    gradient = jax.grad(lambda *a: loss(winograd, *a), (0, 1))
    wanted = jax.grad(lambda *a: loss(direct, *a), (0, 1))
    ours, theirs = jax.jit(jax.vmap(gradient, axes))(*arrays), jax.jit(jax.vmap(wanted, axes))(*arrays)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)


def test_single_precision_is_near_enough():
    """A layer of the reference network: a relative error of a few 1e-6 of the largest output."""
    keys = jax.random.split(jax.random.key(1))
    x, kernel = jax.random.normal(keys[0], (2, 16, 16, 128)), jax.random.normal(keys[1], (3, 3, 128, 128)) / 34
    wanted = direct(x, kernel)
    error = np.abs(conv2d(x, kernel, 1) - wanted).max() / np.abs(wanted).max()
    assert error < 3e-5
    halved = conv2d(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), 1)
    assert halved.dtype == jnp.bfloat16
    assert np.abs(halved - wanted).max() / np.abs(wanted).max() < 0.02
