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

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpy.typing import ArrayLike

from pseudocoreset.inference.adaptation.lazy import load_blackjax
from pseudocoreset.inference.adaptation.mass import check_acceptance_rate, given_metric
from pseudocoreset.inference.adaptation.scales import prior_variance
from pseudocoreset.inference.engine.kernel import TRACED, Density, Kernel, Stats, Tuning, per_chain
from pseudocoreset.inference.engine.plan import Run
from pseudocoreset.inference.kernels.registry import register
from pseudocoreset.models import Params
from pseudocoreset.rows import Rows
from pseudocoreset.validation import check_integer, check_positive

if TYPE_CHECKING:
    from blackjax.types import Array, ArrayLikeTree, ArrayTree, PRNGKey

__all__ = [
    "HMCInfo",
    "HMCState",
    "NetworkHMC",
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


@register
@dataclass(frozen=True, kw_only=True)
class NetworkHMC(Kernel):
    """HMC with long trajectories of a given length, whose change of energy is exact in single precision.

    For networks and many data, after Izmailov, Vikram, Hoffman and Wilson (2021); its draws are exact. A trajectory
    takes as many leapfrog steps as its length asks for, each length multiplied by a number drawn anew from within
    ``trajectory_jitter`` of one. The step size is adapted in the warmup unless it is given. It reports
    ``acceptance_rate``, ``diverging``, ``energy``, ``energy_change`` and ``n_steps``.

    Attributes:
        target_acceptance_rate: mean acceptance probability that the adaptation of the step size aims at, in (0, 1).
        inverse_mass_matrix: a positive diagonal (d,), of the parameters in the order of their sites' names; ones if
            None.
        trajectory_length: positive, in units of M^(-1/2). For networks by default pi / 2 times the root mean square
            scale of the prior and the root of T; other models have none.
        trajectory_jitter: at least 0 and less than 1.
        max_num_steps: of a trajectory, at least 1.

    Raises:
        TypeError, ValueError: for values outside these ranges.
    """

    target_acceptance_rate: float = 0.8
    inverse_mass_matrix: ArrayLike | None = field(default=None, metadata=TRACED)
    trajectory_length: float | None = field(default=None, metadata=TRACED)
    trajectory_jitter: float = field(default=0.2, metadata=TRACED)
    max_num_steps: int = field(default=1000, metadata=TRACED)

    name = "network_hmc"
    divergence_remedy = "higher target_acceptance_rate"

    def __post_init__(self) -> None:
        check_acceptance_rate(self.target_acceptance_rate)
        self.settle(
            max_num_steps=check_integer(self.max_num_steps, "max_num_steps"),
            trajectory_jitter=float(self.trajectory_jitter),
        )
        if self.trajectory_length is not None:
            self.settle(trajectory_length=check_positive(self.trajectory_length, "trajectory_length"))
        if not 0 <= self.trajectory_jitter < 1:
            raise ValueError(f"trajectory_jitter must be at least 0 and less than 1; got {self.trajectory_jitter}")

    def for_run(self, run: Run) -> Self:
        """Check the mass matrix, and that there is a length."""
        self._metric(run)
        if self.trajectory_length is None and not run.plan.model.is_network:
            raise ValueError(
                "trajectory_length has a default, from the scale of the prior, for networks alone; give it: about half "
                "of pi times the largest standard deviation of the posterior"
            )
        return self

    def _metric(self, run: Run) -> np.ndarray | None:
        return given_metric(self.inverse_mass_matrix, run.plan.model.num_params, self.name)

    def tuning(self, run: Run, positions: Params, step_size: float | None) -> Tuning:
        """The mass matrix, and what trajectories are made of."""
        metric = self._metric(run)
        if metric is None:
            metric = np.ones(run.plan.model.num_params)
        values = {
            "inverse_mass_matrix": metric,
            "trajectory_length": self.trajectory_length or _default_length(run, positions, metric),
            "trajectory_jitter": self.trajectory_jitter,
            "max_num_steps": self.max_num_steps,
        }
        return per_chain(values, positions)

    def init(self, key: jax.Array, position: Params, tuning: Tuning, density: Density) -> HMCState:
        """Position, terms and gradient."""
        del key, tuning
        return init(position, *_terms_and_gradient(density))

    def step(
        self, key: jax.Array, state: HMCState, tuning: Tuning, density: Density, rows: Rows
    ) -> tuple[HMCState, Stats]:
        """One trajectory, accepted or not."""
        del rows
        jitter_key, key = jax.random.split(key)
        step_size = tuning["step_size"]
        num_steps = _num_leapfrog_steps(jitter_key, tuning, step_size)
        new, info = _transition(key, state, tuning, density, step_size, num_steps)
        return new, {
            "lp": compensated_sum(new.terms),
            "acceptance_rate": info.acceptance_rate,
            "diverging": info.is_divergent,
            "energy": info.energy,
            "energy_change": info.energy_change,
            "n_steps": info.num_integration_steps,
            "step_size": step_size,
        }

    def adapt(
        self, key: jax.Array, position: Params, tuning: Tuning, density: Density, num_steps: int
    ) -> tuple[HMCState, Tuning]:
        """Dual averaging of the step size on the acceptance rate of whole trajectories (Hoffman and Gelman 2014)."""
        init_key, search_key, run_key = jax.random.split(key, 3)
        step_sizes = load_blackjax().adaptation.step_size
        state = self.init(init_key, position, tuning, density)

        def single_leapfrog(step_size: jax.Array) -> Callable[..., Any]:
            return lambda key, state: _transition(key, state, tuning, density, step_size, 1)

        target = self.target_acceptance_rate
        begin, update, final = step_sizes.dual_averaging_adaptation(target)
        dtype = tuning["temperature"].dtype
        first = step_sizes.find_reasonable_step_size(search_key, single_leapfrog, state, jnp.ones((), dtype), target)

        def body(index: jax.Array, carry: Any) -> Any:
            state, averaging = carry
            jitter_key, key = jax.random.split(jax.random.fold_in(run_key, index))
            step_size = jnp.exp(averaging.log_step_size).astype(dtype)
            count = _num_leapfrog_steps(jitter_key, tuning, step_size)
            state, info = _transition(key, state, tuning, density, step_size, count)
            new = update(averaging, info.acceptance_rate)
            return state, jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), new, averaging)

        averaging = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), begin(first))
        state, averaging = jax.lax.fori_loop(0, num_steps, body, (state, averaging))
        return state, {**tuning, "step_size": final(averaging).astype(dtype)}

    def reported(self, tuning: Tuning) -> dict[str, Any]:
        """The length that was used; the mass matrix, which can be large, by its kind."""
        length = float(tuning["trajectory_length"][0])
        return {**super().reported(tuning), "trajectory_length": length, "inverse_mass_matrix": "given"}


