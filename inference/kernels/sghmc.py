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

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from pseudocoreset.inference.adaptation.curvature import HEAT
from pseudocoreset.inference.adaptation.gradients import GradientKernel
from pseudocoreset.inference.adaptation.lazy import load_blackjax
from pseudocoreset.inference.adaptation.mass import Factor, into_units, out_of_units
from pseudocoreset.inference.adaptation.scales import MOMENTUM_DECAY, friction_or_default, momentum_step_size
from pseudocoreset.inference.engine.kernel import TRACED, Stats, Tuning, per_chain
from pseudocoreset.inference.engine.plan import Plan, Run
from pseudocoreset.inference.kernels.registry import register
from pseudocoreset.models import Params
from pseudocoreset.validation import check_positive

if TYPE_CHECKING:
    from blackjax.base import SamplingAlgorithm
    from blackjax.types import Array, ArrayLikeTree, ArrayTree, PRNGKey

__all__ = [
    "SGHMC",
    "Factor",
    "SGHMCInfo",
    "SGHMCState",
    "as_top_level_api",
    "build_kernel",
    "init",
    "into_units",
    "out_of_units",
]


# Step times the root of the curvature: a twentieth of a period, where errors of a posterior that is not Gaussian are of
# the order of a hundredth.
CURVED_STEP = 0.3
# Shorter chains say nothing about the temperature of their momenta.
MIN_REFRESHMENTS = 20


class SGHMCState(NamedTuple):
    """State of the chain: both halves persist between steps.

    position
        Current value of the parameters.
    momentum
        Current momentum, of the same structure.
    """

    position: ArrayTree
    momentum: ArrayTree


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


@register
@dataclass(frozen=True, kw_only=True)
class SGHMC(GradientKernel):
    """Stochastic gradient HMC with persistent momentum and a splitting integrator; see the module's equations.

    One gradient of a minibatch per step. Its draws have a bias that the step size and the noise of gradients control:
    none from the step on a Gaussian target, second order in it elsewhere. It reports ``kinetic_temperature``, whose
    mean should be the temperature.

    Attributes:
        schedule: how the step size changes: ``"constant"``, ``"polynomial"``, ``"cyclical"`` or one of
            ``pseudocoreset.inference.schedules``; draws of a decreasing step size are to be weighted by its square.
        preconditioner: ``"curvature"``, the inverse of the negative Hessian of the log density at the mode that
            Newton's method finds from where the chain starts (at most 300 parameters; the chain starts there);
            ``"rmsprop"``, for each site the least root mean square gradient of any site divided by its own, estimated
            during the warmup and then frozen; a diagonal inverse mass, positive arrays by site or one vector, given
            with ``step_size``; None; or ``"auto"``: curvature where ``step_size`` has its default, the model is no
            network, has at most 300 parameters, and nothing is augmented or on disk, else None.
        control_variate: True, or a point ``{site: array}``: gradients of minibatches are corrected by those at a
            centre, which for True L-BFGS finds from where the chain starts, or the mode of the curvature; chains then
            start at the centre. ``"auto"``: with the curvature alone. False for none.
        friction: gamma, positive, one over time; by default -log(0.9) / step_size, so that the momentum keeps a factor
            0.9 per step.

    Raises:
        TypeError, ValueError: for values outside these ranges.
    """

    friction: float | None = field(default=None, metadata=TRACED)

    name = "sghmc"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.friction is not None:
            self.settle(friction=check_positive(self.friction, "friction"))

    @property
    def given_friction(self) -> float | None:
        """The friction that was given."""
        return self.friction

    def default_step_size(self, plan: Plan, positions: Params, total_weight: float) -> float:
        """0.1 / sqrt(max(W, 1)), less where a network's prior is narrower than the data call for."""
        return momentum_step_size(plan, positions, total_weight)

    @staticmethod
    def curved_step_size(kappa: jax.Array, noise: jax.Array, friction: float | None) -> jax.Array:
        """Stable where h^2 kappa < 4; noise of gradients adds h^2 sigma^2 / (1 - c^2) to variances."""
        stable = CURVED_STEP / jnp.sqrt(kappa)
        if friction is None:
            return jnp.minimum(stable, jnp.sqrt(HEAT * (1 - MOMENTUM_DECAY**2) / noise))
        return jnp.minimum(stable, 2 * HEAT * friction / noise)  # 1 - c^2 is at most 2 friction h

    def tuning(self, run: Run, positions: Params, step_size: float | None) -> Tuning:
        """The friction too."""
        values = {"friction": friction_or_default(self.friction, step_size)}
        return super().tuning(run, positions, step_size) | per_chain(values, positions)

    def start(self, key: jax.Array, position: Params, tuning: Tuning) -> SGHMCState:
        """With a momentum from its law."""
        return init(position, key, tuning["temperature"])

    def move(
        self, key: jax.Array, state: SGHMCState, gradient: Params, inverse_mass: Params | None, tuning: Tuning
    ) -> tuple[SGHMCState, Stats]:
        """The steps B, A, O, A."""
        new, info = build_kernel()(
            key,
            state,
            lambda position, minibatch: gradient,
            None,
            tuning["step_size"],
            tuning["friction"],
            tuning["temperature"],
            inverse_mass,
        )
        return new, {"kinetic_temperature": info.kinetic_temperature, "step_size": tuning["step_size"]}

    def reported(self, tuning: Tuning) -> dict[str, Any]:
        """The friction that was used."""
        return {**super().reported(tuning), "friction": float(tuning["friction"][0])}

    def warn(self, stats: Mapping[str, np.ndarray], run: Run, tuning: Tuning) -> None:
        """Warn if the momenta of all chains, or of one, are further from their temperature than by chance."""
        super().warn(stats, run, tuning)
        measured = stats.get("kinetic_temperature")
        if measured is None:
            return
        # A squared momentum keeps this share of its deviation a step, hence so many independent ones a chain.
        decay = math.exp(-2.0 * float(tuning["friction"][0]) * float(tuning["step_size"][0]))
        independent = measured.shape[1] * min(1.0, run.thinning * (1 - decay) / (1 + decay))
        if independent < MIN_REFRESHMENTS:
            return
        # Of all together and of each chain, since one among many that runs hot does not show in the mean.
        ratios = np.asarray(np.mean(measured, axis=1, dtype=np.float64)) / float(tuning["temperature"][0])
        mean, worst = float(np.mean(ratios)), int(np.argmax(np.abs(ratios - 1)))
        error = math.sqrt(2 / (run.plan.model.num_params * independent))
        if abs(mean - 1) > 0.2 + 5 * error / math.sqrt(len(ratios)) or abs(ratios[worst] - 1) > 0.2 + 5 * error:
            warnings.warn(
                f"the kinetic temperature of the chains is {mean:.2f} times the temperature asked for, and "
                f"{ratios[worst]:.2f} times in chain {worst}: gradient noise heats them, or they have not settled. Try "
                "a larger batch_size, a smaller step_size, or more num_warmup",
                stacklevel=3,
            )
