"""What a comparison of posteriors found, on one split or on several, as it is shown: tables, sentences, pictures."""

from __future__ import annotations

import dataclasses
import html
import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pseudocoreset.diagnostics.comparison.findings import Findings
from pseudocoreset.diagnostics.comparison.pictures import plot_comparison
from pseudocoreset.diagnostics.comparison.tables import tables_with_notes
from pseudocoreset.diagnostics.comparison.verdict import sentences_of
from pseudocoreset.diagnostics.predictions.differences import held_out_elpd
from pseudocoreset.formatting import Table, html_table, text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Comparison", "Comparisons"]

LINE_LENGTH = 100


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Comparison(Findings):
    """Several posteriors on the same held-out data; ``print`` it, ``plot`` it, or make a page of it with ``report``.

    Attributes:
        metrics: Scores by posterior, and of the uniform prediction under "uniform" (classes only).
        agreement: Closeness to the reference by posterior, the reference left out; empty without a reference.
        distances: Distances of function values (log-probabilities, centred over classes, or means of the target) from
            those of the reference, jointly at held-out inputs; of posteriors with two draws or more.
        convergence: R-hat, effective sample size and Monte-Carlo error by posterior.
        reference: Name of the reference posterior, or None.
        predictions: Model averages by posterior.
        settings: What made each posterior: its metadata.
        differences: Scores less those of the reference on the same examples, the reference left out.
        moments: Moments of the parameters against those of the reference, for models of few parameters.
        moment_floor: Moments of one half of the reference's own chains against the other's.
        reweighting: Importance weights to the reference, where ``sources`` were given.
        noise: By posterior, what two runs of one law would be measured at, with as many draws as this posterior and the
            reference have: 98 of 100 such pairs stay below. Of a reference alone, that of a second run of it.
    """

    def tables(self) -> list[Table]:
        """Heading, columns and rows of the tables that it prints as."""
        return [table for table, _ in tables_with_notes(self)]

    def verdict(self) -> list[str]:
        """The findings in sentences."""
        return sentences_of(self)

    def elpd(self) -> Any:
        """Expected log predictive densities as ``arviz_stats.compare`` tabulates them; see ``held_out_elpd``."""
        return held_out_elpd(self.predictions)

    def plot(self) -> Figure:
        """The main figures with their uncertainties; see ``plot_comparison``."""
        return plot_comparison(self)

    def __str__(self) -> str:
        said = [textwrap.fill(sentence, LINE_LENGTH) for sentence in self.verdict()]
        return "\n\n".join([*(text_table(table) for table in self.tables()), "\n".join(["In short", *said])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in self.verdict())
        return "".join(html_table(table) for table in self.tables()) + said


class Comparisons(Mapping[str, Comparison]):
    """Comparisons of the same posteriors by the name of the split, such as ``{"test": ..., "shifted": ...}``.

    Args:
        by_split: One comparison a split.

    Raises:
        ValueError: There is none.
    """

    def __init__(self, by_split: Mapping[str, Comparison]) -> None:
        if not by_split:
            raise ValueError("by_split is empty; give one comparison a split at least")
        self._by_split = dict(by_split)

    def __getitem__(self, split: str) -> Comparison:
        return self._by_split[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_split)

    def __len__(self) -> int:
        return len(self._by_split)

    def as_dict(self) -> dict[str, Any]:
        """``Comparison.as_dict`` by split, ready for JSON."""
        return {split: comparison.as_dict() for split, comparison in self.items()}

    def verdict(self) -> list[str]:
        """The findings in sentences, split by split."""
        return [f"On {split!r}: {sentence}" for split, comparison in self.items() for sentence in comparison.verdict()]

    def plot(self) -> Figure:
        """The main figures, one colour a split; see ``plot_comparison``."""
        return plot_comparison(self)

    def __str__(self) -> str:
        return "\n\n".join(f"==== {split} ====\n\n{comparison}" for split, comparison in self.items())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(f"<h3>{html.escape(split)}</h3>{comparison._repr_html_()}" for split, comparison in self.items())