def _default_length(run: Run, positions: Params, metric: np.ndarray) -> float:
    """A quarter of the period of a network's prior, pi / 2 times its root mean square scale (Izmailov et al. 2021).

    At temperature T the scale is sqrt(T) times that of the prior; with a mass, it is in units of M^(-1/2).
    """
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], positions))
    scale = unravel(jnp.asarray(np.sqrt(metric)))
    length = 0.5 * math.pi * math.sqrt(run.temperature * float(prior_variance(run.plan, positions, scale)))
    if not math.isfinite(length):
        raise ValueError("the prior has no scale to go by; give trajectory_length")
    return length


def _terms_and_gradient(density: Density) -> tuple[Callable[[Params], Any], Callable[[Params], Params]]:
    terms = density.terms
    assert terms is not None
    return lambda params: terms(params, density.data), lambda params: density.gradient(params, density.data)


def _transition(
    key: jax.Array, state: HMCState, tuning: Tuning, density: Density, step_size: jax.Array, num_steps: jax.Array | int
) -> tuple[HMCState, HMCInfo]:
    _, unravel = ravel_pytree(state.position)
    return build_kernel()(
        key,
        state,
        *_terms_and_gradient(density),
        step_size,
        num_steps,
        unravel(tuning["inverse_mass_matrix"]),
        tuning["temperature"],
    )


def _num_leapfrog_steps(key: jax.Array, tuning: Tuning, step_size: jax.Array) -> jax.Array:
    """Steps of a trajectory of the length asked for, jittered; drawn without looking at the state."""
    jitter = tuning["trajectory_jitter"] * jax.random.uniform(key, (), step_size.dtype, -1.0, 1.0)
    wanted = jnp.ceil(tuning["trajectory_length"] * (1 + jitter) / step_size)
    return jnp.clip(wanted, 1, tuning["max_num_steps"]).astype(jnp.int32)
