"""A ConvNet at some size, and the same in plain eager PyTorch, as the published codes of the field are written."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import torch
from jax.sharding import Mesh

from pseudocoreset.models import ConvNet, bnn

CLASSES = 10
LEAST_SHARED = 32  # pixels a side


def all_devices(axis: str) -> Mesh | None:
    """A mesh of all devices; None for one."""
    return jax.make_mesh((jax.device_count(),), (axis,)) if jax.device_count() > 1 else None


@dataclass(frozen=True)
class Case:
    """A ConvNet at some size, and how much of it a repetition does."""

    side: int
    channels: int
    depth: int
    width: int
    batch: int
    networks: int = 1
    steps: int = 2
    precision: str = "float32"

    def mesh(self) -> Mesh | None:
        """Devices that share the networks, or the data of one where they are large enough to be worth an exchange."""
        if self.networks > 1:
            return all_devices("devices")
        return all_devices("data") if self.side >= LEAST_SHARED else None

    @property
    def name(self) -> str:
        networks = f", {self.networks} networks" if self.networks > 1 else ""
        precision = f", {self.precision}" if self.precision != "float32" else ""
        return f"ConvNet {self.depth}x{self.width}, {self.side}x{self.side}, batch {self.batch}{networks}{precision}"

    def arithmetic(self) -> Any:
        """A context in which products have the precision of this case."""
        return jax.default_matmul_precision("tensorfloat32" if self.precision == "tensorfloat32" else "highest")

    @property
    def operations(self) -> float:
        """Of one step of one network."""
        total, side, channels = 0.0, self.side, self.channels
        for layer in range(self.depth):
            forward = 2.0 * self.batch * side**2 * 9 * channels * self.width
            total += forward * (3 if layer else 2)
            side, channels = side // 2, self.width
        return total + 6.0 * self.batch * side**2 * channels * CLASSES

    def model(self) -> Any:
        dtype = "bfloat16" if self.precision == "bfloat16" else None
        network = ConvNet(depth=self.depth, width=self.width, dtype=dtype)
        return bnn(network, input_shape=(self.side, self.side, self.channels), num_outputs=CLASSES)


def torch_parameters(case: Case) -> list[torch.Tensor]:
    """Convolution kernels and biases, scales and shifts, and the last layer."""
    parameters, channels = [], case.channels
    for _ in range(case.depth):
        bound = (9 * channels) ** -0.5
        parameters += [
            torch.empty(case.width, channels, 3, 3).uniform_(-bound, bound),
            torch.empty(case.width).uniform_(-bound, bound),
            torch.ones(case.width),
            torch.zeros(case.width),
        ]
        channels = case.width
    features = case.width * (case.side // 2**case.depth) ** 2
    bound = features**-0.5
    parameters += [torch.empty(CLASSES, features).uniform_(-bound, bound), torch.zeros(CLASSES)]
    return [p.requires_grad_() for p in parameters]


def torch_apply(parameters: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The reference network: convolution, instance norm as group norm, ReLU, average pooling; then one dense layer."""
    for i in range(0, len(parameters) - 2, 4):
        kernel, bias, scale, shift = parameters[i : i + 4]
        x = torch.nn.functional.conv2d(x, kernel, bias, padding=1)
        x = torch.nn.functional.group_norm(x, len(scale), scale, shift)
        x = torch.nn.functional.avg_pool2d(torch.relu(x), 2)
    return torch.nn.functional.linear(x.flatten(1), *parameters[-2:])


def torch_gradient(parameters: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    loss = torch.nn.functional.cross_entropy(torch_apply(parameters, x), y)
    return torch.autograd.grad(loss, parameters)


def torch_descend(parameters: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor, rate: float) -> None:
    gradient = torch_gradient(parameters, x, y)
    with torch.no_grad():
        for p, g in zip(parameters, gradient, strict=True):
            p -= rate * g


def images(case: Case, size: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(size, case.side, case.side, case.channels)).astype(np.float32)
    return x, np.arange(size, dtype=np.int32) % CLASSES


def torch_images(x: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    # On the default device of PyTorch.
    return torch.tensor(x.transpose(0, 3, 1, 2).copy()), torch.tensor(y.astype(np.int64))
