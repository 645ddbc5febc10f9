"""Centres for control variates: modes of the full log density, found by L-BFGS."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pseudocoreset.inference.engine import Plan
from pseudocoreset.models import Params
from pseudocoreset.rows import Rows

__all__ = ["find_centres", "full_gradients"]

MAX_ITERATIONS = 300
# Of the gradient of the log density per unit of weight: far below what the noise of a chain can tell from the mode.
TOLERANCE = 1e-5


@functools.partial(jax.jit, static_argnames="plan")
def find_centres(plan: Plan, positions: Params, data: Rows) -> Params:
    """The point that L-BFGS comes to from the position of each chain, on the full log density, in chunks.

    At most 300 iterations of ``optax.lbfgs`` with its zoom line search, until the norm of the gradient, divided by
    the sum of the weights, is below 1e-5. Any point is a valid centre; one near the mode of a posterior that is
    concentrated there makes gradient estimates precise.
    """
    scale = jnp.maximum(jnp.sum(data.weights), 1.0)
    solver = optax.lbfgs()

    def chain(position: Params, rows: Rows, scale: jax.Array) -> Params:
        density = plan.density(rows)

        def loss(params: Params) -> jax.Array:
            return -density.log_density(params, rows) / scale

        value_and_gradient = optax.value_and_grad_from_state(loss)

        def goes_on(carry: Any) -> jax.Array:
            _, _, norm, count = carry
            return (count < MAX_ITERATIONS) & (norm > TOLERANCE)

        def iterate(carry: Any) -> Any:
            params, state, _, count = carry
            value, gradient = value_and_gradient(params, state=state)
            updates, state = solver.update(gradient, state, params, value=value, grad=gradient, value_fn=loss)
            moved = optax.apply_updates(params, updates)
            is_finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(moved)]))
            params = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), moved, params)
            norm = jnp.where(is_finite, optax.tree.norm(gradient), 0.0)
            return params, state, norm.astype(value.dtype), count + 1

        value = loss(position)
        start = position, solver.init(position), jnp.full((), jnp.inf, value.dtype), jnp.zeros((), jnp.int32)
        return jax.lax.while_loop(goes_on, iterate, start)[0]

    return plan.devices.map(chain, positions, data, scale)


@functools.partial(jax.jit, static_argnames="plan")
def full_gradients(plan: Plan, positions: Params, data: Rows) -> Params:
    """The gradient of the full log density at the position of each chain."""
    return plan.devices.map(lambda position, rows: plan.density(rows).gradient(position, rows), positions, data)
