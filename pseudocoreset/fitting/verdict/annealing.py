"""Annealed importance: draws that are moved from a proposal to a density, step by step, by Hamiltonian dynamics."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.fitting.verdict.proposals import Proposal
from pseudocoreset.models import Model
from pseudocoreset.subsets.curvature.density import PointDensity

__all__ = ["Annealed", "annealed"]

NUM_PARTICLES = 1024  # about as many draws as there are to be; a power of two compiles once
KEPT = 0.5  # of the particles that are effective after a step of the temperature
MOST_STEPS = 60
SWEEPS = 3  # moves of all particles for each temperature
LAST_SWEEPS = 10
LEAPFROGS = 8
ACCEPTED = 0.8  # wanted of moves; the step size follows


class Annealed(NamedTuple):
    """Draws, about one of the density for each particle.

    values
        (s, d).
    log_density
        (s,) of the density that they end at, without its normaliser.
    log_norm
        Logarithm of the normaliser.
    log_norm_error
        Its standard error, as far as the weights of the steps tell it.
    """

    values: np.ndarray
    log_density: np.ndarray
    log_norm: float
    log_norm_error: float


class _Particles(NamedTuple):
    """Positions (s, d), and the two log densities there, (s,)."""

    values: np.ndarray
    ends: np.ndarray
    starts: np.ndarray

    def take(self, chosen: np.ndarray) -> _Particles:
        return _Particles(*(leaf[chosen] for leaf in self))


def annealed(density: PointDensity, proposal: Proposal, random: np.random.Generator) -> Annealed | None:
    """Draws of the posterior of points by sequential Monte Carlo (Del Moral et al. 2006); None where it did not end.

    Particles from the proposal q are moved through p_t, proportional to q^(1 - t) c^t, with t from 0 to 1. A step of t
    keeps half of the particles effective; they are chosen again by their weights, and moved by Hamiltonian Monte Carlo
    in the scales that the particles have. The product of the average weights is the normaliser of c.

    Args:
        density: of the points, c.
        proposal: q.
        random: of the draws.
    """
    values = proposal.draws(NUM_PARTICLES, random)
    particles = _Particles(values, density.values(values) + density.priors(values), proposal.log_density(values))
    temperature, log_norm, variance, step = 0.0, 0.0, 0.0, 0.3
    for _ in range(MOST_STEPS):
        ratios = np.where(np.isnan(particles.ends), -np.inf, particles.ends - particles.starts)
        if not np.isfinite(ratios).any():
            return None
        rise = _rise(ratios, 1 - temperature)
        log_weights = rise * ratios
        weights = np.exp(log_weights - np.max(log_weights))
        log_norm += float(np.max(log_weights)) + math.log(float(np.mean(weights)))
        variance += float(np.var(weights) / np.mean(weights) ** 2) / len(weights)
        temperature = min(1.0, temperature + rise)
        particles = particles.take(systematic(weights, len(weights), random))
        is_last = temperature >= 1.0 - 1e-12
        scales = _scales(particles.values)
        for _ in range(LAST_SWEEPS if is_last else SWEEPS):
            particles, accepted = _moved(density, proposal, particles, temperature, scales, step, random)
            step *= math.exp(0.7 * (accepted - ACCEPTED))
        if is_last:
            return Annealed(particles.values, particles.ends, log_norm, math.sqrt(variance))
    return None


def systematic(weights: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Indices of ``count`` draws, each as often as its weight calls for, in random order."""
    places = (np.arange(count) + random.uniform()) / count
    chosen = np.searchsorted(np.cumsum(weights) / np.sum(weights), places)
    return random.permutation(np.minimum(chosen, len(weights) - 1))


