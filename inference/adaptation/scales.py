"""Step sizes and friction where the user gives none, from the total weight of the data and the scale of the prior."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from pseudocoreset.inference.engine.plan import Plan
from pseudocoreset.models import Model, Params

__all__ = ["MOMENTUM_DECAY", "friction_or_default", "momentum_step_size", "position_step_size", "prior_variance"]

# The momentum keeps this factor per step: the customary momentum of stochastic gradient descent.
MOMENTUM_DECAY = 0.9
# Step (squared, for SGHMC) times the curvature of the log-likelihood, in units of that of one datum.
LEARNING_RATE = 0.01
# The most that step (squared) times the precision of a prior may be. SGHMC has no bias on a Gaussian
# below 4; SGLD inflates a variance by 1 / (1 - half of it).
SGHMC_PRIOR_LIMIT = 1.0
SGLD_PRIOR_LIMIT = 0.1


def momentum_step_size(plan: Plan, positions: Params, total_weight: float) -> float:
    """Step size of a stochastic gradient kernel with momentum, free of the scale of the data.

    The curvature of a log-likelihood grows like the total weight W. SGHMC's step has the unit of a standard deviation,
    so sqrt(0.01 / W), and its square is what optimisers call the learning rate on the summed loss. Where the prior of a
    network is narrower than the data call for (a coreset of few points) the prior sets the scale.
    """
    return math.sqrt(_squared_step(plan, positions, total_weight, SGHMC_PRIOR_LIMIT))


def position_step_size(plan: Plan, positions: Params, total_weight: float) -> float:
    """That of a kernel without momentum: SGLD's step has the unit of a variance, so 0.01 / W."""
    return _squared_step(plan, positions, total_weight, SGLD_PRIOR_LIMIT)


def _squared_step(plan: Plan, positions: Params, total_weight: float, prior_limit: float) -> float:
    curvature = float(_prior_curvature(plan, positions)) if plan.model.is_network else 0.0
    return min(LEARNING_RATE / max(total_weight, 1.0), prior_limit / max(curvature, 1e-30))


def friction_or_default(friction: float | None, step_size: float | None) -> float:
    """The friction, by default that at which the momentum keeps a factor 0.9 a step."""
    assert step_size is not None
    return -math.log(MOMENTUM_DECAY) / step_size if friction is None else friction


@functools.partial(jax.jit, static_argnames="plan")
def _prior_curvature(plan: Plan, positions: Params) -> jax.Array:
    """Largest precision of a network's prior: max |H 1|, H its Hessian, diagonal for independent weights."""

    def chain(position: Params) -> jax.Array:
        precisions = _prior_precisions(plan.model, position)
        return jnp.max(jnp.stack([jnp.max(leaf) for leaf in jax.tree.leaves(precisions)]))

    return jnp.max(plan.devices.map(chain, positions))


@functools.partial(jax.jit, static_argnames="plan")
def prior_variance(plan: Plan, positions: Params, scale: Params) -> jax.Array:
    """Mean over parameters of the variance of a prior of independent Gaussians, parameters in units of ``scale``."""

    def chain(position: Params, unit: Params) -> jax.Array:
        precisions = _prior_precisions(plan.model, position)
        sums = jax.tree.map(lambda h, s: jnp.sum(1 / (h * s**2)), precisions, unit)
        return jax.tree.reduce(jnp.add, sums) / plan.model.num_params

    return jnp.mean(plan.devices.map(chain, positions, scale))


def _prior_precisions(model: Model, position: Params) -> Params:
    ones = jax.tree.map(jnp.ones_like, position)
    _, product = jax.jvp(jax.grad(model.log_prior), (position,), (ones,))
    return jax.tree.map(jnp.abs, product)
