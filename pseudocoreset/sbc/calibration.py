"""What a simulation-based calibration found: ranks of true values among draws, and what they say."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from pseudocoreset.arguments import checked
from pseudocoreset.formatting import json_values, number, text_table
from pseudocoreset.sbc.ranks import chi_square_p_value, ecdf_p_value

if TYPE_CHECKING:
    pass

__all__ = ["Calibration"]


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Ranks of true values among posterior draws, over simulations.

    Attributes:
        quantities: Names of the q scalars that were ranked.
        num_draws: L, draws that a rank counts.
        ranks: (simulation, q) integers from 0 to L: how many draws lie below the truth.
        truths: (simulation, q) values at the parameters that made the data.
        means: (simulation, q) posterior means.
        deviations: (simulation, q) posterior standard deviations.
        autocorrelations: (q,) of successive draws, averaged over simulations. Ranks are uniform if it is near zero.
        metadata: model, kernel, options, thinning, divergent draws, key, seconds: JSON-able.
    """

    quantities: tuple[str, ...]
    num_draws: int
    ranks: np.ndarray
    truths: np.ndarray
    means: np.ndarray
    deviations: np.ndarray
    autocorrelations: np.ndarray
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def num_simulations(self) -> int:
        """Simulations."""
        return len(self.ranks)

    @property
    def p_values(self) -> dict[str, float]:
        """Of each quantity: that uniform ranks leave a band around uniformity as wide as the ranks need; exact."""
        return {
            name: ecdf_p_value(column, self.num_draws)
            for name, column in zip(self.quantities, self.ranks.T, strict=True)
        }

    @property
    def p_value(self) -> float:
        """Of all quantities together: the smallest of theirs times their number (Bonferroni), at most 1."""
        return min(1.0, len(self.quantities) * min(self.p_values.values()))

    @property
    def is_calibrated(self) -> bool:
        """Whether the ranks pass for uniform, p-value 0.01 or more: of right posteriors one in a hundred does not."""
        return self.p_value >= 0.01

    @property
    def errors(self) -> np.ndarray:
        """(simulation, q): truth minus posterior mean, in posterior standard deviations."""
        return (self.truths - self.means) / self.deviations

    @property
    def bias(self) -> np.ndarray:
        """(q,) mean of ``errors``: 0 if calibrated."""
        return self.errors.mean(axis=0)

    @property
    def spread(self) -> np.ndarray:
        """(q,) root mean square of ``errors``: about 1 if calibrated, 3 where posteriors are three times too narrow."""
        return np.sqrt(np.mean(self.errors**2, axis=0))

    @checked
    def coverage(self, level: float) -> np.ndarray:
        """(q,) share of the truths inside the central interval that is to hold a share ``level`` of them."""
        places = (self.ranks + 0.5) / (self.num_draws + 1)
        return np.mean(np.abs(places - 0.5) < level / 2, axis=0)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the values of single simulations, ready for JSON."""
        columns: dict[str, Any] = {
            "p_value": list(self.p_values.values()),
            "chi_square_p_value": [chi_square_p_value(column, self.num_draws) for column in self.ranks.T],
            "coverage_50": self.coverage(0.5),
            "coverage_90": self.coverage(0.9),
            "spread": self.spread,
            "bias": self.bias,
            "autocorrelation": self.autocorrelations,
        }
        rows = {
            name: {column: values[i] for column, values in columns.items()} for i, name in enumerate(self.quantities)
        }
        content = {
            "num_simulations": self.num_simulations,
            "num_draws": self.num_draws,
            "p_value": self.p_value,
            "is_calibrated": self.is_calibrated,
            "quantities": rows,
            "settings": self.metadata,
        }
        return dict(json_values(content))

    def __str__(self) -> str:
        content = self.as_dict()
        finding = (
            "ranks pass for uniform" if self.is_calibrated else "NOT calibrated: ranks of the truth are not uniform"
        )
        made = "".join(
            f", {name} {self.metadata[name]}" for name in ("model", "kernel", "temperature") if name in self.metadata
        )
        columns = ["p", "chi-square p", "in 50 %", "in 90 %", "spread", "bias", "autocorrelation"]
        rows = [[name, *(number(value) for value in row.values())] for name, row in content["quantities"].items()]
        head = (
            f"Calibration{made}: {finding} (p {number(self.p_value)}; {self.num_simulations} simulations of "
            f"{self.num_draws} draws)"
        )
        return text_table((head, columns, rows))
