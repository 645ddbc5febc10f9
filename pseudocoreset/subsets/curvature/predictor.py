"""Whether a likelihood depends on the inputs through one linear predictor, and the line that it is."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.models import Model
from pseudocoreset.subsets.curvature.density import Density
from pseudocoreset.subsets.curvature.mode import FullPosterior

__all__ = ["NotLinearError", "Predictor", "find_predictor"]

NUM_ROWS = 32  # at which the program is tried
SAME = 1e-7  # relative difference of numbers that are one number


class NotLinearError(ValueError):
    """A likelihood without one linear predictor; the text says why."""


@dataclass(frozen=True, eq=False)
class Predictor:
    """The function values f(x) = offset + J(x)' theta of some parameters, with J(x) = constant + slopes @ x[columns].

    Attributes:
        columns: of the flattened inputs that J is affine in and nothing else depends on.
        template: (p,) a row of inputs: what is not in ``columns`` stays as it is here, an offset or a number of trials.
        linear: the parameters theta that f depends on, places among all.
        direct: the parameters that the likelihood depends on beside f, a noise scale say.
        offset: of f, at the template.
        constant: (len(linear),).
        slopes: (len(linear), len(columns)).
        scales: (len(columns),), of the data.
        centre: (len(columns),), of the data.
    """

    columns: np.ndarray
    template: np.ndarray
    linear: np.ndarray
    direct: np.ndarray
    offset: float
    constant: np.ndarray
    slopes: np.ndarray
    scales: np.ndarray
    centre: np.ndarray

    def inputs(self, gradients: np.ndarray) -> np.ndarray:
        """Inputs (m, p) whose J are the rows of ``gradients`` (m, len(linear)), as near to the centre as can be."""
        moves = np.linalg.lstsq(
            self.slopes * self.scales, (gradients - self.constant - self.slopes @ self.centre).T, rcond=1e-12
        )[0].T
        rows = np.repeat(self.template[None], len(gradients), axis=0)
        rows[:, self.columns] = self.centre + self.scales * moves
        return rows


def find_predictor(density: Density, posterior: FullPosterior) -> Predictor:
    """The linear predictor of a program with a site ``"f"``, found by derivatives at some rows and parameters.

    Raises:
        NotLinearError: if there is none.
    """
    model = density.model
    _check_kind(density)
    x, y = density.rows(density.some_rows(NUM_ROWS))
    shape = x.shape[1:]
    flat = x.reshape(len(x), -1)
    noise = np.random.default_rng(0).normal(size=(2, density.num_params)) @ posterior.factor.T
    vectors = posterior.mode + np.concatenate([np.zeros((1, density.num_params)), noise])
    with density.precision():
        slopes = [np.asarray(_slopes(model, jnp.asarray(v), x)) for v in vectors]
        scale = np.max(np.abs(slopes[0]), axis=0) + 1e-300
        if not all(np.allclose(other / scale, slopes[0] / scale, rtol=0, atol=SAME) for other in slopes):
            raise NotLinearError("its function values 'f' are not linear in the parameters")
        direct = np.flatnonzero(np.any(np.asarray(_direct_slopes(model, jnp.asarray(vectors[1]), x, y)) != 0, axis=0))
        linear = np.flatnonzero(np.any(slopes[0] != 0, axis=0))
        if set(linear) & set(direct):
            raise NotLinearError("a parameter acts on the likelihood both through 'f' and beside it")
        columns = _free_columns(density, vectors[1], x, y)
    if not len(columns):
        raise NotLinearError("no column of floats acts through 'f' alone")
    some = flat[:, np.setdiff1d(np.arange(flat.shape[1]), columns)]
    spread = np.std(some, axis=0)
    distance = np.sum(np.abs(some - np.median(some, axis=0)) / np.where(spread > 0, spread, 1.0), axis=1)
    template = flat[int(np.argmin(distance))].copy()
    centre, scales = _moments(density, columns)
    template[columns] = centre

    def slopes_at(free: np.ndarray) -> np.ndarray:
        rows = np.repeat(template[None], len(free), axis=0)
        rows[:, columns] = free
        with density.precision():
            return np.asarray(_slopes(model, jnp.asarray(posterior.mode), rows.reshape(-1, *shape)))[:, linear]

    units = slopes_at(centre + np.concatenate([np.zeros((1, len(columns))), np.diag(scales)]))
    gradient = (units[1:] - units[0]).T / scales
    constant = units[0] - gradient @ centre
    found = slopes_at(flat[:, columns])
    expected = constant + flat[:, columns] @ gradient.T
    scale = np.max(np.abs(found), axis=0) + 1e-300
    if not np.allclose(found / scale, expected / scale, rtol=0, atol=SAME):
        raise NotLinearError("its function values 'f' are not linear in the columns of x")
    with density.precision():
        value = float(_values(model, jnp.asarray(posterior.mode), template.reshape(1, *shape))[0])
    offset = value - float(units[0] @ posterior.mode[linear])
    return Predictor(columns, template, linear, direct, offset, constant, gradient, scales, centre)


def _check_kind(density: Density) -> None:
    model = density.model
    if not model.has_function:
        raise NotLinearError("the program has no site 'f' that names its function values")
    if model.num_outputs != 1:
        raise NotLinearError(f"its function values 'f' have {model.num_outputs} columns")
    if len(model.datum_structs[1].shape) != 0:
        raise NotLinearError("a target has more than one number")
    if density.data.num_classes is not None and density.data.num_classes > 2:
        raise NotLinearError(f"there are {density.data.num_classes} classes")
    if not density.is_double:
        raise NotLinearError("the program does not run in float64")


def _free_columns(density: Density, vector: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Columns of floats that neither the offset of f nor the likelihood at a fixed f depends on."""
    layout = density.data.train.layout
    width = int(np.prod(x.shape[1:]))
    is_float = np.ones(width, bool) if layout is None else layout.is_learned()
    spread = np.std(x.reshape(len(x), -1), axis=0)
    steps = np.where(spread > 0, spread, 1.0)
    moves = np.asarray(_moves(density.model, jnp.asarray(vector), jnp.asarray(steps), x, y))
    return np.flatnonzero(is_float & ~(moves > SAME))  # what is not a number at a step is not smooth, and not moved


