"""Targets and weights at given predictors, such that score and curvature of the likelihood come out as wanted."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.models import Model
from pseudocoreset.subsets.curvature.density import Density
from pseudocoreset.subsets.curvature.nnls import non_negative_least_squares
from pseudocoreset.subsets.curvature.predictor import Predictor

__all__ = ["Atoms", "Likelihood", "Wanted"]

NUM_TARGETS = 97  # of a grid, between which a target is searched for
NUM_TRIED = 33  # of those, that a likelihood with parameters beside its predictor takes its pick of
HALVINGS = 80
SOLVED = 1e-9
FACTORS = np.geomspace(0.2, 5.0, 61)  # of a length, among which one is searched for that suits an integer
STEPS = np.array([-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0])


class Wanted(NamedTuple):
    """What m points are to have, in units of the posterior.

    curvature
        (m,), of the sum over the atoms of a point of w kappa.
    score
        (m,), of w s.
    mixed
        (m, k), of w times the mixed derivatives by predictor and direct parameters, negative.
    direct_score
        (k,), of all points.
    direct_curvature
        (k, k), of all points.
    """

    curvature: np.ndarray
    score: np.ndarray
    mixed: np.ndarray
    direct_score: np.ndarray
    direct_curvature: np.ndarray


class Atoms(NamedTuple):
    """Weighted targets: of which point, the target, or the probability of the second class, and the weight."""

    points: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True, eq=False)
class Likelihood:
    """The likelihood of one target at predictor values, at a template of inputs.

    Attributes:
        density: of the model.
        predictor: with the template.
        mode: (d,), of all data.
        scales: (k,), of the direct parameters.
    """

    density: Density
    predictor: Predictor
    mode: np.ndarray
    scales: np.ndarray

    @property
    def has_classes(self) -> bool:
        """Whether targets are two classes."""
        return self.density.data.num_classes is not None

    def derivatives(self, predictors: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gradients (b, 1 + k) and negative Hessians (b, 1 + k, 1 + k) in predictor and direct parameters.

        Not a number for targets that the likelihood cannot have.
        """
        shape = self.density.model.datum_structs[0].shape
        x = self.predictor.template.reshape(shape)
        targets = targets.astype(np.int32) if self.has_classes else np.asarray(targets, np.float64)
        with self.density.precision():
            found = _derivatives(
                self.density.model, jnp.asarray(self.mode), jnp.asarray(self.predictor.direct), predictors, targets, x
            )
            gradients, hessians = (np.asarray(part) for part in found)
        units = np.concatenate([[1.0], self.scales])
        return gradients * units, -hessians * units[:, None] * units

    @functools.cached_property
    def is_discrete(self) -> bool:
        """Whether targets are integers."""
        return bool(self._observed(np.zeros(1))["fn"].is_discrete)

    def grid(self, count: int) -> np.ndarray:
        """Targets over the range of the data and beyond, as far as the support goes."""
        if self.has_classes:
            return np.array([0.0, 1.0])
        y = self.density.data.train.y.astype(np.float64)
        low, high = float(y.min()), float(y.max())
        width = max(high - low, 1e-3 * abs(high), 1e-6)
        quantiles = np.quantile(y, np.linspace(0, 1, count // 3))
        found = np.union1d(quantiles, np.linspace(low - 3 * width, high + 3 * width, count - len(quantiles)))
        if low >= 0:
            found = np.union1d(found[found >= low / 2], np.geomspace(max(low, 1e-3 * width), high + 3 * width, 9))
        if self.is_discrete:
            found = np.unique(np.concatenate([np.floor(found), np.arange(np.floor(low), np.floor(low) + 9)]))
        return found[self.is_in_support(found)]

    def _observed(self, targets: np.ndarray) -> dict[str, Any]:
        """The observed site at the template."""
        model = self.density.model
        shape = (len(targets), *model.datum_structs[0].shape)
        x = np.broadcast_to(self.predictor.template.reshape(shape[1:]), shape)
        params = model.unflatten(jnp.asarray(self.mode))
        site: dict[str, Any] = model.trace(params, jnp.asarray(x), jnp.asarray(targets))[0][model.terms[0].name]
        return site

    def is_in_support(self, targets: np.ndarray) -> np.ndarray:
        """Whether targets are in the support at the template."""
        with self.density.precision():
            try:
                inside = self._observed(targets)["fn"].support(jnp.asarray(targets))
            except NotImplementedError:
                return np.ones(len(targets), bool)
            return np.broadcast_to(np.asarray(inside), targets.shape)

    def atoms(self, predictors: np.ndarray, wanted: Wanted) -> Atoms | None:
        """Targets and weights; None where no targets of the support have what is wanted."""
        if len(self.predictor.direct):
            return self._many(predictors, wanted)
        m = len(predictors)
        if self.has_classes:
            pairs = self._pairs(predictors, wanted, np.zeros(m), np.ones(m))
            # One point with probabilities of both classes.
            return None if pairs is None else Atoms(np.arange(m), pairs[:, 1] / pairs.sum(axis=1), pairs.sum(axis=1))
        return self._few(predictors, wanted)

    def _pairs(self, predictors: np.ndarray, wanted: Wanted, low: np.ndarray, high: np.ndarray) -> np.ndarray | None:
        """Weights (m, 2) of two targets at every point: two equations each."""
        each = [self.derivatives(predictors, targets) for targets in (low, high)]
        scores = np.stack([gradients[:, 0] for gradients, _ in each], axis=1)
        curvatures = np.stack([curvatures[:, 0, 0] for _, curvatures in each], axis=1)
        system = np.stack([curvatures, scores], axis=1)
        if not np.all(np.isfinite(system)) or np.any(np.linalg.det(system) == 0):
            return None
        weights = np.linalg.solve(system, np.stack([wanted.curvature, wanted.score], axis=1)[..., None])[..., 0]
        return weights if np.all(weights >= 0) and np.all(weights.sum(axis=1) > 0) else None

    def _few(self, predictors: np.ndarray, wanted: Wanted) -> Atoms | None:
        """The target whose score over curvature is the wanted one, or the two integers about it."""
        m, ratio = len(predictors), wanted.score / wanted.curvature
        bracket = self._bracket(predictors, ratio)
        if bracket is None:
            return None
        low, high = bracket
        if self.is_discrete:
            pairs = self._pairs(predictors, wanted, low, high)
            if pairs is None:
                return None
            weights, targets = pairs.ravel(), np.stack([low, high], axis=1).ravel()
            inside = weights > 1e-12 * np.max(weights)
            return Atoms(np.repeat(np.arange(m), 2)[inside], targets[inside], weights[inside])
        curvature = self._excess(predictors, ratio, high)[1]
        return Atoms(np.arange(m), high, wanted.curvature / curvature) if np.all(curvature > 0) else None

    def _excess(self, predictors: np.ndarray, ratio: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score minus the wanted ratio times curvature, and the curvature."""
        gradients, curvatures = self.derivatives(predictors, targets)
        return gradients[:, 0] - ratio * curvatures[:, 0, 0], curvatures[:, 0, 0]

    def _bracket(self, predictors: np.ndarray, ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Targets (m,) below and above the one that has the ratio: neighbouring integers, or one number."""
        m, grid = len(predictors), self.grid(NUM_TARGETS)
        many = np.repeat(predictors, len(grid)), np.repeat(ratio, len(grid)), np.tile(grid, m)
        values, curvatures = (a.reshape(m, -1) for a in self._excess(*many))
        usable = np.isfinite(values) & (curvatures > 0)
        crosses = (values[:, :-1] * values[:, 1:] <= 0) & usable[:, :-1] & usable[:, 1:]
        if not np.all(crosses.any(axis=1)):
            return None
        first = np.argmax(crosses, axis=1)
        low, high = grid[first], grid[first + 1]
        sign = np.sign(values[np.arange(m), first] - values[np.arange(m), first + 1])
        for _ in range(HALVINGS):
            middle = np.floor((low + high) / 2) if self.is_discrete else (low + high) / 2
            if np.all((middle == low) | (middle == high)):
                break
            above = sign * self._excess(predictors, ratio, middle)[0] > 0
            moves = middle != low
            low, high = np.where(moves & above, middle, low), np.where(moves & ~above, middle, high)
        return low, high

    def aligned(self, lengths: np.ndarray, slopes: np.ndarray, scores: np.ndarray) -> np.ndarray | None:
        """Lengths c (m,) near the given ones at which one integer has the ratio c * scores at predictor c * slopes.

        None for targets that are no integers, or where there are no such lengths nearby.
        """
        if not self.is_discrete or self.has_classes or len(self.predictor.direct):
            return None
        bracket = self._bracket(self.predictor.offset + lengths * slopes, lengths * scores)
        if bracket is None:
            return None
        for targets in bracket:
            found = self._near(lengths, slopes, scores, targets)
            if found is not None:
                return found
        return None

    def _near(
        self, lengths: np.ndarray, slopes: np.ndarray, scores: np.ndarray, targets: np.ndarray
    ) -> np.ndarray | None:
        """Lengths (m,) near the given ones at which the targets have the ratio."""
        m, count = len(lengths), len(FACTORS)
        tried = lengths[:, None] * FACTORS
        flat = [np.repeat(a, count) for a in (slopes, scores, targets)]
        values = self._at(tried.ravel(), *flat).reshape(m, -1)
        crosses = (values[:, :-1] * values[:, 1:] <= 0) & np.isfinite(values[:, :-1] * values[:, 1:])
        if not np.all(crosses.any(axis=1)):
            return None
        middle_place = count // 2 - 0.5
        first = np.argmax(np.where(crosses, count - np.abs(np.arange(count - 1) - middle_place), -1.0), axis=1)
        low, high = tried[np.arange(m), first], tried[np.arange(m), first + 1]
        sign = np.sign(values[np.arange(m), first] - values[np.arange(m), first + 1])
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            above = sign * self._at(middle, slopes, scores, targets) > 0
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return low

    def _at(self, lengths: np.ndarray, slopes: np.ndarray, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return self._excess(self.predictor.offset + lengths * slopes, lengths * scores, targets)[0]

    def _many(self, predictors: np.ndarray, wanted: Wanted) -> Atoms | None:
        """Several targets at every point, by non-negative least squares over a grid of them."""
        m, k = len(predictors), len(self.predictor.direct)
        targets = np.repeat(self.grid(NUM_TRIED)[None], m, axis=0)
        if not self.has_classes:
            # Where a predictor is out of the range of the targets, as a line may be, those near it.
            spread = float(np.std(self.density.data.train.y)) or 1.0
            near = predictors[:, None] + spread * STEPS
            near = np.round(near) if self.is_discrete else near
            targets = np.concatenate([targets, near], axis=1)
        places = np.repeat(np.arange(m), targets.shape[1])
        flat = targets.ravel()
        gradients, curvatures = self.derivatives(predictors[places], flat)
        usable = np.all(np.isfinite(gradients), axis=1) & np.all(np.isfinite(curvatures), axis=(1, 2))
        usable &= self.is_in_support(flat)
        places, flat, gradients, curvatures = (a[usable] for a in (places, flat, gradients, curvatures))
        own = (np.arange(m)[:, None] == places).astype(float)
        one, two = np.triu_indices(k)
        columns = np.concatenate(
            [
                own / wanted.curvature[:, None] * curvatures[:, 0, 0],
                own / np.sqrt(wanted.curvature)[:, None] * gradients[:, 0],
                *(own / np.sqrt(wanted.curvature)[:, None] * curvatures[:, 0, 1 + i] for i in range(k)),
                gradients[:, 1:].T,
                curvatures[:, 1 + one, 1 + two].T,
            ]
        )
        target = np.concatenate(
            [
                np.ones(m),
                wanted.score / np.sqrt(wanted.curvature),
                *(wanted.mixed[:, i] / np.sqrt(wanted.curvature) for i in range(k)),
                wanted.direct_score,
                wanted.direct_curvature[one, two],
            ]
        )
        found = non_negative_least_squares(columns, target, tolerance=SOLVED / 10)
        if found.residual > SOLVED:
            return None
        inside = found.weights > 0
        return Atoms(places[inside], flat[inside], found.weights[inside])


@functools.partial(jax.jit, static_argnums=0)
def _derivatives(
    model: Model, mode: jax.Array, direct: jax.Array, predictors: Any, targets: Any, x: Any
) -> tuple[jax.Array, jax.Array]:
    x = jnp.asarray(x)

    def one(predictor: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        def log_likelihood(at: jax.Array) -> jax.Array:
            params = model.unflatten(mode.at[direct].set(at[1:]))
            return model.function_log_likelihood(params, at[:1, None], x[None], target[None])[0]

        at = jnp.concatenate([predictor[None], mode[direct]])
        return jax.grad(log_likelihood)(at), jax.hessian(log_likelihood)(at)

    return jax.vmap(one)(jnp.asarray(predictors), jnp.asarray(targets))
