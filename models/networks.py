"""Reference networks as flax modules; ``bnn`` turns them, or any other network, into NumPyro programs."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pseudocoreset.data.images import check_image_shape
from pseudocoreset.models.layers import NORMS, Conv, Dense, Norm

__all__ = ["MLP", "ConvNet", "Headed", "check_images", "pad_to_32"]


class Headed(nn.Module, kw_only=True):
    """A network whose last layer, ``head``, is applied to what ``features`` returns.

    Attributes:
        dtype: type of what lies between the layers and of the factors of their products, say ``"bfloat16"``; that of
            the inputs by default. Weights, their gradients, sums, the moments of norms and the last layer keep theirs.
    """

    dtype: Any = None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Inputs (n, ...) -> function values (n, num_outputs)."""
        if self.num_outputs is None:
            name = type(self).__name__
            raise ValueError(f"num_outputs is not set; give {name}(num_outputs=...) or let bnn(network, data) fill it")
        if self.dtype is None:
            return self.head(self.features(x))
        if not jnp.issubdtype(self.dtype, jnp.floating):
            raise ValueError(f"dtype must be a floating-point type, such as 'bfloat16'; got {self.dtype!r}")
        return self.head(self.features(x.astype(self.dtype)).astype(x.dtype))


def check_images(name: str, x: jax.Array, norm: str, least_side: int = 1, *widths: int) -> None:
    """Refuse what is no batch of images of at least ``least_side`` pixels, and norms that a network has not.

    Raises:
        ValueError: naming the argument.
    """
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r} is unknown; use one of {', '.join(map(repr, NORMS))}")
    if x.ndim != 4:
        remedy = "; for one channel give x[..., None]" if x.ndim == 3 else ""
        raise ValueError(f"{name} takes images (n, height, width, channels); got inputs of shape {x.shape}{remedy}")
    check_image_shape("x", x.shape[1:])
    if norm == "group" and any(width % 4 for width in widths):
        raise ValueError(f"width={widths[0]} must be a multiple of 4 for norm='group' (4 groups)")
    if min(x.shape[1:3]) < least_side:
        raise ValueError(f"{name} needs sides of at least {least_side} pixels; got {x.shape[1]}x{x.shape[2]}")


def pad_to_32(x: jax.Array) -> jax.Array:
    """Images of 28x28 pixels with a border of zeros, as the reference codes feed them; others as they are."""
    return jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))) if x.shape[1:3] == (28, 28) else x


class ConvNet(Headed):
    """The ConvNet of the condensation and pseudocoreset papers ("D3 W128": depth 3, width 128).

    ``depth`` blocks of [3x3 convolution with bias, norm, ReLU, 2x2 average pooling], then one dense layer.
    With 3 blocks of 128 filters, instance norm and 10 classes it has 320,010 parameters. Images of 28x28
    pixels are padded to 32x32 before the first convolution.

    Attributes:
        depth: number of blocks; an image side must be at least ``2 ** depth``.
        width: filters of every convolution.
        norm: one of ``"instance"``, ``"group"``, ``"layer"``, ``"batch"``, ``"none"`` (see ``Norm``).
        num_outputs: width of the last layer; ``bnn`` fills it in from the data when it is None.
        dtype: type that the layers compute in, say ``"bfloat16"``; weights, moments and function values keep theirs.
    """

    depth: int = 3
    width: int = 128
    norm: str = "instance"
    num_outputs: int | None = None

    def setup(self) -> None:
        """Layers under the names that their weights are saved with: ``conv_0``, ``norm_0``, ..., ``head``."""
        for block in range(self.depth):
            setattr(self, f"conv_{block}", Conv(self.width))
            setattr(self, f"norm_{block}", Norm(self.norm))
        if self.num_outputs is not None:
            self.head = Dense(self.num_outputs)

    def features(self, x: jax.Array) -> jax.Array:
        """Images (n, height, width, channels) -> what the last layer is applied to, (n, d)."""
        check_images("ConvNet", x, self.norm, 1, self.width)
        if min(x.shape[1:3]) < 2**self.depth:
            raise ValueError(
                f"depth={self.depth} halves the image {self.depth} times and needs sides of at least "
                f"{2**self.depth} pixels; got {x.shape[1]}x{x.shape[2]}"
            )
        x = pad_to_32(x)
        for block in range(self.depth):
            x = getattr(self, f"norm_{block}")(getattr(self, f"conv_{block}")(x), pooled=True)
        return x.reshape(x.shape[0], -1)


class MLP(Headed):
    """Fully connected network with ReLU between layers; inputs of any shape are flattened.

    Attributes:
        widths: widths of the hidden layers.
        num_outputs: width of the last layer; ``bnn`` fills it in from the data when it is None.
        dtype: type that the layers compute in, say ``"bfloat16"``; weights, moments and function values keep theirs.
    """

    widths: tuple[int, ...] = (128, 128)
    num_outputs: int | None = None

    def setup(self) -> None:
        """Layers under the names that their weights are saved with: ``hidden_0``, ..., ``head``."""
        self.hidden = [Dense(width) for width in self.widths]
        if self.num_outputs is not None:
            self.head = Dense(self.num_outputs)

    def features(self, x: jax.Array) -> jax.Array:
        """Inputs (n, ...) -> what the last layer is applied to, (n, d)."""
        x = x.reshape(x.shape[0], -1)
        for layer in self.hidden:
            x = jax.nn.relu(layer(x))
        return x
