"""Stochastic gradient Hamiltonian Monte Carlo with persistent momentum and a splitting integrator.

Langevin dynamics with unit mass at temperature T and friction gamma (Chen, Fox and Guestrin 2014),

    d theta = p dt,    d p = grad log pi(theta) dt - gamma p dt + sqrt(2 gamma T) dW,

whose stationary law is pi(theta)^(1/T) N(p; 0, T). One step of size h solves its parts one after another:

    B  p     <- p + h g(theta)                                    g an unbiased estimate of grad log pi
    A  theta <- theta + (h / 2) p
    O  p     <- c p + sqrt((1 - c^2) T) xi,   c = exp(-gamma h)   exact for any gamma and h
    A  theta <- theta + (h / 2) p

The positions after the second A are those of the BAOAB scheme (Leimkuhler and Matthews 2013), with one
gradient a step: with exact gradients they have the right law on a Gaussian target for every stable step size
(h^2 times the largest curvature below 4), temperature and friction, and are second order in h elsewhere.

With a mass M, M^-1 = L L^T, the same is done to L^-1 theta, whose mass is one: the gradient in B is multiplied by L^T
and the momentum in A by L, and the momentum keeps its law. A mass that does not depend on theta leaves the stationary
law as it is; it changes how fast that is reached and which step sizes are stable.

BlackJAX 1.7.1 draws momentum of unit variance at every call and integrates by explicit Euler, which inflates
the variance of the draws, tenfold at T = 0.1; this kernel takes BlackJAX's form and its gradient estimators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from pseudocoreset.inference.lazy import load_blackjax

if TYPE_CHECKING:
    from blackjax.base import SamplingAlgorithm
    from blackjax.types import Array, ArrayLikeTree, ArrayTree, PRNGKey

__all__ = [
    "Factor",
    "SGHMCInfo",
    "SGHMCState",
    "as_top_level_api",
    "build_kernel",
    "init",
    "into_units",
    "out_of_units",
]


class SGHMCState(NamedTuple):
    """State of the chain: both halves persist between steps.

    position
        Current value of the parameters.
    momentum
        Current momentum, of the same structure.
    """

    position: ArrayTree
    momentum: ArrayTree


class Factor(NamedTuple):
    """A dense inverse mass by its factor.

    matrix
        L (d, d) with M^-1 = L L^T, of the position as the vector that ``ravel_pytree`` makes of it.
    """

    matrix: Array


class SGHMCInfo(NamedTuple):
    """What a step reports.

    kinetic_temperature
        Mean square of the momentum, whose stationary mean is the temperature, and more where the noise of
        gradient estimates heats the chain. It says nothing of the error of a step: on a Gaussian target with exact
        gradients it is the temperature at every stable step size, and elsewhere close to it.
    gradient_norm
        Euclidean norm of the gradient estimate.
    """

    kinetic_temperature: Array
    gradient_norm: Array


def init(position: ArrayLikeTree, rng_key: PRNGKey | None = None, temperature: float | Array = 1.0) -> SGHMCState:
    """Start at ``position`` with momentum from N(0, temperature), or at rest without a key."""
    if rng_key is None:
        return SGHMCState(position, jax.tree.map(jnp.zeros_like, position))
    noise = _gaussian_noise(rng_key, position)
    return SGHMCState(position, jax.tree.map(lambda n: (jnp.sqrt(temperature) * n).astype(n.dtype), noise))


def build_kernel() -> Callable[..., tuple[SGHMCState, SGHMCInfo]]:
    """Build the kernel; step size, friction and temperature may change from step to step.

    Returns:
        ``kernel(rng_key, state, grad_estimator, minibatch, step_size, friction, temperature=1.0, inverse_mass=None)``,
        which returns the next state and an ``SGHMCInfo``. ``inverse_mass`` is the diagonal of M^-1 in the structure of
        the position, its leaves broadcasting against those, or a ``Factor``; ones by default. Exactly one gradient
        estimate is made.
    """

    def kernel(
        rng_key: PRNGKey,
        state: SGHMCState,
        grad_estimator: Callable[[ArrayLikeTree, Any], ArrayTree],
        minibatch: Any,
        step_size: float | Array,
        friction: float | Array,
        temperature: float | Array = 1.0,
        inverse_mass: ArrayTree | None = None,
    ) -> tuple[SGHMCState, SGHMCInfo]:
        decay = jnp.exp(-jnp.asarray(friction) * step_size)
        # 1 - c^2 by expm1: at small friction the difference would lose all digits in single precision.
        noise_scale = jnp.sqrt(-jnp.expm1(-2.0 * jnp.asarray(friction) * step_size) * temperature)

        position, momentum = state
        gradient = grad_estimator(position, minibatch)
        noise = _gaussian_noise(rng_key, momentum)

        momentum = _axpy(step_size, into_units(gradient, inverse_mass), momentum)  # B
        position = _axpy(0.5 * step_size, out_of_units(momentum, inverse_mass), position)  # A
        momentum = jax.tree.map(  # O
            lambda p, n: (decay * p + noise_scale * n).astype(p.dtype), momentum, noise
        )
        position = _axpy(0.5 * step_size, out_of_units(momentum, inverse_mass), position)  # A

        info = SGHMCInfo(
            kinetic_temperature=_sum_of_squares(momentum) / _size(momentum),
            gradient_norm=jnp.sqrt(_sum_of_squares(gradient)),
        )
        return SGHMCState(position, momentum), info

    return kernel


def into_units(gradient: ArrayTree, inverse_mass: ArrayTree | None) -> ArrayTree:
    """L^T times a gradient, M^-1 = L L^T: that of the log density in L^-1 theta."""
    if inverse_mass is None:
        return gradient
    if isinstance(inverse_mass, Factor):
        return _times(inverse_mass.matrix.T, gradient)
    return jax.tree.map(lambda leaf, inverse: jnp.sqrt(inverse) * leaf, gradient, inverse_mass)


def out_of_units(move: ArrayTree, inverse_mass: ArrayTree | None) -> ArrayTree:
    """L times a move of L^-1 theta, M^-1 = L L^T: that of theta."""
    if inverse_mass is None:
        return move
    if isinstance(inverse_mass, Factor):
        return _times(inverse_mass.matrix, move)
    return jax.tree.map(lambda leaf, inverse: jnp.sqrt(inverse) * leaf, move, inverse_mass)


def _times(matrix: jax.Array, tree: ArrayTree) -> ArrayTree:
    flat, unravel = ravel_pytree(tree)
    return unravel((matrix @ flat).astype(flat.dtype))


def _gaussian_noise(rng_key: PRNGKey, tree: ArrayLikeTree) -> ArrayTree:
    """Independent standard normals in the structure of ``tree``."""
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.random.normal(rng_key, flat.shape, flat.dtype))


def _size(tree: ArrayTree) -> int:
    return sum(jnp.size(leaf) for leaf in jax.tree.leaves(tree))


def _axpy(scale: float | Array, x: ArrayTree, y: ArrayTree) -> ArrayTree:
    return jax.tree.map(lambda a, b: (b + scale * a).astype(b.dtype), x, y)


def _sum_of_squares(tree: ArrayTree) -> Array:
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda leaf: jnp.sum(leaf * leaf), tree))


def as_top_level_api(
    grad_estimator: Callable[[ArrayLikeTree, Any], ArrayTree], friction: float | Array
) -> SamplingAlgorithm:
    """SGHMC with persistent momentum, as a BlackJAX ``SamplingAlgorithm``.

    .. code::

        algorithm = sghmc.as_top_level_api(grad_estimator, friction=1.0)
        state = algorithm.init(position, init_key)
        state, info = algorithm.step(step_key, state, minibatch, step_size, temperature)

    Args:
        grad_estimator: ``grad_estimator(position, minibatch)``, an unbiased estimate of the gradient of the
            log density at temperature one; those of ``blackjax.sgmcmc.gradients`` fit.
        friction: gamma, one over time, not negative. The momentum keeps the factor exp(-friction * step_size)
            a step.

    Returns:
        ``init(position, rng_key=None)`` and ``step(rng_key, state, minibatch, step_size, temperature=1.0)``.
    """
    kernel = build_kernel()

    def init_fn(position: ArrayLikeTree, rng_key: PRNGKey | None = None) -> SGHMCState:
        return init(position, rng_key)

    def step_fn(
        rng_key: PRNGKey,
        state: SGHMCState,
        minibatch: Any,
        step_size: float | Array,
        temperature: float | Array = 1.0,
    ) -> tuple[SGHMCState, SGHMCInfo]:
        return kernel(rng_key, state, grad_estimator, minibatch, step_size, friction, temperature)

    return load_blackjax().base.SamplingAlgorithm(init_fn, step_fn)
