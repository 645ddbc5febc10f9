"""The loop: ``fit`` for every method, ``optimise`` for an objective of your own, results and memory."""

from typing import Any

from pseudocoreset.compute.memory import MemoryEstimate
from pseudocoreset.fitting.aliases import ALIASES
from pseudocoreset.fitting.door import METHODS, estimate_memory, fit
from pseudocoreset.fitting.loop import Plan, optimise, prepare
from pseudocoreset.fitting.outcome import FitResult, Outcome
from pseudocoreset.fitting.verdict import Level, Verdict, judge

__all__ = [
    "METHODS",
    "FitResult",
    "Level",
    "MemoryEstimate",
    "Outcome",
    "Plan",
    "Verdict",
    "estimate_memory",
    "fit",
    "judge",
    "optimise",
    "prepare",
]


def __getattr__(name: str) -> Any:
    if name not in ALIASES:
        raise AttributeError(f"module 'pseudocoreset.fitting' has no attribute {name!r}")
    return ALIASES[name]
