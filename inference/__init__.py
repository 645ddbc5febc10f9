"""Posterior sampling: BlackJAX kernels on models given data, coresets or arrays."""

from pseudocoreset.inference import schedules
from pseudocoreset.inference.data import draw_minibatch, gradient_estimator, log_density_estimator
from pseudocoreset.inference.engine import Kernel
from pseudocoreset.inference.kernels import (
    HMC,
    MCLMC,
    NUTS,
    SGHMC,
    SGLD,
    AdjustedMCLMC,
    BlackjaxSGHMC,
    NetworkHMC,
    sghmc,
)
from pseudocoreset.inference.kernels import network_hmc as hmc
from pseudocoreset.inference.posterior import Posterior
from pseudocoreset.inference.sampling import sample
from pseudocoreset.rows import Rows

Minibatch = Rows  # its name in version 0.1

__all__ = [
    "HMC",
    "MCLMC",
    "NUTS",
    "SGHMC",
    "SGLD",
    "AdjustedMCLMC",
    "BlackjaxSGHMC",
    "Kernel",
    "Minibatch",
    "NetworkHMC",
    "Posterior",
    "Rows",
    "draw_minibatch",
    "gradient_estimator",
    "hmc",
    "log_density_estimator",
    "sample",
    "schedules",
    "sghmc",
]
