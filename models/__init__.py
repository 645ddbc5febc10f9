"""NumPyro programs: Bayesian neural networks, regressions, and ``Model``, what is derived from a program."""

from pseudocoreset.models.bnn import bnn
from pseudocoreset.models.model import Model, Params
from pseudocoreset.models.networks import MLP, ConvNet
from pseudocoreset.models.regression import logistic_regression

__all__ = ["MLP", "ConvNet", "Model", "Params", "bnn", "logistic_regression"]
