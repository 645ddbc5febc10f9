"""Gaussian stand-ins for the full-data and the coreset posterior, and their distance at a mode.

``pseudocoreset.objectives.posteriors`` makes of these, of conjugate posteriors and of chains what a method compares.
"""

from pseudocoreset.proxies.covariance import (
    Covariance,
    Isotropic,
    Laplace,
    Linearized,
    Side,
    Trajectory,
    resolve_covariance,
)
from pseudocoreset.proxies.divergence import ModeDivergence, divergence_at_mode
from pseudocoreset.proxies.training import BatchFn, descend, mean_loss, mean_loss_and_gradient

__all__ = [
    "BatchFn",
    "Covariance",
    "Isotropic",
    "Laplace",
    "Linearized",
    "ModeDivergence",
    "Side",
    "Trajectory",
    "descend",
    "divergence_at_mode",
    "mean_loss",
    "mean_loss_and_gradient",
    "resolve_covariance",
]
