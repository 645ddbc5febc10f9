"""Update rules of the published evaluations, as functions of their random numbers.

They are written down as published, right or wrong: ``kim2022_sghmc`` and ``kim2022_hmc`` do not leave the law invariant
that they are named after, which ``Kim2022`` says to whoever uses them. For samplers that do, see
``pseudocoreset.inference``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from pseudocoreset.models import Model, Params
from pseudocoreset.rows import Rows

__all__ = [
    "Moving",
    "kim2022_hmc",
    "kim2022_potential",
    "kim2022_sghmc",
    "normal_like",
    "one_pass",
    "scattered",
    "sgd",
]

State = TypeVar("State")


class Moving(NamedTuple):
    """A position in the space of parameters, and a momentum or velocity of the same structure."""

    position: Params
    momentum: Params


def normal_like(key: jax.Array, params: Params) -> Params:
    """Standard normal numbers, one for each parameter."""
    leaves, treedef = jax.tree.flatten(params)
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    # In one piece: a generator for each leaf would take most of the time that a compilation takes.
    draws = jnp.split(jax.random.normal(key, (sum(sizes),)), list(itertools.accumulate(sizes))[:-1])
    shaped = [draw.reshape(leaf.shape).astype(leaf.dtype) for draw, leaf in zip(draws, leaves, strict=True)]
    return jax.tree.unflatten(treedef, shaped)


def scattered(key: jax.Array, model: Model, init_scale: float, momentum_scale: float) -> Moving:
    """Normal numbers as parameters, scales of norms included, and as momenta, as the code of Kim et al. 2022 starts."""
    position_key, momentum_key = jax.random.split(key)
    shapes = jax.eval_shape(model.init, position_key)
    position = jax.tree.map(lambda z: init_scale * z, normal_like(position_key, shapes))
    return Moving(position, jax.tree.map(lambda z: momentum_scale * z, normal_like(momentum_key, position)))


def kim2022_potential(loss: jax.Array, params: Params, weight_decay: float) -> jax.Array:
    """Mean cross-entropy plus weight_decay * ||theta||_2, the norm of all parameters together and not squared.

    It is no Gaussian prior: the force towards zero has the same size at any distance. The sampler multiplies the whole
    of it, prior included, by the number of points.
    """
    return loss + weight_decay * optax.tree.norm(params)


def kim2022_sghmc(
    state: Moving,
    normals: Params,
    gradient: Callable[[Params], Params],
    *,
    step_size: float,
    friction: float,
    diffusion: float,
) -> Moving:
    """One step of SGHMC in the reference code of Kim et al. 2022.

        theta <- theta + eps p,    p <- (1 - a) p - eps grad U(theta) + N(0, 2 d),

    with the gradient at the new position and d = a T. Neither friction nor noise is scaled by eps, so the temperature
    of the momentum does not depend on it: T / (1 - a / 2) on a flat potential.

    Args:
        state: position and momentum.
        normals: standard normal numbers, as the parameters.
        gradient: gradient of U, the potential times the number of points.
        step_size: eps.
        friction: a.
        diffusion: d.
    """
    position = jax.tree.map(lambda theta, p: theta + step_size * p, state.position, state.momentum)
    slope = gradient(position)
    scale = (2.0 * diffusion) ** 0.5
    momentum = jax.tree.map(
        lambda p, g, z: (1.0 - friction) * p - step_size * g + scale * z, state.momentum, slope, normals
    )
    return Moving(position, momentum)


def kim2022_hmc(
    position: Params,
    normals: Params,
    uniform: jax.Array,
    potential: Callable[[Params], jax.Array],
    *,
    num_points: int,
    step_size: float,
    num_steps: int,
    momentum_scale: float,
) -> tuple[Params, jax.Array]:
    """One transition of HMC in the reference code of Kim et al. 2022, with its kinetic energy of the wrong sign.

    The momentum is drawn with standard deviation ``momentum_scale``, but its kinetic energy K = ||p||^2 / 2 is that of
    a unit one, and a proposal is accepted with probability min(1, exp(m (U0 - U1) + (K1 - K0))), where Metropolis needs
    K0 - K1. The code takes the gradient twice at every inner position; it is the same gradient, taken once here.

    Args:
        position: where to start.
        normals: standard normal numbers, as the parameters.
        uniform: a number between 0 and 1, for acceptance.
        potential: U without the factor m.
        num_points: m, which multiplies it.
        step_size: eps.
        num_steps: leapfrog steps.
        momentum_scale: standard deviation of the momentum.

    Returns:
        The position after the transition, and whether the proposal was accepted.
    """
    momentum = jax.tree.map(lambda z: momentum_scale * z, normals)
    value_and_gradient = jax.value_and_grad(potential)

    def kick(p: Params, g: Params) -> Params:
        return jax.tree.map(lambda a, b: a - 0.5 * step_size * b * num_points, p, g)

    def leapfrog(carry: Any, _: None) -> tuple[Any, None]:
        theta, p, _, g = carry
        p = kick(p, g)
        theta = jax.tree.map(lambda a, b: a + step_size * b, theta, p)
        value, g = value_and_gradient(theta)
        return (theta, kick(p, g), value, g), None

    before, slope = value_and_gradient(position)
    start = (position, momentum, before, slope)
    (proposal, ended, after, _), _ = jax.lax.scan(leapfrog, start, None, length=num_steps)
    gained = 0.5 * (optax.tree.norm(ended, squared=True) - optax.tree.norm(momentum, squared=True))
    log_probability = num_points * (before - after) + gained
    # As in the code, a comparison with a number that is none accepts; what is not finite is then found by its finder.
    accepted = ~(uniform > jnp.exp(jnp.minimum(0.0, log_probability)))
    return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), proposal, position), accepted


def sgd(
    state: Moving,
    gradient: Callable[[Params], Params],
    *,
    learning_rate: float | jax.Array,
    momentum: float,
    weight_decay: float,
) -> Moving:
    """One step of SGD as the training loops of dataset distillation take it.

        v <- mu v + grad L(theta) + lambda theta,    theta <- theta - eta v:

    the decay acts on all parameters, and a changed step size acts on the velocity that is there.

    Args:
        state: position and velocity.
        gradient: gradient of the loss.
        learning_rate: eta.
        momentum: mu.
        weight_decay: lambda.
    """
    slope = gradient(state.position)
    velocity = jax.tree.map(
        lambda v, g, theta: momentum * v + g + weight_decay * theta, state.momentum, slope, state.position
    )
    return Moving(jax.tree.map(lambda theta, v: theta - learning_rate * v, state.position, velocity), velocity)


def one_pass(
    step: Callable[[State, jax.Array, Rows], State],
    state: State,
    key: jax.Array,
    coreset: Rows,
    batch_size: int,
) -> State:
    """One pass over a coreset in random order; the last batch holds what is left, as data loaders have it.

    Args:
        step: ``(state, key, batch) -> state``.
        state: where to start.
        key: one typed key.
        coreset: the points.
        batch_size: points a step; all of them in one step where there are no more.
    """
    num_points = coreset.inputs.shape[0]
    if num_points <= batch_size:
        return step(state, key, coreset)
    order_key, whole_key, rest_key = jax.random.split(key, 3)
    order = jax.random.permutation(order_key, num_points)
    num_whole = num_points // batch_size

    whole = order[: num_whole * batch_size].reshape(num_whole, batch_size)
    items = (whole, jax.random.split(whole_key, num_whole))
    state, _ = jax.lax.scan(lambda carry, item: (step(carry, item[1], coreset.take(item[0])), None), state, items)
    rest = order[num_whole * batch_size :]
    return step(state, rest_key, coreset.take(rest)) if len(rest) else state
