"""Convolutions, by our routines, in Winograd's form and as one product, against the compiler's, in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pseudocoreset.models.layers import conv2d
from pseudocoreset.models.winograd import winograd
from tests.marks import slow_but

FILTERS = 5
# Height and width of the images, channels, size of the filters, padding, stride.
TILES = {"whole tiles": (8, 4, 3, 3, 1, 1), "cut tiles": (5, 7, 3, 3, 1, 1), "less than a tile": (2, 1, 3, 3, 1, 1)}
ROUTINES = {
    "a channel": (8, 6, 1, 3, 1, 1),
    "few channels, odd width": (6, 5, 3, 3, 1, 1),
    "channels of no vector": (5, 4, 18, 3, 1, 1),
    "channels of vectors": (16, 12, 16, 3, 1, 1),
    "channels of vectors, cut tiles": (13, 11, 32, 3, 1, 1),
    "channels of vectors, few tiles": (5, 7, 32, 3, 1, 1),
    "a pixel": (1, 1, 16, 3, 1, 1),
}
PRODUCTS = {
    "few channels": (8, 6, 1, 3, 1, 2),
    "few channels, odd width": (6, 5, 3, 3, 0, 1),
    "wide frame": (6, 5, 3, 3, 3, 1),
    "no frame": (9, 8, 3, 5, 0, 1),
    "many channels": (7, 8, 9, 5, 2, 1),
    "stride": (8, 8, 3, 3, 1, 2),
    "stride of the size": (9, 9, 3, 2, 0, 2),
    "stride beyond the size": (7, 7, 3, 1, 0, 2),
    "stride of three": (10, 11, 3, 5, 2, 3),
}


def direct(x, filters, bias, padding, stride):
    frame = [(padding, padding)] * 2
    numbers = ("NHWC", "HWIO", "NHWC")
    out = jax.lax.conv_general_dilated(x, filters, (stride, stride), frame, dimension_numbers=numbers)
    return out + bias


CASES = {"tiles": TILES, "routine": ROUTINES, "product": PRODUCTS}


@pytest.fixture(params=[(form, name) for form, cases in CASES.items() for name in cases], ids=": ".join)
def problem(request):
    """A convolution of images, filters and bias, in our form and directly; these arrays, and directions of change."""
    form, name = request.param
    height, width, channels, size, padding, stride = CASES[form][name]

    def ours(x, filters, bias):
        if form == "tiles":
            return winograd(x, filters, bias)
        return conv2d(x, filters, padding, stride, bias)

    def theirs(x, filters, bias):
        return direct(x, filters, bias, padding, stride)

    with jax.enable_x64():
        shapes = 2 * [(2, height, width, channels), (size, size, channels, FILTERS), (FILTERS,)]
        keys = jax.random.split(jax.random.key(0), len(shapes))
        arrays = [jax.random.normal(k, shape, jnp.float64) for k, shape in zip(keys, shapes, strict=True)]
        yield ours, theirs, arrays[:3], arrays[3:]


def gradient(convolve):
    return jax.grad(lambda *arrays: jnp.sum(jnp.sin(convolve(*arrays))), (0, 1, 2))


def test_value_and_derivatives_are_those_of_the_direct_sum(problem):
    """Value, gradient, and the change of the gradient in a direction: reverse mode, and forward and reverse over it."""
    ours, theirs, arrays, directions = problem

    def everything(convolve):
        of_gradient = jax.vjp(gradient(convolve), *arrays)[1]
        along = jax.jvp(gradient(convolve), tuple(arrays), tuple(directions))
        return convolve(*arrays), along, of_gradient(tuple(directions))

    found, wanted = jax.jit(lambda: everything(ours))(), jax.jit(lambda: everything(theirs))()
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


@pytest.mark.parametrize(
    "axes",
    slow_but([(1, None, None), (None, 3, None), (None, None, 1), (0, 0, 0)], (None, 3, None), (0, 0, 0)),
    ids=["images", "filters", "biases", "all"],
)
def test_stacks_are_mapped_over(axes, problem):
    """A stack anywhere in the shapes, of values and of gradients."""
    ours, theirs, arrays, _ = problem
    stacks = [a if axis is None else jnp.stack([a, 2 * a, a - 1], axis) for a, axis in zip(arrays, axes, strict=True)]

    def everything(convolve):
        return jax.jit(jax.vmap(lambda *a: (convolve(*a), gradient(convolve)(*a)), axes))(*stacks)

    for a, b in zip(jax.tree.leaves(everything(ours)), jax.tree.leaves(everything(theirs)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


def test_a_bias_need_not_be_given(problem):
    ours, theirs, (x, filters, _), _ = problem
    np.testing.assert_allclose(ours(x, filters, None), theirs(x, filters, 0.0), atol=1e-10)


def test_single_precision_is_near_enough():
    """A layer of the reference network: a relative error of a few 1e-6 of the largest output."""
    keys = jax.random.split(jax.random.key(1))
    x, filters = jax.random.normal(keys[0], (2, 16, 16, 128)), jax.random.normal(keys[1], (3, 3, 128, 128)) / 34
    wanted = direct(x, filters, 0.0, 1, 1)
    error = np.abs(conv2d(x, filters, 1) - wanted).max() / np.abs(wanted).max()
    assert error < 3e-5
    halved = conv2d(x.astype(jnp.bfloat16), filters.astype(jnp.bfloat16), 1)
    assert halved.dtype == jnp.bfloat16
    assert np.abs(halved - wanted).max() / np.abs(wanted).max() < 0.02
