"""Hamiltonian Monte Carlo whose change of energy is exact in single precision, for networks and many data.

Acceptance needs the change of energy to about a hundredth. The energy itself is of the order of the number of
parameters and data, so that in single precision the difference of two energies carries the rounding of numbers that
large, which grows with the network, and over T at temperature T. Here the log density is a tree of **terms**, one a
datum and one a parameter,

    log pi(theta) = sum_k t_k(theta),      H = -log pi(theta) / T + |r|^2 / 2,

    Delta H = - sum_k (t_k' - t_k) / T + sum_j (r_j' - r_j) (r_j' + r_j) / 2,

differences are taken term by term and then summed with compensation (as Izmailov, Vikram, Hoffman and Wilson 2021 take
likelihood, prior and kinetic energy apart). The gradient may be as coarse as one likes: leapfrog is reversible and
keeps volume for any force, so that its errors lower the acceptance rate and nothing else.

The momentum r is the one of unit variance, M^(-1/2) p for a diagonal mass M:

    r     <- r + (h / 2) M^(-1/2) grad log pi(theta) / T
    theta <- theta + h M^(-1/2) r
    r     <- r + (h / 2) M^(-1/2) grad log pi(theta) / T.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

if TYPE_CHECKING:
    from blackjax.types import Array, ArrayLikeTree, ArrayTree, PRNGKey

__all__ = [
    "HMCInfo",
    "HMCState",
    "build_kernel",
    "compensated_sum",
    "energy_change",
    "init",
    "leapfrog",
]


class HMCState(NamedTuple):
    """State of the chain.

    position
        Current value of the parameters.
    terms
        Tree of arrays, the sum of whose elements is the log density at the position, at temperature one.
    gradient
        Gradient of the log density at the position, at temperature one.
    """

    position: ArrayTree
    terms: ArrayTree
    gradient: ArrayTree


class HMCInfo(NamedTuple):
    """What a transition reports.

    acceptance_rate
        Probability with which the proposal was accepted.
    is_accepted
        Whether it was.
    is_divergent
        Whether the change of energy is above the threshold, or not a number.
    energy_change
        Delta H from the start of the trajectory to its end, accepted or not.
    energy
        H of the state that the transition ends with.
    num_integration_steps
        Leapfrog steps taken.
    """

    acceptance_rate: Array
    is_accepted: Array
    is_divergent: Array
    energy_change: Array
    energy: Array
    num_integration_steps: Array


def init(
    position: ArrayLikeTree,
    log_density_terms: Callable[[ArrayLikeTree], ArrayTree],
    gradient: Callable[[ArrayLikeTree], ArrayTree],
) -> HMCState:
    """Start at ``position``."""
    return HMCState(position, log_density_terms(position), gradient(position))


def leapfrog(
    gradient: Callable[[ArrayLikeTree], ArrayTree],
    position: ArrayTree,
    momentum: ArrayTree,
    gradient_here: ArrayTree,
    step_size: float | Array,
    num_steps: int | Array,
    scale: ArrayTree,
    temperature: float | Array = 1.0,
) -> tuple[ArrayTree, ArrayTree, ArrayTree]:
    """``num_steps`` leapfrog steps; with the momentum flipped they lead back.

    Args:
        gradient: of the log density at temperature one.
        position: where the trajectory starts.
        momentum: r, of unit variance, in the structure of ``position``.
        gradient_here: ``gradient(position)``.
        step_size: h.
        num_steps: at least 1; may be traced.
        scale: M^(-1/2), in the structure of ``position``, or leaves that broadcast against it.
        temperature: T.

    Returns:
        Position, momentum and gradient at the end.
    """

    def kick(momentum: ArrayTree, gradient_here: ArrayTree) -> ArrayTree:
        return jax.tree.map(
            lambda r, g, s: (r + 0.5 * step_size / temperature * s * g).astype(r.dtype), momentum, gradient_here, scale
        )

    def step(_: Any, carry: tuple[ArrayTree, ArrayTree, ArrayTree]) -> tuple[ArrayTree, ArrayTree, ArrayTree]:
        position, momentum, gradient_here = carry
        momentum = kick(momentum, gradient_here)
        position = jax.tree.map(lambda q, r, s: (q + step_size * s * r).astype(q.dtype), position, momentum, scale)
        gradient_here = gradient(position)
        return position, kick(momentum, gradient_here), gradient_here

    return jax.lax.fori_loop(0, num_steps, step, (position, momentum, gradient_here))


def energy_change(
    terms: ArrayTree,
    new_terms: ArrayTree,
    momentum: ArrayTree,
    new_momentum: ArrayTree,
    temperature: float | Array = 1.0,
) -> Array:
    """Delta H of the module's equation: the proposal is accepted with probability min(1, exp(-Delta H))."""
    potential = jax.tree.map(lambda new, old: (old - new) / temperature, new_terms, terms)
    kinetic = jax.tree.map(lambda new, old: 0.5 * (new - old) * (new + old), new_momentum, momentum)
    return compensated_sum((potential, kinetic))


