"""Layers of the reference networks: convolution, normalisation, pooling, dense, with their initialisers.

Definitions follow the ConvNet family shared by the dataset-condensation and pseudocoreset papers: 3x3
convolutions with bias, affine normalisation with eps 1e-5, average pooling, and uniform initialisation of
weights *and* biases in +-1/sqrt(fan_in).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from pseudocoreset.compute.backends import convolution_form, written_out
from pseudocoreset.kernels import correlate
from pseudocoreset.models.image_maps import ImageMap
from pseudocoreset.models.winograd import winograd

__all__ = ["NORMS", "Conv", "Dense", "Norm", "average_pool", "conv2d", "max_pool", "uniform_fan_in"]

NORMS = ("instance", "group", "layer", "batch", "none")


def _like(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Weights in the type of half-precision inputs, where the products are to be in that; else as they are."""
    return weights if jnp.finfo(x.dtype).bits >= 32 else weights.astype(x.dtype)


def uniform_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """Initialiser U(-1/sqrt(fan_in), 1/sqrt(fan_in)), used for weights and biases alike."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        # The same numbers flat: the compiler of a CPU unrolls the generator over a short last axis, thousands of lines.
        return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)

    return init


def _unfolded(x: jax.Array, filters: jax.Array, bias: jax.Array | None, stride: int) -> jax.Array:
    """Convolution of padded images as one product, with a matrix whose rows are what the filters see at each place.

    A bias is one more row of the filters, for a column of ones: no pass over the images, forward or back.
    """
    height, width, _, num_filters = filters.shape
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    # Columns first, so that the larger second step copies longer pieces (``benchmarks/results/batching.json``).
    beside = jnp.concatenate([x[:, :, column : column + columns : stride] for column in range(width)], axis=-1)
    seen = [beside[:, row : row + rows : stride] for row in range(height)]
    matrix = filters.reshape(-1, num_filters)
    if bias is not None:
        seen.append(jnp.ones((*seen[0].shape[:3], 1), x.dtype))
        matrix = jnp.concatenate([matrix, bias[None]])
    patches = jnp.concatenate(seen, axis=-1)
    # Not over more axes: the product of the backward pass is slower then.
    out = patches.reshape(-1, patches.shape[-1]) @ matrix
    return out.reshape(*patches.shape[:3], num_filters)


def conv2d(x: jax.Array, filters: jax.Array, padding: int, stride: int = 1, bias: jax.Array | None = None) -> jax.Array:
    """Convolution with symmetric zero padding, fast inside loops and under ``vmap``.

    ``batching.convolution_form`` says in which form: our own machine code, Winograd's form, one product of unfolded
    images, or the compiler's.

    Args:
        x: images (n, height, width, channels).
        filters: (filter_height, filter_width, channels, num_filters).
        padding: rows and columns of zeros added on every side.
        stride: distance of two places where the filters are applied.
        bias: (num_filters,), added at every place.

    Returns:
        Images (n, (height + 2 padding - filter_height) // stride + 1, ..., num_filters).
    """
    form = convolution_form(x, filters, padding, stride)
    if form == "routine":
        return correlate(x, filters, bias)
    if form == "winograd":
        return winograd(x, filters, bias)
    if form == "product":
        x = jnp.pad(written_out(x), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        return _unfolded(x, filters, bias, stride)
    out = jax.lax.conv_general_dilated(
        x, filters, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return out if bias is None else out + bias


class Conv(nn.Module):
    """Square convolution, with bias unless told."""

    filters: int
    size: int = 3
    padding: int = 1
    stride: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(n, height, width, channels) -> (n, height', width', filters)."""
        channels = x.shape[-1]
        init = uniform_fan_in(self.size * self.size * channels)
        kernel = self.param("kernel", init, (self.size, self.size, channels, self.filters))
        bias = _like(x, self.param("bias", init, (self.filters,))) if self.use_bias else None
        return conv2d(x, _like(x, kernel), self.padding, self.stride, bias)


class Dense(nn.Module):
    """Affine map with bias."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(n, inputs) -> (n, features)."""
        init = uniform_fan_in(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,))
        return x @ _like(x, kernel) + _like(x, bias)


