"""Posterior sampling: BlackJAX kernels on models given data, coresets or arrays."""

from pseudocoreset.inference import hmc, schedules, sghmc
from pseudocoreset.inference.data import Minibatch, draw_minibatch, gradient_estimator, log_density_estimator
from pseudocoreset.inference.posterior import Posterior
from pseudocoreset.inference.sampling import sample

__all__ = [
    "Minibatch",
    "Posterior",
    "draw_minibatch",
    "gradient_estimator",
    "hmc",
    "log_density_estimator",
    "sample",
    "schedules",
    "sghmc",
]
