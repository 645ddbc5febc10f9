"""Objectives: what a coreset is optimised for. One file each; all are pairs of pure functions."""

from pseudocoreset.objectives.bacon import bacon, decode
from pseudocoreset.objectives.base import Objective, SnapshotWindow
from pseudocoreset.objectives.chains import Chains
from pseudocoreset.objectives.distribution_matching import distribution_matching
from pseudocoreset.objectives.forward_kl import forward_kl
from pseudocoreset.objectives.function_kl import function_kl, function_kl_surrogate
from pseudocoreset.objectives.gradient_matching import gradient_matching
from pseudocoreset.objectives.posteriors import InnerTraining
from pseudocoreset.objectives.reverse_kl import reverse_kl
from pseudocoreset.objectives.wasserstein import trajectory_matching, wasserstein
from pseudocoreset.rows import Rows

CoresetArrays = Rows  # its name in version 0.1

__all__ = [
    "Chains",
    "CoresetArrays",
    "InnerTraining",
    "Objective",
    "Rows",
    "SnapshotWindow",
    "bacon",
    "decode",
    "distribution_matching",
    "forward_kl",
    "function_kl",
    "function_kl_surrogate",
    "gradient_matching",
    "reverse_kl",
    "trajectory_matching",
    "wasserstein",
]
