"""Expert trajectories: parameters along optimisation paths on the full data.

A set of experts is trained with plain SGD, a snapshot every epoch (Cazenavette et al. 2022; Kim et al. 2023,
appendix C.1). Experts are trained a group at a time, all of a group in one compiled computation; each epoch of a
group is one file on disk, written before the next begins, from which a single snapshot can be read.
"""

from pseudocoreset.experts.store import Experts
from pseudocoreset.experts.training import train_experts

__all__ = ["Experts", "train_experts"]
