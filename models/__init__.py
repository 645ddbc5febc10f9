"""NumPyro programs: Bayesian neural networks, regressions, and ``Model``, what is derived from a program."""

from pseudocoreset.models.architectures import VGG11, AlexNet, LeNet, ResNet18, ResNet34
from pseudocoreset.models.bnn import bnn
from pseudocoreset.models.gaussian import Gaussian
from pseudocoreset.models.model import Model, Params
from pseudocoreset.models.networks import MLP, ConvNet
from pseudocoreset.models.regression import (
    gaussian_location,
    linear_regression,
    logistic_regression,
    poisson_regression,
)

__all__ = [
    "MLP",
    "VGG11",
    "AlexNet",
    "ConvNet",
    "Gaussian",
    "LeNet",
    "Model",
    "Params",
    "ResNet18",
    "ResNet34",
    "bnn",
    "gaussian_location",
    "linear_regression",
    "logistic_regression",
    "poisson_regression",
]
