"""The loop: ``fit`` for every method, ``optimise`` for an objective of your own, results and memory."""

from typing import Any

from pseudocoreset.compute.memory import MemoryEstimate
from pseudocoreset.fitting.aliases import ALIASES
from pseudocoreset.fitting.door import METHODS, estimate_memory, fit
from pseudocoreset.fitting.loop import Plan, optimise, prepare
from pseudocoreset.fitting.outcome import FitResult, Outcome

__all__ = ["METHODS", "FitResult", "MemoryEstimate", "Outcome", "Plan", "estimate_memory", "fit", "optimise", "prepare"]


def __getattr__(name: str) -> Any:
    if name not in ALIASES:
        raise AttributeError(f"module 'pseudocoreset.fitting' has no attribute {name!r}")
    return ALIASES[name]
