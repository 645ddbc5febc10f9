"""What a coreset is worth, by named protocols: ours, and those of papers for comparison with their tables."""

from pseudocoreset.evaluation.default import Default
from pseudocoreset.evaluation.distillation import Distillation
from pseudocoreset.evaluation.fbpc2023 import FBPC2023
from pseudocoreset.evaluation.front import evaluate
from pseudocoreset.evaluation.kim2022 import Kim2022
from pseudocoreset.evaluation.protocol import PROTOCOLS, Protocol, Scored, Task
from pseudocoreset.evaluation.result import Estimate, Evaluation, Evaluations
from pseudocoreset.evaluation.scores import ece_batch, nll_batchmean

__all__ = [
    "FBPC2023",
    "PROTOCOLS",
    "Default",
    "Distillation",
    "Estimate",
    "Evaluation",
    "Evaluations",
    "Kim2022",
    "Protocol",
    "Scored",
    "Task",
    "ece_batch",
    "evaluate",
    "nll_batchmean",
]
