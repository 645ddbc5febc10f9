"""How far the posterior of a coreset is from that of all data, judged by draws: level, numbers, and what to do."""

from pseudocoreset.fitting.verdict.judging import judge
from pseudocoreset.fitting.verdict.level import Level, Nats, Verdict

__all__ = ["Level", "Nats", "Verdict", "judge"]
