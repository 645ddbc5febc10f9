"""Stochastic gradient Langevin dynamics of BlackJAX (Euler), with preconditioners and control variates."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.compute.processes import to_host
from pseudocoreset.inference.adaptation.curvature import HEAT
from pseudocoreset.inference.adaptation.gradients import GradientKernel
from pseudocoreset.inference.adaptation.lazy import load_blackjax
from pseudocoreset.inference.adaptation.mass import into_units, out_of_units
from pseudocoreset.inference.adaptation.scales import position_step_size
from pseudocoreset.inference.engine.kernel import Stats, Tuning
from pseudocoreset.inference.engine.plan import Plan, Run
from pseudocoreset.inference.kernels.registry import register
from pseudocoreset.models import Params

__all__ = ["SGLD"]

# Step times the curvature: variances are 5 % too large.
CURVED_STEP = 0.1
# Shorter chains say nothing about their temperature.
MIN_DRAWS = 20
MOST_INFLATION = 1.25  # of variances, by the steps
NUM_PARTS = 5  # of a chain, for the error of its mean


@register
@dataclass(frozen=True, kw_only=True)
class SGLD(GradientKernel):
    """Stochastic gradient Langevin dynamics (Welling and Teh 2011).

    One gradient of a minibatch per step. Its draws have a bias that the step size controls: variances are too large by
    about the factor 1 / (1 - step_size curvature / 2), and the noise of gradients adds to it. It reports
    ``configurational_temperature``, whose ratio to the temperature is about the factor by which variances are too
    large.

    Attributes:
        schedule: how the step size changes: ``"constant"``, ``"polynomial"``, ``"cyclical"`` or one of
            ``pseudocoreset.inference.schedules``; draws of a decreasing step size are to be weighted by it.
        preconditioner: ``"curvature"``, the inverse of the negative Hessian of the log density at the mode that
            Newton's method finds from where the chain starts (at most 300 parameters; the chain starts there);
            ``"rmsprop"``, for each site the least root mean square gradient of any site divided by its own, estimated
            during the warmup and then frozen; a diagonal inverse mass, positive arrays by site or one vector, given
            with ``step_size``; None; or ``"auto"``: curvature where ``step_size`` has its default, the model is no
            network, has at most 300 parameters, and nothing is augmented or on disk, else None.
        control_variate: True, or a point ``{site: array}``: gradients of minibatches are corrected by those at a
            centre, which for True L-BFGS finds from where the chain starts, or the mode of the curvature; chains then
            start at the centre. ``"auto"``: with the curvature alone. False for none.

    Raises:
        TypeError, ValueError: for values outside these ranges.
    """

    name = "sgld"

    def default_step_size(self, plan: Plan, positions: Params, total_weight: float) -> float:
        """0.01 / max(W, 1), less where a network's prior is narrower than the data call for."""
        return position_step_size(plan, positions, total_weight)

    @staticmethod
    def curved_step_size(kappa: jax.Array, noise: jax.Array, friction: float | None) -> jax.Array:
        """Step e inflates variances by 1 / (1 - e kappa / 2), and noise of gradients adds e sigma^2 / 2."""
        del friction
        return jnp.minimum(CURVED_STEP / kappa, 2 * HEAT / noise)

    def start(self, key: jax.Array, position: Params, tuning: Tuning) -> Params:
        """The parameters themselves."""
        del key, tuning
        return position

    def move(
        self, key: jax.Array, state: Params, gradient: Params, inverse_mass: Params | None, tuning: Tuning
    ) -> tuple[Params, Stats]:
        """Theta + e g + sqrt(2 e T) xi, in units of the mass."""
        kernel = load_blackjax().sgld.build_kernel()
        step_size, temperature = tuning["step_size"], tuning["temperature"]
        scaled = into_units(gradient, inverse_mass)
        stats = {
            "configurational_temperature": _configurational_temperature(scaled, step_size, temperature),
            "step_size": step_size,
        }
        if inverse_mass is None:
            return kernel(key, state, lambda position, minibatch: gradient, None, step_size, temperature), stats
        # The move of theta in units of G^(1/2) by BlackJAX, from zero so that nothing is rounded on the way to it and
        # back.
        zeros = jax.tree.map(jnp.zeros_like, state)
        moved = kernel(key, zeros, lambda position, minibatch: scaled, None, step_size, temperature)
        move = out_of_units(moved, inverse_mass)
        return jax.tree.map(lambda q, m: (q + m).astype(q.dtype), state, move), stats

    def warn(self, stats: Mapping[str, np.ndarray], run: Run, tuning: Tuning) -> None:
        """Warn if variances are too large by more than a quarter, by the configurational temperature.

        Either of all chains together, or of one by four standard errors, from the means of its fifths.
        """
        super().warn(stats, run, tuning)
        # A stopped run of a version that did not report it goes on without it.
        measured = stats.get("configurational_temperature")
        if measured is None or measured.size < MIN_DRAWS:
            return
        measured = measured.astype(np.float64) / float(to_host(tuning["temperature"])[0])
        ratio, worst = float(np.mean(measured)), 0.0
        if measured.shape[1] >= MIN_DRAWS:
            fifths = np.stack([np.mean(part, axis=1) for part in np.array_split(measured, NUM_PARTS, axis=1)])
            errors = np.std(fifths, axis=0, ddof=1) / math.sqrt(NUM_PARTS)
            worst = float(np.max(np.mean(fifths, axis=0) - 4 * errors))
        if not (ratio <= MOST_INFLATION and worst <= MOST_INFLATION):
            most = np.max(np.mean(measured, axis=1))
            has_batches = run.plan.batch_size is not None
            remedy = "a smaller step_size or a larger batch_size" if has_batches else "a smaller step_size"
            warnings.warn(
                f"the configurational temperature of the chains is {ratio:.3g} times the temperature asked for, and of "
                f"one of them {most:.3g} times: by about this factor the step size (now "
                f"{np.max(to_host(tuning['step_size'])):.3g}) and the noise of gradients make variances too large, or "
                f"the chains have not settled. Try {remedy}, or more num_warmup",
                stacklevel=3,
            )


def _configurational_temperature(scaled: Params, step_size: jax.Array, temperature: jax.Array) -> jax.Array:
    """T + e |g|^2 / (2 d), g the gradient estimate in units of the mass: its stationary mean is -E[theta . g] / d.

    A step keeps E |theta|^2 where that is so. For the exact dynamics it is T; on a Gaussian it is T times the mean
    over parameters of the factor by which the step size and the noise of gradients inflate their variances.
    """
    total = jax.tree.reduce(jnp.add, jax.tree.map(lambda leaf: jnp.sum(leaf**2), scaled))
    count = sum(leaf.size for leaf in jax.tree.leaves(scaled))
    return temperature + step_size * total / (2 * count)