def compensated_sum(tree: ArrayLikeTree) -> Array:
    """Sum of all elements, with what rounding takes from each addition added up beside it (Knuth's two-sum)."""
    flat = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])

    def add(x: tuple[Array, Array], y: tuple[Array, Array]) -> tuple[Array, Array]:
        total = x[0] + y[0]
        rest = total - x[0]
        return total, x[1] + y[1] + ((x[0] - (total - rest)) + (y[0] - rest))

    zero = jnp.zeros((), flat.dtype)
    total, lost = jax.lax.reduce((flat, jnp.zeros_like(flat)), (zero, zero), add, (0,))
    return total + lost


def build_kernel(divergence_threshold: float = 1000.0) -> Callable[..., tuple[HMCState, HMCInfo]]:
    """Build the kernel; step size, number of steps and temperature may change from call to call.

    Returns:
        ``kernel(rng_key, state, log_density_terms, gradient, step_size, num_integration_steps, inverse_mass=None,
        temperature=1.0)``, which returns the next state and an ``HMCInfo``. ``inverse_mass`` is the diagonal of M^-1
        in the structure of the position, ones by default.
    """

    def kernel(
        rng_key: PRNGKey,
        state: HMCState,
        log_density_terms: Callable[[ArrayLikeTree], ArrayTree],
        gradient: Callable[[ArrayLikeTree], ArrayTree],
        step_size: float | Array,
        num_integration_steps: int | Array,
        inverse_mass: ArrayTree | None = None,
        temperature: float | Array = 1.0,
    ) -> tuple[HMCState, HMCInfo]:
        momentum_key, accept_key = jax.random.split(rng_key)
        flat, unravel = ravel_pytree(state.position)
        momentum = unravel(jax.random.normal(momentum_key, flat.shape, flat.dtype))
        if inverse_mass is None:
            scale = jax.tree.map(lambda leaf: jnp.ones((), leaf.dtype), state.position)
        else:
            scale = jax.tree.map(jnp.sqrt, inverse_mass)
        position, new_momentum, new_gradient = leapfrog(
            gradient, state.position, momentum, state.gradient, step_size, num_integration_steps, scale, temperature
        )
        terms = log_density_terms(position)
        change = energy_change(state.terms, terms, momentum, new_momentum, temperature)
        change = jnp.where(jnp.isnan(change), jnp.inf, change)
        acceptance_rate = jnp.exp(-jnp.maximum(change, 0.0))
        is_accepted = jax.random.uniform(accept_key, dtype=acceptance_rate.dtype) < acceptance_rate

        proposal = HMCState(position, terms, new_gradient)
        new = jax.tree.map(lambda a, b: jnp.where(is_accepted, a, b), proposal, state)
        kinetic = 0.5 * compensated_sum(jax.tree.map(jnp.square, momentum))
        start_energy = kinetic - compensated_sum(state.terms) / temperature
        return new, HMCInfo(
            acceptance_rate=acceptance_rate,
            is_accepted=is_accepted,
            is_divergent=change > divergence_threshold,
            energy_change=change,
            energy=jnp.where(is_accepted, start_energy + change, start_energy),
            num_integration_steps=jnp.asarray(num_integration_steps, jnp.int32),
        )

    return kernel
