"""``Evaluation``: what a coreset was found to be worth, and by what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pseudocoreset.diagnostics.predictions.scores import SCORES
from pseudocoreset.formatting import Table, json_values, number, text_table, with_error

if TYPE_CHECKING:
    from pseudocoreset.inference import Posterior

__all__ = ["Estimate", "Evaluation", "Evaluations"]


@dataclass(frozen=True)
class Estimate:
    """One score of an evaluation.

    Attributes:
        values: one a repeat.
        standard_error: of one repeat over the choice of held-out examples, the mean over repeats; for the accuracy a
            that of a binomial, sqrt(a (1 - a) / n). None where the score is no mean over examples.
    """

    values: tuple[float, ...]
    standard_error: float | None = None

    @property
    def mean(self) -> float:
        """Mean over repeats."""
        return float(np.mean(self.values))

    @property
    def spread(self) -> float | None:
        """Standard deviation over repeats (divided by their number less one); None for a single one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    def as_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return json_values(
            {"mean": self.mean, "spread": self.spread, "standard_error": self.standard_error, "values": self.values}
        )

    def __str__(self) -> str:
        return with_error(self.mean, self.standard_error if self.spread is None else self.spread)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What ``evaluate`` found.

    Attributes:
        protocol: name of the protocol.
        model: name of the model.
        split: ``"validation"`` or ``"test"``.
        num_data: held-out examples.
        metrics: scores by name: ``accuracy``, ``nll`` (of the model average), ``brier``, ``ece`` and so on as in
            ``diagnostics.Metrics``, and those of the protocol.
        settings: everything that the protocol was run with: JSON-able.
        notes: what a reader of the figures must know, in sentences.
        seconds: how long it took.
        versions: of what the figures depend on.
        posterior: the draws, where the protocol is ``"default"``.
    """

    protocol: str
    model: str
    split: str
    num_data: int
    metrics: Mapping[str, Estimate]
    settings: Mapping[str, Any]
    notes: tuple[str, ...]
    seconds: float
    versions: Mapping[str, str]
    posterior: Posterior | None = None

    @property
    def num_repeats(self) -> int:
        """Independent runs."""
        return max(len(estimate.values) for estimate in self.metrics.values())

    def table(self) -> Table:
        """Heading, columns and rows: each score, its spread over repeats, its error by the choice of examples."""
        runs = "1 repeat" if self.num_repeats == 1 else f"{self.num_repeats} repeats"
        heading = f"{self.model} by {self.protocol!r} on {self.num_data:,} {self.split} data, {runs}"
        columns = ("mean", "s.d. of repeats", "s.e. of data")
        rows = [
            (name, number(value.mean), number(value.spread), number(value.standard_error))
            for name, value in self.metrics.items()
        ]
        return heading, columns, rows

    def as_dict(self) -> dict[str, Any]:
        """All of it but the draws, ready for JSON."""
        return {
            "protocol": self.protocol,
            "model": self.model,
            "split": self.split,
            "num_data": self.num_data,
            "metrics": {name: estimate.as_dict() for name, estimate in self.metrics.items()},
            "settings": json_values(self.settings),
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
            "versions": dict(self.versions),
        }

    def __repr__(self) -> str:
        return "\n".join([f"Evaluation of {text_table(self.table())}", *self.notes])


def _is_main(name: str) -> bool:
    """Whether a score is in the table of several networks, which has room for few."""
    score = name.removeprefix("ensemble_")
    if score != name:
        return score in ("accuracy", "nll")
    return SCORES[name].is_compared if name in SCORES else name != "ece_batch"


class Evaluations(dict[str, Evaluation]):
    """Evaluations by name of the network: what a coreset is worth to each of them."""

    def table(self) -> Table:
        """A row a network; spreads are over repeats, or over held-out examples where there is one repeat."""
        names = [
            name for name in dict.fromkeys(name for one in self.values() for name in one.metrics) if _is_main(name)
        ]
        rows = [
            (model, *(str(one.metrics[name]) if name in one.metrics else number(None) for name in names))
            for model, one in self.items()
        ]
        one = next(iter(self.values()))
        return f"by {one.protocol!r} on {one.num_data:,} {one.split} data", names, rows

    def as_dict(self) -> dict[str, Any]:
        """All of them, ready for JSON."""
        return {name: one.as_dict() for name, one in self.items()}

    def __repr__(self) -> str:
        if not self:
            return "Evaluations({})"
        notes = list(dict.fromkeys(note for one in self.values() for note in one.notes))
        return "\n".join([f"Evaluations {text_table(self.table())}", *notes])
