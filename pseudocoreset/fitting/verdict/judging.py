"""``judge``: the verdict on a coreset."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from pseudocoreset.compute.backends import full_precision
from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data import Dataset
from pseudocoreset.diagnostics.distances.reweighting import largest_tail_index, pareto_smoothed
from pseudocoreset.fitting.verdict.draws import PointDraws, draws_of_points
from pseudocoreset.fitting.verdict.estimate import Stratum, divergences
from pseudocoreset.fitting.verdict.level import MOST_FOR_GOOD, MOST_FOR_REWEIGHTING, Level, Verdict
from pseudocoreset.fitting.verdict.likelihood import full_values
from pseudocoreset.fitting.verdict.proposals import Proposal
from pseudocoreset.models import Model
from pseudocoreset.rows import ModelInputs
from pseudocoreset.subsets.curvature import NoCurvatureError
from pseudocoreset.subsets.curvature.density import Density, PointDensity, points_of
from pseudocoreset.subsets.curvature.mode import FullPosterior, full_posterior

__all__ = ["judge"]

MOST_PARAMS = 1000
NUM_DRAWS = 1000  # of the coreset posterior
NUM_FULL = 500  # of the proposal about the full posterior
NUM_UNIFORM = 200  # of the posterior of the uniform subset


@full_precision()
def judge(
    model: Model,
    data: Dataset,
    coreset: Pseudocoreset,
    *,
    key: jax.Array,
    uniform: Pseudocoreset | None = None,
    posterior: FullPosterior | None = None,
    at_mode: float | None = None,
) -> Verdict:
    """The verdict on a coreset: how far its posterior is from that of all data, by draws of both.

    1. The mode of all data is found, and that of the coreset.
    2. Draws of the coreset posterior are chosen by importance among proposals about its mode; that costs m points.
       Further draws are proposed about the mode of all data.
    3. Both log densities are computed at all of them, in float64, and both divergences follow by importance sampling
       from the mixture of the two kinds of draws.
    4. Pareto k and effective sample size are those of reweighting the draws of the coreset to the full posterior.

    Args:
        model: no network, of at most 1,000 parameters; bound to the shape of the data if it is not yet.
        data: whose train split gives the full posterior.
        coreset: with the weights that its posterior counts its points by.
        key: one typed key.
        uniform: random points, which are judged too; None for nothing.
        posterior: to second order at the mode of all data, where it is known.
        at_mode: a Laplace estimate of the divergence, for where draws tell nothing.
    """
    began = time.perf_counter()
    bound = model.bind(ModelInputs.of(data.train), data.train.y) if model.structure is None else model
    found = _judged(bound, data, coreset, key, uniform, posterior)
    return replace(found, at_mode=at_mode, seconds=round(time.perf_counter() - began, 3))


def _judged(
    model: Model,
    data: Dataset,
    coreset: Pseudocoreset,
    key: jax.Array,
    uniform: Pseudocoreset | None,
    posterior: FullPosterior | None,
) -> Verdict:
    if model.is_network:
        return Verdict(Level.NOT_KNOWN, reason="the posterior of a network has many modes")
    if model.num_params > MOST_PARAMS:
        return Verdict(Level.NOT_KNOWN, reason=f"the model has more than {MOST_PARAMS} parameters")
    density = Density(model, data)
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    try:
        posterior = full_posterior(density, key) if posterior is None else posterior
    except NoCurvatureError:
        return Verdict(Level.NOT_KNOWN, reason="the posterior of all data has no mode that Newton's method finds")
    judged = [_Side.of(density, posterior, coreset, NUM_DRAWS, random)]
    if uniform is not None:
        judged.append(_Side.of(density, posterior, uniform, NUM_UNIFORM, random))
    if isinstance(judged[0].drawn, str):
        reason = judged[0].drawn
        is_flat = reason.startswith("it has no mode")
        return Verdict(
            Level.POOR if is_flat else Level.NOT_KNOWN,
            reason=f"there are no draws of the coreset posterior, for {reason}",
        )
    return _compared(density, posterior, judged, random)


class _Side(NamedTuple):
    """Points, and draws of their posterior or why there are none."""

    density: PointDensity
    drawn: PointDraws | str

    @classmethod
    def of(
        cls,
        density: Density,
        posterior: FullPosterior,
        coreset: Pseudocoreset,
        count: int,
        random: np.random.Generator,
    ) -> _Side:
        points = PointDensity(density.model, density.data, points_of(coreset))
        return cls(points, draws_of_points(points, posterior.mode, count, random))


def _compared(density: Density, posterior: FullPosterior, judged: list[_Side], random: np.random.Generator) -> Verdict:
    """The verdict, with all log densities computed at once."""
    proposal = Proposal.about(posterior)
    proposed = proposal.draws(NUM_FULL, random)
    usable = [(side.density, side.drawn) for side in judged if not isinstance(side.drawn, str)]
    vectors = np.concatenate([proposed, *(drawn.values for _, drawn in usable)])
    found = full_values(density, posterior, vectors, random)
    priors = density.priors(vectors)
    ends = np.cumsum([len(proposed)] + [len(drawn.values) for _, drawn in usable])
    of_full = slice(0, len(proposed))

    def stratum(where: slice, points: np.ndarray, efficiency: float = 1.0) -> Stratum:
        return Stratum(
            points,
            found.values[where] + priors[where],
            proposal.log_density(vectors[where]),
            found.without[:, where] + priors[where],
            efficiency,
        )

    results = []
    for (points, drawn), first, last in zip(usable, ends[:-1], ends[1:], strict=True):
        own = stratum(slice(first, last), drawn.log_density, drawn.efficiency)
        other = stratum(of_full, points.values(proposed) + priors[of_full])
        results.append((divergences(own, other, drawn), own))
    nearness, own = results[0]
    log_weights, pareto_k = pareto_smoothed(own.full - own.points)
    weights = np.exp(log_weights)
    verdict = Verdict(
        level=Level.POOR,
        to_full=nearness.to_full,
        from_full=nearness.from_full,
        pareto_k=pareto_k,
        threshold=largest_tail_index(len(weights)),
        effective_draws=float(1 / np.sum(weights**2)) if weights.any() else 0.0,
        num_draws=len(weights),
        is_bound=not nearness.full_tail <= largest_tail_index(len(weights)),
        num_rows=found.num_rows,
    )
    if len(results) > 1:
        beside = results[1][0]
        verdict = replace(verdict, uniform=beside.to_full, uniform_from_full=beside.from_full)
    return replace(verdict, level=_level(verdict))


def _level(verdict: Verdict) -> Level:
    """By the thresholds that ``Verdict`` states."""
    assert verdict.to_full is not None
    assert verdict.from_full is not None
    assert verdict.pareto_k is not None
    assert verdict.threshold is not None
    if verdict.is_bound:
        # The posterior of all data is far from the proposals: what is not far by any of these numbers may be near.
        return Level.POOR if verdict.to_full.lower > MOST_FOR_REWEIGHTING else Level.NOT_KNOWN
    if not verdict.pareto_k <= verdict.threshold:
        return Level.POOR
    if max(verdict.to_full.upper, verdict.from_full.upper) <= MOST_FOR_GOOD:
        return Level.GOOD
    return Level.USABLE if verdict.from_full.upper <= MOST_FOR_REWEIGHTING else Level.POOR
