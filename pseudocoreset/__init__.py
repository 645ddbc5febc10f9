"""Bayesian pseudocoresets: a few synthetic data whose posterior matches that of the whole data set."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pseudocoreset.coreset import Pseudocoreset as Pseudocoreset
    from pseudocoreset.coreset import coreset_names as coreset_names
    from pseudocoreset.coreset import load_coreset as load_coreset
    from pseudocoreset.data import Dataset as Dataset
    from pseudocoreset.data import load_dataset as load_dataset
    from pseudocoreset.diagnostics import compare_posteriors as compare_posteriors
    from pseudocoreset.evaluation import Evaluation as Evaluation
    from pseudocoreset.evaluation import evaluate as evaluate
    from pseudocoreset.evaluation.mass import choose_mass as choose_mass
    from pseudocoreset.experts import Experts as Experts
    from pseudocoreset.experts import train_experts as train_experts
    from pseudocoreset.fitting import FitResult as FitResult
    from pseudocoreset.fitting import MemoryEstimate as MemoryEstimate
    from pseudocoreset.fitting import estimate_memory as estimate_memory
    from pseudocoreset.fitting import fit as fit
    from pseudocoreset.fitting import fit_bacon as fit_bacon
    from pseudocoreset.fitting import fit_bpc_fkl as fit_bpc_fkl
    from pseudocoreset.fitting import fit_bpc_rkl as fit_bpc_rkl
    from pseudocoreset.fitting import fit_bpc_w as fit_bpc_w
    from pseudocoreset.fitting import fit_curvature as fit_curvature
    from pseudocoreset.fitting import fit_distribution_matching as fit_distribution_matching
    from pseudocoreset.fitting import fit_fbpc as fit_fbpc
    from pseudocoreset.fitting import fit_giga as fit_giga
    from pseudocoreset.fitting import fit_gradient_matching as fit_gradient_matching
    from pseudocoreset.fitting import fit_herding as fit_herding
    from pseudocoreset.fitting import fit_k_centres as fit_k_centres
    from pseudocoreset.fitting import fit_random as fit_random
    from pseudocoreset.fitting import fit_sparse_vi as fit_sparse_vi
    from pseudocoreset.fitting import fit_trajectory_matching as fit_trajectory_matching
    from pseudocoreset.inference import sample as sample

__version__ = "0.1.0"

# Loaded on first use, so that importing the package touches no device and no heavy library.
_HOMES = {
    "Dataset": "data",
    "Evaluation": "evaluation",
    "Experts": "experts",
    "FitResult": "fitting",
    "MemoryEstimate": "fitting",
    "Pseudocoreset": "coreset",
    "choose_mass": "evaluation.mass",
    "compare_posteriors": "diagnostics",
    "coreset_names": "coreset",
    "estimate_memory": "fitting",
    "evaluate": "evaluation",
    "fit": "fitting",
    "fit_bacon": "fitting",
    "fit_bpc_fkl": "fitting",
    "fit_bpc_rkl": "fitting",
    "fit_bpc_w": "fitting",
    "fit_curvature": "fitting",
    "fit_distribution_matching": "fitting",
    "fit_fbpc": "fitting",
    "fit_giga": "fitting",
    "fit_gradient_matching": "fitting",
    "fit_herding": "fitting",
    "fit_k_centres": "fitting",
    "fit_random": "fitting",
    "fit_sparse_vi": "fitting",
    "fit_trajectory_matching": "fitting",
    "load_coreset": "coreset",
    "load_dataset": "data",
    "sample": "inference",
    "train_experts": "experts",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pseudocoreset' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pseudocoreset.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
