"""Larger networks of the condensation papers, on which coresets are tried that were learned with a ConvNet.

All take images of 32x32 pixels, as the papers have them; 28x28 ones are padded, and where the network ends in a pooling
over what is left of the image, larger ones may come too. Norms are those of ``layers.Norm``.
"""

from __future__ import annotations

import flax.linen as nn
import jax

from pseudocoreset.models.layers import Conv, Dense, Norm, max_pool
from pseudocoreset.models.networks import Headed, check_images, pad_to_32

__all__ = ["VGG11", "AlexNet", "LeNet", "ResNet18", "ResNet34"]


class LeNet(Headed):
    """LeNet-5 with ReLU and maximum pooling: 62,006 parameters for three channels and 10 classes.

    Attributes:
        num_outputs: width of the last layer; ``bnn`` fills it in from the data when it is None.
        dtype: type that the layers compute in, say ``"bfloat16"``; weights, moments and function values keep theirs.
    """

    num_outputs: int | None = None

    def setup(self) -> None:
        """Layers under the names that their weights are saved with."""
        self.conv_0, self.conv_1 = Conv(6, 5, 0), Conv(16, 5, 0)
        self.hidden = [Dense(120), Dense(84)]
        if self.num_outputs is not None:
            self.head = Dense(self.num_outputs)

    def features(self, x: jax.Array) -> jax.Array:
        """Images (n, height, width, channels) -> what the last layer is applied to, (n, 84)."""
        check_images("LeNet", x, "none", 16)
        x = pad_to_32(x)
        for conv in (self.conv_0, self.conv_1):
            x = max_pool(jax.nn.relu(conv(x)))
        x = x.reshape(x.shape[0], -1)
        for layer in self.hidden:
            x = jax.nn.relu(layer(x))
        return x


class AlexNet(Headed):
    """The AlexNet of the condensation papers, for small images: 1,872,202 parameters on CIFAR-10.

    Attributes:
        num_outputs: width of the last layer; ``bnn`` fills it in from the data when it is None.
        dtype: type that the layers compute in, say ``"bfloat16"``; weights, moments and function values keep theirs.
    """

    num_outputs: int | None = None

    def setup(self) -> None:
        """Layers under the names that their weights are saved with: ``convs_0``, ..., ``head``."""
        self.convs = [Conv(128, 5, 2), Conv(192, 5, 2), Conv(256), Conv(192), Conv(192)]
        if self.num_outputs is not None:
            self.head = Dense(self.num_outputs)

    def features(self, x: jax.Array) -> jax.Array:
        """Images (n, height, width, channels) -> what the last layer is applied to, (n, d)."""
        check_images("AlexNet", x, "none", 8)
        x = pad_to_32(x)
        for place, conv in enumerate(self.convs):
            x = jax.nn.relu(conv(x))
            if place in (0, 1, 4):
                x = max_pool(x)
        return x.reshape(x.shape[0], -1)


class VGG11(Headed):
    """VGG with eleven layers for small images, the last of them dense: 9,231,114 parameters on CIFAR-10.

    Attributes:
        norm: one of ``"instance"``, ``"group"``, ``"layer"``, ``"batch"``, ``"none"``.
        width: filters of the first convolution; the others are 2, 4 and 8 times as wide.
        num_outputs: width of the last layer; ``bnn`` fills it in from the data when it is None.
        dtype: type that the layers compute in, say ``"bfloat16"``; weights, moments and function values keep theirs.
    """

    norm: str = "instance"
    width: int = 64
    num_outputs: int | None = None

    def setup(self) -> None:
        """Layers under the names that their weights are saved with: ``convs_0``, ``norms_0``, ..., ``head``."""
        times = (1, 2, 4, 4, 8, 8, 8, 8)
        self.convs = [Conv(self.width * t) for t in times]
        self.norms = [Norm(self.norm) for _ in times]
        if self.num_outputs is not None:
            self.head = Dense(self.num_outputs)

    def features(self, x: jax.Array) -> jax.Array:
        """Images (n, height, width, channels) -> what the last layer is applied to, (n, d)."""
        check_images("VGG11", x, self.norm, 32 if x.shape[1:3] != (28, 28) else 28, self.width)
        x = pad_to_32(x)
        for place, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = jax.nn.relu(norm(conv(x)))
            if place in (0, 1, 3, 5, 7):
                x = max_pool(x)
        return x.reshape(x.shape[0], -1)


class _Block(nn.Module):
    """Two 3x3 convolutions and a way around them."""

    filters: int
    stride: int
    norm: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        around = x
        if self.stride != 1 or x.shape[-1] != self.filters:
            shortcut = Conv(self.filters, 1, 0, self.stride, use_bias=False, name="shortcut")
            around = Norm(self.norm, name="shortcut_norm")(shortcut(x))
        x = Conv(self.filters, stride=self.stride, use_bias=False, name="conv_0")(x)
        x = jax.nn.relu(Norm(self.norm, name="norm_0")(x))
        x = Conv(self.filters, use_bias=False, name="conv_1")(x)
        return jax.nn.relu(Norm(self.norm, name="norm_1")(x) + around)


class ResNet18(Headed):
    """ResNet-18 in the form for small images: 11,173,962 parameters on CIFAR-10.

    There is no pooling at its start, and the mean over the image at its end.

    Attributes:
        norm: one of ``"instance"``, ``"group"``, ``"layer"``, ``"batch"``, ``"none"``.
        width: filters at the start, 2, 4 and 8 times as many later.
        num_outputs: width of the last layer; ``bnn`` fills it in from the data when it is None.
        dtype: type that the layers compute in, say ``"bfloat16"``; weights, moments and function values keep theirs.
        blocks_per_stage: residual blocks of each width.
    """

    norm: str = "instance"
    width: int = 64
    num_outputs: int | None = None
    blocks_per_stage: tuple[int, ...] = (2, 2, 2, 2)

    def setup(self) -> None:
        """Layers under the names that their weights are saved with: ``conv``, ``norm_0``, ``blocks_0``, ..."""
        self.conv, self.norm_0 = Conv(self.width, use_bias=False), Norm(self.norm)
        self.blocks = [
            _Block(self.width * 2**stage, 2 if stage and not place else 1, self.norm)
            for stage, count in enumerate(self.blocks_per_stage)
            for place in range(count)
        ]
        if self.num_outputs is not None:
            self.head = Dense(self.num_outputs)

    def features(self, x: jax.Array) -> jax.Array:
        """Images (n, height, width, channels) -> what the last layer is applied to, (n, 8 * width)."""
        check_images(type(self).__name__, x, self.norm, 9, self.width)
        x = jax.nn.relu(self.norm_0(self.conv(pad_to_32(x))))
        for block in self.blocks:
            x = block(x)
        return x.mean((1, 2))


class ResNet34(ResNet18):
    """ResNet-34 in the form for small images: 21,282,122 parameters on CIFAR-10; see ``ResNet18``."""

    blocks_per_stage: tuple[int, ...] = (3, 4, 6, 3)
