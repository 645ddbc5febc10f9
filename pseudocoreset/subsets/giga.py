"""Hilbert coresets by greedy iterative geodesic ascent (GIGA; Campbell and Broderick 2018)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.batching import map_stack
from pseudocoreset.device import DeviceData
from pseudocoreset.methods.base import Callback, Problem
from pseudocoreset.models import Gaussian, Model
from pseudocoreset.objectives import CoresetArrays
from pseudocoreset.subsets.base import Choice, Chosen, gaussian_posteriors, one_model, quota_of, ratio, subset_of
from pseudocoreset.validation import check_integer

__all__ = ["GIGA", "geodesic_ascent"]

CHUNK = 4096  # data whose log-likelihoods are computed together
SMALLEST_SINE = 1e-3  # of the angle to the coreset, below which a direction in float32 is noise


@dataclass(frozen=True, kw_only=True, eq=False)
class GIGA(Chosen):
    """Hilbert coreset by greedy iterative geodesic ascent (Campbell and Broderick 2018).

    The log-likelihoods of datum i at S draws of a Gaussian, centred, are a vector L_i: a random projection of the
    log-likelihood function. On the unit sphere the coreset starts at the datum nearest the direction of
    L = sum_i L_i, and each step goes along the geodesic to the datum that leads there most directly, to the nearest
    point on it; at the end the weights are scaled to the smallest |sum_j w_j L_j - L|.

    The coreset has the points whose weight is positive, at most as many as asked for. Its history has ``error``,
    |sum_j w_j L_j - L| / |L| after each step. For one model of a few parameters.

    Attributes:
        posterior: where the draws come from: a ``Gaussian`` over ``model.flatten`` of the parameters, or that of the
            full data, ``"conjugate"``, ``"laplace"`` or None for what there is (the optimally tuned projector).
        num_draws: S, the dimension of the projection.
    """

    name: ClassVar[str] = "giga"

    posterior: Gaussian | str | None = None
    num_draws: int = 100

    def check(self) -> None:
        check_integer(self.num_draws, "num_draws", minimum=2)

    def choose(self, problem: Problem, callbacks: tuple[Callback, ...], progress: bool) -> Choice:
        model, data = one_model(problem), problem.data
        groups, quota = quota_of(problem)
        device = DeviceData.from_dataset(data)
        init_key, draw_key = jax.random.split(problem.key)
        gaussian, settings = self._source(model, device, init_key)
        draws = jax.vmap(gaussian.sample)(jax.random.split(draw_key, self.num_draws))
        vectors = _project(model, draws, device)
        steps = quota * (int(groups.max()) + 1)
        total = float(jnp.linalg.norm(jnp.sum(vectors, axis=0)))
        if not 0 < total < math.inf:
            raise ValueError(f"posterior: the log-likelihood of the data must vary over its draws; its norm is {total}")
        found, errors = geodesic_ascent(vectors, jnp.asarray(groups), quota, steps)
        weights = np.asarray(found)
        indices = np.flatnonzero(weights > 0)
        coreset = subset_of(data, indices, weights[indices])
        return Choice(coreset, {"error": np.asarray(errors)}, {**settings, "num_draws": self.num_draws})

    def _source(self, model: Model, device: DeviceData, key: jax.Array) -> tuple[Gaussian, dict[str, Any]]:
        """The Gaussian that draws come from, and what to record of it."""
        given = self.posterior
        if isinstance(given, Gaussian):
            if given.mean.shape != (model.num_params,):
                raise ValueError(
                    f"posterior must be a Gaussian over the {model.num_params} parameters of {model.name!r}; got a "
                    f"mean of shape {given.mean.shape}"
                )
            return given, {"proxy": "given"}
        posteriors = gaussian_posteriors(model, given, "posterior")
        x, y = device.batch(jnp.zeros(1, jnp.int32))
        state = posteriors.init(key, CoresetArrays(x, y, jnp.zeros(1, x.dtype)), device)
        return state[0], posteriors.settings


@functools.partial(jax.jit, static_argnums=0)
def _project(model: Model, draws: jax.Array, data: DeviceData) -> jax.Array:
    """L (n, S): log-likelihoods at draws (S, p), centred over them, over sqrt(S)."""
    size = min(CHUNK, data.num_data)

    def of_chunk(start: jax.Array) -> jax.Array:
        x, y = data.batch(jnp.minimum(start + jnp.arange(size), data.num_data - 1))
        return map_stack(lambda draw: model.log_likelihood(model.unflatten(draw), x, y), draws).T

    starts = jnp.arange(math.ceil(data.num_data / size)) * size
    rows = jax.lax.map(of_chunk, starts).reshape(-1, len(draws))[: data.num_data]
    return (rows - jnp.mean(rows, axis=1, keepdims=True)) / jnp.sqrt(jnp.asarray(len(draws), rows.dtype))


class _Ascent(NamedTuple):
    weights: jax.Array  # (n,), of the unit vectors
    direction: jax.Array  # (S,), their weighted sum: a unit vector, zero at the start
    error: jax.Array  # distance of the target to the line along ``direction``


@functools.partial(jax.jit, static_argnums=(2, 3))
def geodesic_ascent(vectors: jax.Array, groups: jax.Array, quota: int, steps: int) -> tuple[jax.Array, jax.Array]:
    """Weights (n,) and the relative error after each step, with at most ``quota`` points of each group (n,)."""
    total = jnp.sum(vectors, axis=0)
    target = total / jnp.linalg.norm(total)
    norms = jnp.linalg.norm(vectors, axis=1)
    units = ratio(vectors, norms[:, None])

    def off(vector: jax.Array, direction: jax.Array) -> jax.Array:
        """The part of a vector at right angles to a unit vector; as a difference of vectors, which keeps digits."""
        return vector - (vector @ direction) * direction

    def step(state: _Ascent, _: None) -> tuple[_Ascent, jax.Array]:
        tangent = off(target, state.direction)
        cosines = units @ state.direction
        sines = jnp.sqrt(jnp.maximum(1.0 - cosines**2, 0.0))
        taken = state.weights > 0
        full = jnp.zeros(len(groups), jnp.int32).at[groups].add(taken) >= quota
        usable = (norms > 0) & (sines > SMALLEST_SINE) & (taken | ~full[groups])
        best = jnp.argmax(jnp.where(usable, (units @ tangent) / jnp.maximum(sines, SMALLEST_SINE), -jnp.inf))
        towards = tangent @ units[best]
        back = off(target, units[best]) @ state.direction
        share = towards / (towards + back)
        moved = (1.0 - share) * state.direction + share * units[best]
        length = jnp.linalg.norm(moved)
        weights = ((1.0 - share) * state.weights).at[best].add(share) / length
        error = jnp.linalg.norm(off(target, moved / length))
        # Where rounding is all that is left a step does harm.
        better = usable[best] & (towards > 0) & (back >= 0) & (error < state.error)
        proposal = _Ascent(weights, moved / length, error)
        state = jax.tree.map(lambda new, old: jnp.where(better, new, old), proposal, state)
        return state, state.error

    begin = _Ascent(jnp.zeros_like(norms), jnp.zeros_like(target), jnp.full_like(norms[0], jnp.inf))
    state, errors = jax.lax.scan(step, begin, None, length=steps)
    weights = ratio(state.weights, norms)
    reached = weights @ vectors
    return weights * (reached @ total) / (reached @ reached), errors
