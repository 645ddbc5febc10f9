"""Short trainings that proxies and objectives share: gradient descent on the mean loss of batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pseudocoreset.chunks import sum_over_data
from pseudocoreset.models import Model, Params

__all__ = ["Batch", "BatchFn", "descend", "mean_loss", "mean_loss_and_gradient"]

Batch = tuple[jax.Array, jax.Array, jax.Array]  # inputs, targets, weights
BatchFn = Callable[[jax.Array], Batch]


def mean_loss(model: Model, params: Params, batch: Batch) -> jax.Array:
    """Weighted mean negative log-likelihood of a batch."""
    x, y, weights = batch
    return -jnp.sum(weights * model.log_likelihood(params, x, y)) / jnp.sum(weights)


def mean_loss_and_gradient(
    model: Model, params: Params, batch: Batch, *, shared: bool = False
) -> tuple[jax.Array, Params]:
    """``mean_loss`` and its gradient in the parameters, a few data at a time.

    Args:
        model: the model.
        params: where.
        batch: inputs, targets and weights.
        shared: whether the devices along the axis ``"data"`` share the batch (``over_data``).
    """
    x, y, weights = batch
    mass = jnp.sum(weights)

    def part(data: tuple[jax.Array, jax.Array], some: jax.Array) -> tuple[jax.Array, Params]:
        return jax.value_and_grad(lambda p: -jnp.sum(some * model.log_likelihood(p, *data)) / mass)(params)

    return sum_over_data(model, part, (x, y), weights, shared=shared)


def descend(
    model: Model,
    params: Params,
    key: jax.Array,
    batch: BatchFn,
    *,
    num_steps: int,
    learning_rate: float | jax.Array,
    visit: Callable[[Any, Params], Any] | None = None,
    visited: Any = None,
    shared: bool = False,
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
        visited: its first argument at the start.
        shared: whether the devices along the axis ``"data"`` share each batch (``over_data``).

    Returns:
        The last parameters and what ``visit`` accumulated.
    """

    def step(carry: tuple[Params, Any], step_key: jax.Array) -> tuple[tuple[Params, Any], None]:
        p, seen = carry
        _, gradient = mean_loss_and_gradient(model, p, batch(step_key), shared=shared)
        p = jax.tree.map(lambda a, g: a - learning_rate * g, p, gradient)
        return (p, seen if visit is None else visit(seen, p)), None

    (params, visited), _ = jax.lax.scan(step, (params, visited), jax.random.split(key, num_steps))
    return params, visited
