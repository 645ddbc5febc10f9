"""Gradient descent that is differentiated through, by a backward sweep that needs the memory of one step.

For theta_{l+1} = theta_l - alpha g(theta_l, u), g the gradient of a loss in theta, the adjoint lambda_l of theta_l
obeys

    lambda_l = lambda_{l+1} - alpha H lambda_{l+1},   u_bar -= alpha (d g / d u)^T lambda_{l+1},
    alpha_bar -= g . lambda_{l+1},

and both products are one forward derivative, in direction lambda, of the gradient of the loss in (theta, u). Exact, as
reverse mode through the loop is, and without its recomputation (``benchmarks/unrolled.py``). What is kept are the
parameters of every step, or of every sqrt(L)-th.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["KEPT", "descend_through"]

KEPT = ("step", "sqrt")

# (key, parameters, leaves, fixed) -> the loss of one step.
StepLoss = Callable[[jax.Array, Any, Any, Any], jax.Array]


def descend_through(
    loss: StepLoss, start: Any, leaves: Any, step_size: jax.Array, fixed: Any, keys: jax.Array, kept: str = "step"
) -> Any:
    """The parameters after a step of gradient descent for every key, differentiable.

    Args:
        loss: ``(key, parameters, leaves, fixed)`` -> scalar; closes over no traced value.
        start: parameters, a pytree of floats.
        leaves: what else is differentiated, a pytree of floats.
        step_size: alpha, scalar; differentiated too.
        fixed: what is not: any pytree of arrays.
        keys: (L,) typed keys.
        kept: parameters kept for the backward sweep: of every ``"step"``, or ``"sqrt"``: of every sqrt(L)-th, those
            between computed again.
    """
    descend = _adjoint(loss)
    if kept == "step":
        return descend(start, leaves, step_size, fixed, keys)
    count = len(keys)
    length = min((d for d in range(1, count + 1) if count % d == 0), key=lambda d: abs(d - math.sqrt(count)))
    segment = jax.checkpoint(descend)

    def body(params: Any, some: jax.Array) -> tuple[Any, None]:
        return segment(params, leaves, step_size, fixed, some), None

    return jax.lax.scan(body, start, keys.reshape(count // length, length))[0]


def _adjoint(loss: StepLoss) -> Callable[..., Any]:
    slope = jax.grad(loss, argnums=1)
    slopes = jax.grad(loss, argnums=(1, 2))

    def forward(start: Any, leaves: Any, step_size: jax.Array, fixed: Any, keys: jax.Array) -> tuple[Any, Any]:
        def step(params: Any, key: jax.Array) -> tuple[Any, Any]:
            gradient = slope(key, params, leaves, fixed)
            return jax.tree.map(lambda p, g: p - step_size * g, params, gradient), params

        return jax.lax.scan(step, start, keys)

    @jax.custom_vjp
    def descend(start: Any, leaves: Any, step_size: jax.Array, fixed: Any, keys: jax.Array) -> Any:
        return forward(start, leaves, step_size, fixed, keys)[0]

    def keep(start: Any, leaves: Any, step_size: jax.Array, fixed: Any, keys: jax.Array) -> tuple[Any, Any]:
        end, before = forward(start, leaves, step_size, fixed, keys)
        return end, (before, leaves, step_size, fixed, keys)

    def sweep(residuals: Any, adjoint: Any) -> tuple[Any, ...]:
        before, leaves, step_size, fixed, keys = residuals

        def back(carry: tuple[Any, Any, jax.Array], item: tuple[Any, jax.Array]) -> tuple[Any, None]:
            adjoint, leaves_bar, step_size_bar = carry
            params, key = item
            (gradient, _), (curved, mixed) = jax.jvp(lambda p: slopes(key, p, leaves, fixed), (params,), (adjoint,))
            inner = jnp.asarray(sum(map(jnp.vdot, jax.tree.leaves(gradient), jax.tree.leaves(adjoint))))
            adjoint, leaves_bar = jax.tree.map(
                lambda total, change: total - step_size * change, (adjoint, leaves_bar), (curved, mixed)
            )
            return (adjoint, leaves_bar, step_size_bar - inner.astype(step_size_bar.dtype)), None

        zeros = jax.tree.map(jnp.zeros_like, (leaves, step_size))
        (start_bar, leaves_bar, step_size_bar), _ = jax.lax.scan(back, (adjoint, *zeros), (before, keys), reverse=True)
        return start_bar, leaves_bar, step_size_bar, None, None

    descend.defvjp(keep, sweep)
    return descend
