"""What a comparison of posteriors found: on one split, or on several."""

from __future__ import annotations

import dataclasses
import html
import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pseudocoreset.diagnostics.agreement import Agreement
from pseudocoreset.diagnostics.convergence import Convergence
from pseudocoreset.diagnostics.differences import ScoreDifference, held_out_elpd
from pseudocoreset.diagnostics.distances import Distances
from pseudocoreset.diagnostics.formatting import Table, html_table, json_values, text_table
from pseudocoreset.diagnostics.metrics import Metrics
from pseudocoreset.diagnostics.moments import Moments
from pseudocoreset.diagnostics.noise import Noise, largest
from pseudocoreset.diagnostics.predictive import Predictive
from pseudocoreset.diagnostics.reweighting import Reweighting
from pseudocoreset.diagnostics.tables import tables_with_notes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Comparison", "Comparisons"]

LINE_LENGTH = 100


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
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

    metrics: dict[str, Metrics]
    agreement: dict[str, Agreement]
    distances: dict[str, Distances]
    convergence: dict[str, Convergence]
    reference: str | None
    predictions: dict[str, Predictive]
    settings: dict[str, dict[str, Any]]
    differences: dict[str, ScoreDifference] = dataclasses.field(default_factory=dict)
    moments: dict[str, Moments] = dataclasses.field(default_factory=dict)
    moment_floor: Moments | None = None
    reweighting: dict[str, Reweighting] = dataclasses.field(default_factory=dict)
    noise: dict[str, Noise] = dataclasses.field(default_factory=dict)

    @property
    def noise_floor(self) -> Agreement | None:
        """The largest noise of agreement of any posterior here: below it no two runs can be told apart."""
        return largest([row.agreement for row in self.noise.values()])

    @property
    def distance_floor(self) -> Distances | None:
        """The largest noise of distances of any posterior here."""
        return largest([row.distances for row in self.noise.values() if row.distances is not None])

    @property
    def num_data(self) -> int:
        """Number of held-out examples."""
        return next(iter(self.metrics.values())).num_data

    @property
    def is_classification(self) -> bool:
        """Whether the targets are classes."""
        return next(iter(self.metrics.values())).accuracy is not None

    def as_dict(self) -> dict[str, Any]:
        """Everything but the predictions, ready for JSON."""

        def rows(named: Mapping[str, Any]) -> dict[str, Any]:
            return {name: row.as_dict() for name, row in named.items()}

        def floor(row: Any) -> Any:
            return None if row is None else row.as_dict()

        return {
            "num_data": self.num_data,
            "reference": self.reference,
            "metrics": rows(self.metrics),
            "agreement": rows(self.agreement),
            "noise": rows(self.noise),
            "noise_floor": floor(self.noise_floor),
            "differences": rows(self.differences),
            "distances": rows(self.distances),
            "distance_floor": floor(self.distance_floor),
            "moments": rows(self.moments),
            "moment_floor": floor(self.moment_floor),
            "reweighting": rows(self.reweighting),
            "convergence": rows(self.convergence),
            "settings": json_values(self.settings),
        }

    def tables(self) -> list[Table]:
        """Heading, columns and rows of the tables that it prints as."""
        return [table for table, _ in tables_with_notes(self)]

    def verdict(self) -> list[str]:
        """The findings in sentences."""
        from pseudocoreset.diagnostics.verdict import verdict

        return verdict(self)

    def elpd(self) -> Any:
        """Expected log predictive densities as ``arviz_stats.compare`` tabulates them; see ``held_out_elpd``."""
        return held_out_elpd(self.predictions)

    def plot(self) -> Figure:
        """The main figures with their uncertainties; see ``plot_comparison``."""
        from pseudocoreset.diagnostics.comparison_plots import plot_comparison

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
        from pseudocoreset.diagnostics.comparison_plots import plot_comparison

        return plot_comparison(self)

    def __str__(self) -> str:
        return "\n\n".join(f"==== {split} ====\n\n{comparison}" for split, comparison in self.items())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(f"<h3>{html.escape(split)}</h3>{comparison._repr_html_()}" for split, comparison in self.items())