def _moments(density: Density, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, _ = density.rows(density.some_rows(5000))
    some = x.reshape(len(x), -1)[:, columns]
    scales = np.std(some, axis=0)
    return np.mean(some, axis=0), np.where(scales > 0, scales, np.maximum(np.abs(some[0]), 1e-3))


def _value(model: Model, vector: jax.Array, x: jax.Array) -> jax.Array:
    return model.apply(model.unflatten(vector), x[None])[0, 0]


@functools.partial(jax.jit, static_argnums=0)
def _values(model: Model, vector: jax.Array, x: Any) -> jax.Array:
    return jax.vmap(lambda a: _value(model, vector, a))(jnp.asarray(x))


@functools.partial(jax.jit, static_argnums=0)
def _slopes(model: Model, vector: jax.Array, x: Any) -> jax.Array:
    return jax.vmap(lambda a: jax.grad(lambda v: _value(model, v, a))(vector))(jnp.asarray(x))


@functools.partial(jax.jit, static_argnums=0)
def _direct_slopes(model: Model, vector: jax.Array, x: Any, y: Any) -> jax.Array:
    """Gradients of the log-likelihoods of rows at fixed f."""

    def of_row(a: jax.Array, b: jax.Array) -> jax.Array:
        f = _value(model, vector, a)
        return jax.grad(
            lambda v: model.function_log_likelihood(model.unflatten(v), f[None, None], a[None], b[None])[0]
        )(vector)

    return jax.vmap(of_row)(jnp.asarray(x), jnp.asarray(y))


@functools.partial(jax.jit, static_argnums=0)
def _moves(model: Model, vector: jax.Array, steps: jax.Array, x: Any, y: Any) -> jax.Array:
    """How far a step in each column moves the offset of f, and the log-likelihood at a fixed f: the largest."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    params = model.unflatten(vector)

    def parts(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        offsets = jax.vmap(lambda a: _value(model, vector, a) - jax.grad(_value, 1)(model, vector, a) @ vector)(rows)
        return offsets, model.function_log_likelihood(params, f, rows, y)

    f = model.apply(params, x)
    before = parts(x)

    def moved(column: jax.Array) -> jax.Array:
        rows = x.reshape(len(x), -1).at[:, column].add(steps[column]).reshape(x.shape)
        differences = [jnp.abs(a - b) / (1 + jnp.abs(b)) for a, b in zip(parts(rows), before, strict=True)]
        largest = jnp.max(jnp.stack(differences))
        return jnp.where(jnp.isnan(largest), jnp.inf, largest)

    return jax.lax.map(moved, jnp.arange(len(steps)))
