"""The front doors: one ``fit_<method>`` for each objective, all of one shape."""

from pseudocoreset.methods.bacon import fit_bacon
from pseudocoreset.methods.bpc import fit_bpc_fkl, fit_bpc_rkl, fit_bpc_w
from pseudocoreset.methods.fbpc import fit_fbpc
from pseudocoreset.methods.giga import fit_giga
from pseudocoreset.methods.matching import (
    fit_distribution_matching,
    fit_gradient_matching,
    fit_trajectory_matching,
)
from pseudocoreset.methods.sparse_vi import fit_sparse_vi
from pseudocoreset.methods.subsets import fit_herding, fit_k_centres, fit_random

__all__ = [
    "fit_bacon",
    "fit_bpc_fkl",
    "fit_bpc_rkl",
    "fit_bpc_w",
    "fit_distribution_matching",
    "fit_fbpc",
    "fit_giga",
    "fit_gradient_matching",
    "fit_herding",
    "fit_k_centres",
    "fit_random",
    "fit_sparse_vi",
    "fit_trajectory_matching",
]
