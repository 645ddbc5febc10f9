"""Hilbert coresets by greedy iterative geodesic ascent (GIGA; Campbell and Broderick 2018)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.methods.base import Callback, Problem
from pseudocoreset.models import Gaussian, Model
from pseudocoreset.objectives.posteriors import gaussian_posteriors
from pseudocoreset.rows import Rows
from pseudocoreset.subsets.base import Choice, Chosen, one_model, quota_of, subset_of
from pseudocoreset.validation import check_integer

__all__ = ["GIGA", "geodesic_ascent"]

CHUNK = 4096  # data whose log-likelihoods are computed together
SMALLEST_SINE = 1e-3  # of the angle to the coreset, below which a direction is noise: log-likelihoods are float32


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
        rows = np.asarray(_project(model, draws, device))
        vectors = (rows - np.mean(rows, axis=1, keepdims=True, dtype=np.float64)) / math.sqrt(self.num_draws)
        steps = quota * (int(groups.max()) + 1)
        total = float(np.linalg.norm(np.sum(vectors, axis=0)))
        if not 0 < total < math.inf:
            raise ValueError(f"posterior: the log-likelihood of the data must vary over its draws; its norm is {total}")
        weights, errors = geodesic_ascent(vectors, groups, quota, steps)
        indices = np.flatnonzero(weights > 0)
        coreset = subset_of(data, indices, weights[indices])
        return Choice(coreset, {"error": errors}, {**settings, "num_draws": self.num_draws})

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
        posteriors = gaussian_posteriors(model, given, "posterior", "posterior= a Gaussian of draws of the posterior")
        x, y = device.batch(jnp.zeros(1, jnp.int32))
        state = posteriors.init(key, Rows(x, y, jnp.zeros(1, x.dtype)), device)
        return state[0], posteriors.settings


@functools.partial(jax.jit, static_argnums=0)
def _project(model: Model, draws: jax.Array, data: DeviceData) -> jax.Array:
    """Log-likelihoods (n, S) at draws (S, p)."""
    size = min(CHUNK, data.num_data)

    def of_chunk(start: jax.Array) -> jax.Array:
        x, y = data.batch(jnp.minimum(start + jnp.arange(size), data.num_data - 1))
        return data.devices.within.map(lambda draw: model.log_likelihood(model.unflatten(draw), x, y), draws).T

    starts = jnp.arange(math.ceil(data.num_data / size)) * size
    return jax.lax.map(of_chunk, starts).reshape(-1, len(draws))[: data.num_data]


def geodesic_ascent(vectors: Any, groups: Any, quota: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n,) and the relative error after each step, with at most ``quota`` points of each group (n,).

    On the host in double precision: at a mode gradients cancel, so that the sum of all vectors is far shorter than they
    are, and what is left of it to reach is lost in single precision after some steps.
    """
    units = np.asarray(vectors, np.float64)
    norms = np.linalg.norm(units, axis=1)
    units = np.divide(units, norms[:, None], out=np.zeros_like(units), where=norms[:, None] > 0)
    groups = np.asarray(groups)
    total = norms @ units
    target = total / np.linalg.norm(total)

    def off(vector: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """The part of a vector at right angles to a unit vector; as a difference of vectors, which keeps digits."""
        return vector - (vector @ direction) * direction

    weights, direction, error = np.zeros(len(norms)), np.zeros_like(target), math.inf  # of the unit vectors
    errors = []
    for _ in range(steps):
        tangent = off(target, direction)
        sines = np.sqrt(np.maximum(1.0 - (units @ direction) ** 2, 0.0))
        taken = weights > 0
        full = np.bincount(groups[taken], minlength=int(groups.max()) + 1) >= quota
        usable = (norms > 0) & (sines > SMALLEST_SINE) & (taken | ~full[groups])
        best = int(np.argmax(np.where(usable, (units @ tangent) / np.maximum(sines, SMALLEST_SINE), -np.inf)))
        towards = tangent @ units[best]
        back = off(target, units[best]) @ direction
        # Where rounding is all that is left a step does harm.
        if usable[best] and towards > 0 and back >= 0:
            share = towards / (towards + back)
            moved = (1.0 - share) * direction + share * units[best]
            length = np.linalg.norm(moved)
            proposed = float(np.linalg.norm(off(target, moved / length)))
            if proposed < error:
                weights *= 1.0 - share
                weights[best] += share
                weights, direction, error = weights / length, moved / length, proposed
        errors.append(error)
    reached = weights @ units
    weights = np.divide(weights, norms, out=np.zeros_like(weights), where=norms > 0)
    return weights * (reached @ total) / (reached @ reached), np.asarray(errors)
