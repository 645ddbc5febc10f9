"""NumPyro programs: Bayesian neural networks, regressions, and ``Model``, what is derived from a program."""

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
    "ConvNet",
    "Gaussian",
    "Model",
    "Params",
    "bnn",
    "gaussian_location",
    "linear_regression",
    "logistic_regression",
    "poisson_regression",
]
