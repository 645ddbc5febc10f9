"""Layers of the reference networks: convolution, normalisation, pooling, dense, with their initialisers.

Definitions follow the ConvNet family shared by the dataset-condensation and pseudocoreset papers: 3x3
convolutions with bias, affine normalisation with eps 1e-5, average pooling, and uniform initialisation of
weights *and* biases in +-1/sqrt(fan_in).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from pseudocoreset.batching import LEAST_CHANNELS, convolves_by_matmul, convolves_by_tiles
from pseudocoreset.models.winograd import winograd

__all__ = ["NORMS", "Conv", "Dense", "Norm", "average_pool", "conv2d", "max_pool", "uniform_fan_in"]

NORMS = ("instance", "group", "layer", "batch", "none")


def uniform_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """Initialiser U(-1/sqrt(fan_in), 1/sqrt(fan_in)), used for weights and biases alike."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _shifted(x: jax.Array, kernel: jax.Array, stride: int, axis: int) -> list[jax.Array]:
    """Padded images as each place of the kernel sees them; rows along ``axis`` and columns along the next."""
    height, width = kernel.shape[:2]
    stops = x.shape[axis] - height + 1, x.shape[axis + 1] - width + 1

    def shifted(row: int, column: int) -> jax.Array:
        places = slice(row, row + stops[0], stride), slice(column, column + stops[1], stride)
        return x[(slice(None),) * axis + places]

    return [shifted(row, column) for row in range(height) for column in range(width)]


def conv2d(x: jax.Array, kernel: jax.Array, padding: int, stride: int = 1) -> jax.Array:
    """Convolution with symmetric zero padding, fast inside loops and under ``vmap``.

    ``pseudocoreset.batching`` says in which form: Winograd's, as one product of unfolded images, or the compiler's.

    Args:
        x: images (n, height, width, channels).
        kernel: weights (kernel_height, kernel_width, channels, filters).
        padding: rows and columns of zeros added on every side.
        stride: distance of two places where the kernel is applied.

    Returns:
        Images (n, (height + 2 padding - kernel_height) // stride + 1, ..., filters).
    """
    height, width, channels, filters = kernel.shape
    is_tiled = (height, width, padding, stride) == (3, 3, 1, 1) and jnp.finfo(x.dtype).bits >= 32
    if is_tiled and convolves_by_tiles(x.shape[1], x.shape[2], channels, filters):
        return winograd(x, kernel)
    if not convolves_by_matmul():
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    weights = kernel.reshape(height * width * channels, filters)
    frame = (padding, padding)
    if channels >= LEAST_CHANNELS:
        padded = jnp.pad(x, ((0, 0), frame, frame, (0, 0)))
        return jnp.concatenate(_shifted(padded, kernel, stride, 1), axis=-1) @ weights
    # Pixels of few channels are gathered one number at a time; rows of one channel are gathered whole.
    planes = jnp.pad(x.transpose(3, 0, 1, 2), ((0, 0), (0, 0), frame, frame))
    patches = jnp.concatenate(_shifted(planes, kernel, stride, 2))
    out = jax.lax.dot_general(patches.reshape(len(patches), -1), weights, (((0,), (0,)), ((), ())))
    return out.reshape(*patches.shape[1:], filters)


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
        out = conv2d(x, kernel, self.padding, self.stride)
        return out + self.param("bias", init, (self.filters,)) if self.use_bias else out


class Dense(nn.Module):
    """Affine map with bias."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(n, inputs) -> (n, features)."""
        init = uniform_fan_in(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,))
        return x @ kernel + bias


def _standardise(x: jax.Array, axes: tuple[int, ...], epsilon: float = 1e-5) -> jax.Array:
    """(x - mean) / sqrt(var + eps) with both moments from one pass over x."""
    mean = jnp.mean(x, axes, keepdims=True)
    variance = jnp.maximum(jnp.mean(x * x, axes, keepdims=True) - mean * mean, 0.0)
    return (x - mean) * jax.lax.rsqrt(variance + epsilon)


class Norm(nn.Module):
    """Affine normalisation of images: ``"instance"``, ``"group"`` (4 groups), ``"layer"``, ``"batch"``, ``"none"``.

    ``"batch"`` always normalises by the statistics of the batch that it is given, so the network keeps no
    running state; a function value then depends on the other inputs of its batch.
    """

    kind: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(n, height, width, channels) -> same shape."""
        n, height, width, channels = x.shape
        if self.kind == "none":
            return x
        affine_shape: tuple[int, ...] = (channels,)
        if self.kind == "instance":
            x = _standardise(x, (1, 2))
        elif self.kind == "group":
            grouped = x.reshape(n, height, width, 4, channels // 4)
            x = _standardise(grouped, (1, 2, 4)).reshape(x.shape)
        elif self.kind == "layer":
            x = _standardise(x, (1, 2, 3))
            affine_shape = (height, width, channels)
        else:
            x = _standardise(x, (0, 1, 2))
        scale = self.param("scale", nn.initializers.ones, affine_shape)
        bias = self.param("bias", nn.initializers.zeros, affine_shape)
        return x * scale + bias


def average_pool(x: jax.Array) -> jax.Array:
    """Average over 2x2 windows with stride 2; an odd last row or column is dropped."""
    return _windows(x).mean(axis=(2, 4))


def max_pool(x: jax.Array) -> jax.Array:
    """Maximum over 2x2 windows with stride 2; an odd last row or column is dropped."""
    return _windows(x).max(axis=(2, 4))


def _windows(x: jax.Array) -> jax.Array:
    n, height, width, channels = x.shape
    rows, columns = height // 2, width // 2
    return x[:, : 2 * rows, : 2 * columns, :].reshape(n, rows, 2, columns, 2, channels)
