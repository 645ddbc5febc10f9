"""What runs chains of any kernel: the plan, blocks of draws, rows in memory or on disk, checks of what came out."""

from pseudocoreset.inference.engine.kernel import TRACED, Density, Kernel, Stats, Tuning, per_chain, tempered
from pseudocoreset.inference.engine.plan import Plan, Run

__all__ = ["TRACED", "Density", "Kernel", "Plan", "Run", "Stats", "Tuning", "per_chain", "tempered"]
