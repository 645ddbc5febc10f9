"""Short trainings that proxies and objectives share: gradient descent on the mean loss of batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pseudocoreset.compute.devices import Devices
from pseudocoreset.models import Model, Params
from pseudocoreset.rows import Rows

__all__ = ["BatchFn", "descend", "mean_loss", "mean_loss_and_gradient"]

BatchFn = Callable[[jax.Array], Rows]


def mean_loss(model: Model, params: Params, batch: Rows) -> jax.Array:
    """Weighted mean negative log-likelihood of a batch."""
    x, y, weights = batch
    return -jnp.sum(weights * model.log_likelihood(params, x, y)) / jnp.sum(weights)


def mean_loss_and_gradient(
    model: Model, params: Params, batch: Rows, devices: Devices | None = None
) -> tuple[jax.Array, Params]:
    """``mean_loss`` and its gradient in the parameters, a few data at a time.

    Args:
        model: the model.
        params: where.
        batch: the data.
        devices: that may share the data; the default one if None.
    """
    mass = jnp.sum(batch.weights)

    def part(some: Rows) -> tuple[jax.Array, Params]:
        def loss(p: Params) -> jax.Array:
            return -jnp.sum(some.weights * model.log_likelihood(p, some.inputs, some.targets)) / mass

        return jax.value_and_grad(loss)(params)

    return (devices or Devices()).for_rows_of(model).sum_rows(part, batch)


def gradient_and_values(
    model: Model, params: Params, batch: Rows, devices: Devices | None = None
) -> tuple[Params, jax.Array]:
    """The gradient of ``mean_loss``, and the function values (n, d) that it passes through, in the same way."""
    mass = jnp.sum(batch.weights)

    def part(some: Rows) -> tuple[Params, jax.Array]:
        def loss(p: Params) -> tuple[jax.Array, jax.Array]:
            values = model.apply(p, some.inputs)
            each = model.function_log_likelihood(p, values, some.inputs, some.targets)
            return -jnp.sum(some.weights * each) / mass, values

        return jax.grad(loss, has_aux=True)(params)

    return (devices or Devices()).for_rows_of(model).sum_rows(part, batch, has_aux=True)


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
    devices: Devices | None = None,
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
            the step, for nothing more than its gradient costs; of devices that share rows each sees its own.
        visited: the first argument of both at the start.
        devices: that may share the data of a batch; the default one if None.

    Returns:
        The last parameters and what ``visit`` and ``look`` accumulated.
    """

    def step(carry: tuple[Params, Any], step_key: jax.Array) -> tuple[tuple[Params, Any], None]:
        p, seen = carry
        if look is None:
            _, gradient = mean_loss_and_gradient(model, p, batch(step_key), devices)
        else:
            gradient, values = gradient_and_values(model, p, batch(step_key), devices)
            seen = look(seen, values)
        p = jax.tree.map(lambda a, g: a - learning_rate * g, p, gradient)
        return (p, seen if visit is None else visit(seen, p)), None

    (params, visited), _ = jax.lax.scan(step, (params, visited), jax.random.split(key, num_steps))
    return params, visited
