"""Objectives: what a coreset is optimised for. One file each; all are pairs of pure functions."""

from pseudocoreset.objectives.base import CoresetArrays, Objective, SnapshotWindow
from pseudocoreset.objectives.function_kl import function_kl, function_kl_surrogate

__all__ = ["CoresetArrays", "Objective", "SnapshotWindow", "function_kl", "function_kl_surrogate"]
