"""What ``method="auto"`` takes: curvature matching where it applies and does well, else what it took before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from pseudocoreset.fitting.outcome import FitResult
from pseudocoreset.fitting.running import Way, choose
from pseudocoreset.methods import Problem
from pseudocoreset.subsets import Curvature
from pseudocoreset.subsets.curvature import NoCurvatureError

__all__ = ["said", "try_curvature"]

MOST_PARAMS = 1000
MOST_NATS = 0.1  # to second order, that fewer points than it takes may leave


def try_curvature(
    problem: Problem, settings: Mapping[str, Any], given: Mapping[str, bool], way: Way
) -> FitResult | str:
    """The result of curvature matching, or why another method is to be taken.

    Args:
        problem: of the fit.
        settings: of the method, by name, as the user gave them.
        given: whether the user gave an argument of ``fit``.
        way: how the fit runs.
    """
    others = [name for name in settings if name not in {field.name for field in fields(Curvature)}]
    others += [name for name, is_given in given.items() if is_given and name not in Curvature.takes]
    if problem.are_networks:
        return "networks have many modes"
    if len(problem.models) > 1:
        return "there are several models"
    if problem.images_per_class is not None:
        return "images_per_class was given"
    if others:
        return f"{others[0]} was given, which curvature matching has no use for"
    if problem.models[0].num_params > MOST_PARAMS:
        return f"the model has more than {MOST_PARAMS} parameters"
    try:
        result = choose(Curvature(**settings).resolved(problem), problem, way)
    except NoCurvatureError as error:
        return str(error)
    found = result.coreset.metadata["settings"]
    if not found["is_exact"] and found["mismatch"] > MOST_NATS:
        return f"score and curvature of {result.coreset.size} points are {found['mismatch']:.3g} nats from all data's"
    return said(result, "the posterior has a mode, and its curvature there is matched")


def said(result: FitResult, why: str) -> FitResult:
    """The result with the choice and its reason in the metadata, which its text tells."""
    name = result.coreset.metadata.get("objective")
    metadata = result.coreset.metadata | {"auto": f"method='auto' took {name!r}: {why}"}
    return replace(result, coreset=replace(result.coreset, metadata=metadata))
