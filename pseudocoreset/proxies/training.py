"""Short trainings that proxies and objectives share: gradient descent on the mean loss of batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pseudocoreset.chunks import over_data, sum_over_data
from pseudocoreset.models import Model, Params
from pseudocoreset.rows import Rows

__all__ = ["BatchFn", "descend", "mean_loss", "mean_loss_and_gradient"]

BatchFn = Callable[[jax.Array], Rows]


def mean_loss(model: Model, params: Params, batch: Rows) -> jax.Array:
    """Weighted mean negative log-likelihood of a batch."""
    x, y, weights = batch
    return -jnp.sum(weights * model.log_likelihood(params, x, y)) / jnp.sum(weights)


def mean_loss_and_gradient(model: Model, params: Params, batch: Rows, **how: bool) -> tuple[jax.Array, Params]:
    """``mean_loss`` and its gradient in the parameters, a few data at a time.

    Args:
        model: the model.
        params: where.
        batch: the data.
        **how: ``shared`` (``over_data``).
    """
    x, y, weights = batch
    mass = jnp.sum(weights)

    def part(data: tuple[jax.Array, jax.Array], some: jax.Array) -> tuple[jax.Array, Params]:
        return jax.value_and_grad(lambda p: -jnp.sum(some * model.log_likelihood(p, *data)) / mass)(params)

    return sum_over_data(model, part, (x, y), weights, **how)


def gradient_and_values(model: Model, params: Params, batch: Rows, **how: bool) -> tuple[Params, jax.Array]:
    """The gradient of ``mean_loss``, and the function values (n, d) that it passes through, in the same way."""
    x, y, weights = batch
    mass = jnp.sum(weights)

    def part(data: tuple[jax.Array, jax.Array], some: jax.Array) -> tuple[Params, jax.Array]:
        def loss(p: Params) -> tuple[jax.Array, jax.Array]:
            values = model.apply(p, data[0])
            return -jnp.sum(some * model.function_log_likelihood(p, values, *data)) / mass, values

        return jax.grad(loss, has_aux=True)(params)

    return over_data(model, part, (x, y), weights, **how)


def descend(
    model: Model,
    params: Params,
    key: jax.Array,
    batch: BatchFn,
    *,
    num_steps: int,
    learning_rate: float | jax.Array,
    visit: Callable[[Any, Params], Any] | None = None,
    look: Callable[[Any, jax.Array], Any] | None = None,
    visited: Any = None,
    **how: bool,
) -> tuple[Params, Any]:
    """Gradient descent.

    Args:
        model: the model.
        params: where to start.
        key: one typed key; step k takes ``batch`` of the k-th key split off it.
        batch: a batch of a key.
        num_steps: number of steps.
        learning_rate: on the mean loss.
        visit: ``(visited, params) -> visited``, called after every step.
        look: ``(visited, values) -> visited``, called in every step with the function values (n, d) of its batch before
            the step, for nothing more than its gradient costs; those of a device alone if ``shared`` and not
            ``gathered``.
        visited: the first argument of both at the start.
        **how: ``shared`` and ``gathered`` (``over_data``).

    Returns:
        The last parameters and what ``visit`` and ``look`` accumulated.
    """

    def step(carry: tuple[Params, Any], step_key: jax.Array) -> tuple[tuple[Params, Any], None]:
        p, seen = carry
        if look is None:
            _, gradient = mean_loss_and_gradient(model, p, batch(step_key), **how)
        else:
            gradient, values = gradient_and_values(model, p, batch(step_key), **how)
            seen = look(seen, values)
        p = jax.tree.map(lambda a, g: a - learning_rate * g, p, gradient)
        return (p, seen if visit is None else visit(seen, p)), None

    (params, visited), _ = jax.lax.scan(step, (params, visited), jax.random.split(key, num_steps))
    return params, visited
