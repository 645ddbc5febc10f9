"""Draws of the posterior of a few points, and the normaliser of its density."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from pseudocoreset.diagnostics.distances.reweighting import largest_tail_index, pareto_smoothed
from pseudocoreset.fitting.verdict.annealing import annealed, systematic
from pseudocoreset.fitting.verdict.proposals import Proposal
from pseudocoreset.subsets.curvature import NoCurvatureError
from pseudocoreset.subsets.curvature.density import PointDensity
from pseudocoreset.subsets.curvature.mode import posterior_from

__all__ = ["PointDraws", "draws_of_points"]

POOL = 8192  # proposals at most, from which draws are chosen by their weights ...
LEAST_POOL = 2048
POOL_ELEMENTS = 2**28  # ... fewer where points times parameters are many
LEAST_EFFECTIVE = 0.05  # of the proposals
NUM_RUNS = 4  # of annealing, independent of each other
MOST_ANNEALED = 300_000  # points times parameters
ANNEALED_EFFICIENCY = 0.5  # of particles that stem from one another


class PointDraws(NamedTuple):
    """Draws of the posterior of points.

    values
        (s, d).
    log_density
        (s,) of the posterior, without its normaliser.
    log_norm
        Logarithm of the normaliser.
    log_norm_error
        Its standard error.
    efficiency
        Independent draws that one draw is worth, in (0, 1].
    """

    values: np.ndarray
    log_density: np.ndarray
    log_norm: float
    log_norm_error: float
    efficiency: float = 1.0


def draws_of_points(
    density: PointDensity, start: np.ndarray, count: int, random: np.random.Generator
) -> PointDraws | str:
    """Draws of the posterior, or why there are none.

    By importance: proposals of a Student t about the mode, of which ``count`` are chosen by their weights. Where the
    tail of the weights is too heavy they are moved to the posterior by annealing.

    Args:
        density: of the points.
        start: where the search for the mode begins.
        count: of draws.
        random: of the draws.
    """
    try:
        posterior = posterior_from(density, start)
    except NoCurvatureError:
        return "it has no mode: the points leave a direction of the parameters undetermined"
    proposal = Proposal.about(posterior)
    drawn = _by_importance(density, proposal, count, random)
    return _by_annealing(density, proposal, count, random) if drawn is None else drawn


def _by_importance(
    density: PointDensity, proposal: Proposal, count: int, random: np.random.Generator
) -> PointDraws | None:
    each = len(proposal.mean) * len(density.points[0])
    pool = proposal.draws(int(np.clip(POOL_ELEMENTS // each, LEAST_POOL, POOL)), random)
    heights = density.values(pool) + density.priors(pool)
    log_weights = np.where(np.isnan(heights), -np.inf, heights) - proposal.log_density(pool)
    smoothed, pareto_k = pareto_smoothed(log_weights)
    weights = np.exp(smoothed)
    effective = 0.0 if not weights.any() else 1 / float(np.sum(weights**2))
    if pareto_k > largest_tail_index(len(pool)) or effective < LEAST_EFFECTIVE * len(pool):
        return None
    chosen = systematic(weights, count, random)
    largest = float(np.max(log_weights))
    ratios = np.exp(log_weights - largest)
    mean = float(np.mean(ratios))
    error = float(np.std(ratios)) / mean / math.sqrt(len(pool))
    # Draws beyond what the proposals are worth are repetitions.
    efficiency = effective / (effective + count)
    return PointDraws(pool[chosen], heights[chosen], largest + math.log(mean), error, efficiency)


def _by_annealing(
    density: PointDensity, proposal: Proposal, count: int, random: np.random.Generator
) -> PointDraws | str:
    each = len(proposal.mean) * len(density.points[0])
    runs = [] if each > MOST_ANNEALED else [annealed(density, proposal, random) for _ in range(NUM_RUNS)]
    ended = [run for run in runs if run is not None]
    if len(ended) < NUM_RUNS:
        return "neither importance sampling about its mode nor annealing reaches it"
    norms = np.array([run.log_norm for run in ended])
    total = float(np.logaddexp.reduce(norms)) - math.log(NUM_RUNS)
    # The weights of the steps of one run tell less than the runs among themselves, which are few.
    told = 2 * math.sqrt(sum(run.log_norm_error**2 for run in ended)) / NUM_RUNS
    error = max(told, float(np.std(norms, ddof=1)) / math.sqrt(NUM_RUNS))
    values = np.concatenate([run.values for run in ended])
    heights = np.concatenate([run.log_density for run in ended])
    # A run counts by its normaliser: one that missed a part of the posterior found less of it.
    weights = np.repeat(np.exp(norms - np.max(norms)), [len(run.values) for run in ended])
    chosen = systematic(weights, count, random)
    return PointDraws(values[chosen], heights[chosen], total, error, ANNEALED_EFFICIENCY)
