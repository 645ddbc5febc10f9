"""What ``method="auto"`` takes: curvature matching where it applies and does well, else another method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from pseudocoreset.fitting.keeping import is_nearer
from pseudocoreset.fitting.outcome import FitResult
from pseudocoreset.fitting.running import Way, choose
from pseudocoreset.methods import FBPC, BPCForwardKL, BPCReverseKL, Method, Problem
from pseudocoreset.subsets import Curvature
from pseudocoreset.subsets.curvature import NoCurvatureError

__all__ = ["Attempt", "attempt"]

MOST_PARAMS = 1000
MOST_NATS = 0.1  # that fewer points than it takes may be away
MOST_SPREAD = 1.0  # nats that the log densities differ by over draws about the mode


@dataclass(frozen=True)
class Attempt:
    """What came of curvature matching.

    Attributes:
        result: of it, None where there is none.
        why: it is what ``"auto"`` takes, or another method is.
        other: the method that is to run too; None where the result is taken.
    """

    result: FitResult | None
    why: str
    other: type[Method] | None

    @property
    def taken(self) -> FitResult:
        """The result, which says that it was taken and why."""
        assert self.result is not None
        return _said(self.result, self.why)

    def nearest(self, result: FitResult) -> FitResult:
        """That of the other method, or that of curvature matching where it is nearer to the posterior of all data."""
        if self.result is None or not is_nearer(self.result.coreset, result.coreset):
            return _said(result, self.why)
        other = result.coreset.metadata["objective"]
        return _said(self.result, f"{self.why}; {other!r} ended farther away")


def attempt(problem: Problem, settings: Mapping[str, Any], given: Mapping[str, bool], way: Way) -> Attempt:
    """Curvature matching where it applies, and the method to run where it does not do well.

    Args:
        problem: of the fit.
        settings: of the method, by name, as the user gave them.
        given: whether the user gave an argument of ``fit``.
        way: how the fit runs.
    """
    if problem.are_networks:
        return Attempt(None, "networks have many modes", FBPC)
    why = _useless(problem, settings, given)
    if why:
        return Attempt(None, why, BPCReverseKL)
    try:
        result = choose(Curvature(**settings).resolved(problem), problem, way)
    except NoCurvatureError as error:
        return Attempt(None, str(error), BPCReverseKL)
    found = result.coreset.metadata["settings"]
    if not found["is_exact"]:
        nats = (result.coreset.metadata.get("at_mode") or {}).get("nats")
        if (found["mismatch"] if nats is None else nats) > MOST_NATS:
            away = "an unknown distance" if nats is None else f"{nats:.3g} nats"
            return Attempt(result, f"{result.coreset.size} points by curvature are {away} away", BPCForwardKL)
    if not found["spread"] <= MOST_SPREAD:
        why = (
            f"the posterior is far from a Gaussian: at its mode matched, it is {found['spread']:.3g} nats off about it"
        )
        return Attempt(result, why, None if problem.size is None else BPCReverseKL)
    return Attempt(result, "the posterior has a mode, and its curvature there is matched", None)


def _useless(problem: Problem, settings: Mapping[str, Any], given: Mapping[str, bool]) -> str:
    """Why curvature matching does not apply; empty where it does."""
    others = [name for name in settings if name not in {field.name for field in fields(Curvature)}]
    others += [name for name, is_given in given.items() if is_given and name not in Curvature.takes]
    if len(problem.models) > 1:
        return "there are several models"
    if problem.images_per_class is not None:
        return "images_per_class was given"
    if others:
        return f"{others[0]} was given, which curvature matching has no use for"
    if problem.models[0].num_params > MOST_PARAMS:
        return f"the model has more than {MOST_PARAMS} parameters"
    return ""


def _said(result: FitResult, why: str) -> FitResult:
    """The result with the choice and its reason in the metadata, which its text tells."""
    name = result.coreset.metadata.get("objective")
    metadata = result.coreset.metadata | {"auto": f"method='auto' took {name!r}: {why}"}
    return replace(result, coreset=replace(result.coreset, metadata=metadata))
