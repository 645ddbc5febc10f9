"""Methods that learn a coreset: one frozen dataclass each, with its settings."""

from pseudocoreset.methods.bacon import BACON
from pseudocoreset.methods.base import Callback, Learned, Method, Optimizer, Problem
from pseudocoreset.methods.bpc_fkl import BPCForwardKL
from pseudocoreset.methods.bpc_rkl import BPCReverseKL
from pseudocoreset.methods.bpc_w import BPCWasserstein
from pseudocoreset.methods.distribution_matching import DistributionMatching
from pseudocoreset.methods.fbpc import FBPC
from pseudocoreset.methods.gradient_matching import GradientMatching
from pseudocoreset.methods.trajectory_matching import TrajectoryMatching

__all__ = [
    "BACON",
    "FBPC",
    "BPCForwardKL",
    "BPCReverseKL",
    "BPCWasserstein",
    "Callback",
    "DistributionMatching",
    "GradientMatching",
    "Learned",
    "Method",
    "Optimizer",
    "Problem",
    "TrajectoryMatching",
]