def _moments(x: jax.Array, axes: tuple[int, ...], epsilon: float = 1e-5) -> tuple[jax.Array, jax.Array]:
    """The mean and 1 / sqrt(var + eps), from one pass over x."""
    mean = jnp.mean(x, axes, keepdims=True)
    variance = jnp.maximum(jnp.mean(x * x, axes, keepdims=True) - mean * mean, 0.0)
    return mean, jax.lax.rsqrt(variance + epsilon)


class Norm(nn.Module):
    """Affine normalisation of images: ``"instance"``, ``"group"`` (4 groups), ``"layer"``, ``"batch"``, ``"none"``.

    ``"batch"`` always normalises by the statistics of the batch that it is given, so the network keeps no
    running state; a function value then depends on the other inputs of its batch. Held-out data come in
    batches of 256 at most.
    """

    kind: str

    @nn.compact
    def __call__(self, x: jax.Array, *, pooled: bool = False) -> jax.Array:
        """(n, height, width, channels) -> same shape; if ``pooled``, what ReLU and ``average_pool`` make of it."""
        _, height, width, channels = x.shape
        if self.kind == "none":
            return average_pool(jax.nn.relu(x)) if pooled else x
        scale_shape: tuple[int, ...] = (height, width, channels) if self.kind == "layer" else (channels,)
        scale = self.param("scale", nn.initializers.ones, scale_shape)
        bias = self.param("bias", nn.initializers.zeros, scale_shape)
        # Differences of moments need more digits than half precision has.
        given, x = x.dtype, x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.kind == "layer":
            mean, multiple = _moments(x, (1, 2, 3))
            x = (x * multiple - mean * multiple) * scale + bias
            return (average_pool(jax.nn.relu(x)) if pooled else x).astype(given)
        if self.kind == "group":
            groups = _moments(x.reshape(*x.shape[:3], 4, channels // 4), (1, 2, 4))
            mean, multiple = (jnp.repeat(a[..., 0], channels // 4, axis=-1) for a in groups)
        else:
            mean, multiple = _moments(x, {"instance": (1, 2), "batch": (0, 1, 2)}[self.kind])
        # Folded into numbers of each image and channel, the scale costs no passes over the images.
        multiple = multiple * scale
        shift = bias - mean * multiple
        return (_relu_pooled(x, multiple, shift) if pooled else x * multiple + shift).astype(given)


def average_pool(x: jax.Array) -> jax.Array:
    """Average over 2x2 windows with stride 2; an odd last row or column is dropped."""
    return _window_sums(x) / 4


def _relu_pooled(x: jax.Array, multiple: jax.Array, shift: jax.Array) -> jax.Array:
    """``average_pool(relu(x * multiple + shift))`` for numbers of each image and channel.

    Written so that ``multiple`` and ``shift`` meet sums over windows and not pixels, their gradients are sums over a
    quarter as many numbers, and no gradient of the pixels need be kept for them (``benchmarks/results/batching.json``).
    """
    is_on = x * multiple + shift > 0
    total, count = _window_sums(jnp.where(is_on, x, 0)), _window_sums(is_on.astype(x.dtype))
    return (total * multiple + count * shift) / 4


def _window_sums(x: jax.Array) -> jax.Array:
    return ImageMap(_sum_windows, _spread_over_windows, (x.shape[1], x.shape[2]))(x)


def _sum_windows(shape: tuple[int, int], x: jax.Array) -> jax.Array:
    del shape
    return functools.reduce(jnp.add, _corners(x))


def _spread_over_windows(shape: tuple[int, int], sums: jax.Array) -> jax.Array:
    n, rows, columns, channels = sums.shape
    x = jnp.broadcast_to(sums[:, :, None, :, None], (n, rows, 2, columns, 2, channels))
    x = x.reshape(n, 2 * rows, 2 * columns, channels)
    return jnp.pad(x, ((0, 0), (0, shape[0] - 2 * rows), (0, shape[1] - 2 * columns), (0, 0)))


def max_pool(x: jax.Array) -> jax.Array:
    """Maximum over 2x2 windows with stride 2; an odd last row or column is dropped."""
    return functools.reduce(jnp.maximum, _corners(x))


def _corners(x: jax.Array) -> list[jax.Array]:
    """The four pixels of 2x2 windows.

    On CPU sums of slices are vectorised, reductions over windows are not (``benchmarks/results/batching.json``).
    """
    height, width = (size - size % 2 for size in x.shape[1:3])
    return [x[:, row:height:2, column:width:2] for row in range(2) for column in range(2)]
