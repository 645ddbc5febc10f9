"""What was found of several posteriors on the same held-out data: numbers alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pseudocoreset.diagnostics.comparison.noise import Noise, largest
from pseudocoreset.diagnostics.convergence import Convergence
from pseudocoreset.diagnostics.distances.agreement import Agreement
from pseudocoreset.diagnostics.distances.between import Distances
from pseudocoreset.diagnostics.distances.moments import Moments
from pseudocoreset.diagnostics.distances.reweighting import Reweighting
from pseudocoreset.diagnostics.predictions.differences import ScoreDifference
from pseudocoreset.diagnostics.predictions.metrics import Metrics
from pseudocoreset.diagnostics.predictions.predictive import Predictive
from pseudocoreset.formatting import json_values

__all__ = ["Findings"]


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
    """The numbers of a ``Comparison``, which says what each is; tables, sentences and pictures are made of them."""

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