def _rise(ratios: np.ndarray, most: float) -> float:
    """The step of the temperature after which ``KEPT`` of the particles are effective, by bisection."""

    def effective(rise: float) -> float:
        weights = np.exp(rise * ratios - np.max(rise * ratios))
        return float(np.sum(weights) ** 2 / np.sum(weights**2)) / len(weights)

    if effective(most) >= KEPT:
        return most
    low, high = 0.0, most
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if effective(middle) >= KEPT else (low, middle)
    return max(low, 1e-300)


def _scales(values: np.ndarray) -> np.ndarray:
    """A factor (d, d) of the covariance of particles, shrunk to its diagonal where they are few."""
    count, d = values.shape
    covariance = np.atleast_2d(np.cov(values, rowvar=False))
    share = min(1.0, 2 * d / count)
    diagonal = np.diag(np.maximum(np.diagonal(covariance), 1e-300))
    return np.linalg.cholesky((1 - share) * covariance + share * diagonal + 1e-9 * diagonal)


def _moved(
    density: PointDensity,
    proposal: Proposal,
    particles: _Particles,
    temperature: float,
    scales: np.ndarray,
    step: float,
    random: np.random.Generator,
) -> tuple[_Particles, float]:
    """All particles after a Hamiltonian trajectory each, and the share that was accepted."""
    momenta = random.normal(size=particles.values.shape)
    # Trajectories of one length may come back to where they began.
    length = step * random.uniform(0.5, 1.5)
    target = (temperature, proposal.mean, np.linalg.inv(proposal.factor), proposal.degrees)
    with density.precision():
        moved = _trajectories(density.model, density.points, particles.values, momenta, scales, length, target)
        values, ends, squares = (np.asarray(leaf, np.float64) for leaf in moved)
    starts = proposal.log_density(values)
    before = (1 - temperature) * particles.starts + temperature * particles.ends - np.sum(momenta**2, axis=1) / 2
    with np.errstate(invalid="ignore", over="ignore"):
        after = (1 - temperature) * starts + temperature * ends - squares / 2
        change = np.where(np.isnan(after - before), -np.inf, after - before)
    is_accepted = np.log(random.uniform(size=len(change))) < change
    new = _Particles(values, ends, starts)
    kept = [
        np.where(is_accepted.reshape(-1, *[1] * (one.ndim - 1)), one, other)
        for one, other in zip(new, particles, strict=True)
    ]
    return _Particles(*kept), float(np.mean(np.exp(np.minimum(change, 0.0))))


@functools.partial(jax.jit, static_argnums=0)
def _trajectories(
    model: Model, points: Any, values: Any, momenta: Any, scales: Any, step: Any, target: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where leapfrog steps end: positions, log densities of the points and squared momenta."""
    x, y, weights = jax.tree.map(jnp.asarray, points)
    temperature, mean, inverse, degrees = target

    def end(vector: jax.Array) -> jax.Array:
        params = model.unflatten(vector)
        each = model.log_likelihood(params, x, y)
        return model.log_prior(params) + jnp.sum(jnp.where(weights > 0, weights * each, 0.0))

    def height(vector: jax.Array) -> jax.Array:
        squares = jnp.sum((inverse @ (vector - mean)) ** 2)
        start = -(degrees + len(vector)) / 2 * jnp.log1p(squares / degrees)
        return (1 - temperature) * start + temperature * end(vector)

    def one(vector: jax.Array, momentum: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        def push(at: jax.Array, size: jax.Array) -> jax.Array:
            return size * scales.T @ jax.grad(height)(at)

        def leap(state: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], None]:
            at, speed = state
            at = at + step * scales @ speed
            return (at, speed + push(at, step)), None

        speed = momentum + push(vector, step / 2)
        (at, speed), _ = jax.lax.scan(leap, (vector, speed), None, length=LEAPFROGS)
        speed = speed - push(at, step / 2)
        return at, end(at), jnp.sum(speed**2)

    vectors, momenta, scales = jnp.asarray(values), jnp.asarray(momenta), jnp.asarray(scales)
    return jax.vmap(one)(vectors, momenta)
