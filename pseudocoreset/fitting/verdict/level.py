"""``Verdict``: how good a coreset is, with numbers and a sentence that says what to do."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.formatting import json_values

__all__ = ["MOST_FOR_GOOD", "MOST_FOR_REWEIGHTING", "Level", "Nats", "Verdict"]

MOST_FOR_GOOD = 0.1  # nats
MOST_FOR_REWEIGHTING = 3.0  # nats
COMPARE = "sample a short posterior of all data and of the coreset, and let compare_posteriors compare them"


class Level(enum.Enum):
    """How good a coreset is."""

    GOOD = "GOOD"
    USABLE = "USABLE"
    POOR = "POOR"
    NOT_KNOWN = "NOT KNOWN"


@dataclass(frozen=True)
class Nats:
    """A divergence in nats and its standard error.

    Attributes:
        value: infinite where one posterior has draws that the other rules out.
        standard_error: of draws and, where the rows of the data were sampled, of rows.
    """

    value: float
    standard_error: float

    @property
    def upper(self) -> float:
        """Two standard errors above; infinite where that is no number."""
        upper = self.value + 2 * self.standard_error
        return upper if math.isfinite(upper) else math.inf

    @property
    def lower(self) -> float:
        """Two standard errors below; minus infinity where that is no number."""
        lower = self.value - 2 * self.standard_error
        return lower if math.isfinite(lower) else -math.inf

    def __str__(self) -> str:
        # An estimate of what is not negative may be below zero by its error.
        value = max(self.value, 0.0)
        if not math.isfinite(self.standard_error):
            return f"{value:.3g}"
        return f"{value:.3g} ± {self.standard_error:.1g}"


@dataclass(frozen=True)
class Verdict:
    """How far the posterior of a coreset is from that of all data.

    Draws of both posteriors decide; no posterior is taken for a Gaussian. The levels:

    - GOOD: both divergences are at most 0.1 nats, two standard errors included, and the weights that carry draws from
      the coreset posterior to the full one have no heavy tail. By Pinsker's inequality no probability is then wrong by
      more than sqrt(0.1 / 2) = 0.22, and a mean is wrong by at most 0.45 standard deviations, were all of the
      divergence in it.
    - USABLE: Pareto k is at most min(1 - 1 / log10(S), 0.7) for S draws, up to which averages under the weights can be
      trusted (Vehtari et al. 2024), and KL(full || coreset) is at most 3 nats: reweighting takes about exp(KL) draws
      for each that counts (Chatterjee and Diaconis 2018), 20 then.
    - POOR: anything else that is known.
    - NOT KNOWN: there are no draws to judge by, and ``reason`` says why; or those of the full posterior cannot be
      trusted (``is_bound``), and the coreset posterior is not far by what they say.

    Attributes:
        level: as above.
        to_full: KL(coreset posterior || full posterior); None where it is not known.
        from_full: KL(full posterior || coreset posterior).
        pareto_k: tail index of the weights that carry draws of the coreset posterior to the full one.
        threshold: up to which they can be trusted.
        effective_draws: of ``num_draws`` after reweighting.
        num_draws: of the coreset posterior.
        uniform: KL(uniform subset's posterior || full posterior), of as many random points with the mass of the data.
        uniform_from_full: KL(full posterior || uniform subset's posterior).
        is_bound: whether the divergences are only an order of magnitude: the draws of the full posterior have weights
            that cannot be trusted.
        at_mode: the Laplace estimate of ``to_full`` at the mode of all data.
        reason: of NOT KNOWN, and of POOR without numbers.
        num_rows: of the data that the likelihood was computed on; fewer than all are in the standard errors.
        seconds: that the verdict took.
    """

    level: Level
    to_full: Nats | None = None
    from_full: Nats | None = None
    pareto_k: float | None = None
    threshold: float | None = None
    effective_draws: float | None = None
    num_draws: int = 0
    uniform: Nats | None = None
    uniform_from_full: Nats | None = None
    is_bound: bool = False
    at_mode: float | None = None
    reason: str = ""
    num_rows: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, coreset: Pseudocoreset) -> Verdict | None:
        """The verdict that a coreset carries in its metadata; None where it has none."""
        found = coreset.metadata.get("verdict")
        return None if found is None else cls.from_dict(found)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Verdict:
        """What ``as_dict`` made; entries that this version does not know are left out."""
        known = {name: record[name] for name in cls.__dataclass_fields__ if name in record}
        for name, value in known.items():
            if isinstance(value, Mapping):
                known[name] = Nats(float(value["value"]), float(value["standard_error"]))
            elif value in ("inf", "-inf", "nan"):
                known[name] = float(value)
        return cls(**known | {"level": Level(record["level"])})

    def as_dict(self) -> dict[str, Any]:
        """Everything but the seconds, ready for JSON."""
        record = asdict(self) | {"level": self.level.value}
        del record["seconds"]  # files of two runs alike are alike
        return json_values(record)

    @property
    def is_worse_than_uniform(self) -> bool:
        """Whether a uniform subset of as many points is nearer, by more than two standard errors."""
        if self.to_full is None or self.uniform is None:
            return False
        error = 2 * math.hypot(self.to_full.standard_error, self.uniform.standard_error)
        return self.to_full.value > self.uniform.value + (error if math.isfinite(error) else 0.0)

    @property
    def advice(self) -> str:
        """What to do, in a sentence."""
        if self.level is Level.GOOD:
            return "Sample it in the place of the data."
        if self.level is Level.USABLE:
            assert self.effective_draws is not None
            return (
                "reweight(posterior, source=coreset, target=data) turns its draws into right expectations (Pareto k "
                f"{self.pareto_k:.2g}; {self.effective_draws:.0f} of {self.num_draws} draws are effective)."
            )
        if self.level is Level.NOT_KNOWN:
            return f"To know it, {COMPARE}."
        return "Do not use it for this posterior: take more points (size=) or another method."

    def __str__(self) -> str:
        name = self.level.value
        if self.to_full is None or self.from_full is None:
            near = "" if self.at_mode is None else f" (by Laplace at the mode, {self.at_mode:.3g} nats)"
            return f"{name}: {self.reason}{near}. {self.advice}"
        about = "about " if self.is_bound else ""
        bound = ", an order of magnitude only" if self.is_bound else ""
        beside = "" if self.uniform is None else f" (a uniform subset of as many points: {about}{self.uniform} nats)"
        return (
            f"{name}: the coreset posterior is {about}{self.to_full} nats from that of all data{beside}, and that is "
            f"{about}{self.from_full} nats from it{bound}. {self.advice}"
        )
