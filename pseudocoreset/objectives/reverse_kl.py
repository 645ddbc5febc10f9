"""Reverse KL divergence KL(pi_u || pi_x): PSVI (Manousakas et al. 2020) and BPC-rKL (Kim et al. 2022).

With l(theta; z) the log-likelihood of a datum and the residual
r(theta) = sum_i l(theta; x_i) - sum_j w_j l(theta; u_j),

    grad_w KL = -Cov[ (l(theta; u_j))_j, r(theta) ],    grad_{u_j} KL = -w_j Cov[ grad_u l(theta; u_j), r(theta) ],

covariances under the coreset posterior: exact identities, for any model.

The published code for networks (Kim et al. 2022) takes means in the place of both sums of the residual. That is the
gradient for another target, the posterior of the data weighted down to the mass M = sum_j w_j of the coreset,

    pi_x^(M/n) ~ pi_0(theta) exp( (M / n) sum_i l(theta; x_i) ),   r(theta) / M = mean_i l_i - sum_j w_j l_j / M.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from pseudocoreset.arguments import checked
from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.models import Model, Params
from pseudocoreset.objectives.base import Gradient, Objective, check_free, differentiate
from pseudocoreset.objectives.chains import Chains
from pseudocoreset.objectives.gaussian import kl_divergence
from pseudocoreset.objectives.posteriors import InnerTraining, WeightDraws, bind_posteriors, closed_form
from pseudocoreset.proxies import Covariance
from pseudocoreset.rows import Rows
from pseudocoreset.validation import check_choice, check_integer

__all__ = ["reverse_kl"]

ESTIMATORS = ("monte_carlo", "closed_form")
TARGETS = ("posterior", "tempered")


@checked
def reverse_kl(
    model: Model,
    *,
    proxy: str | Covariance | Chains | None = None,
    num_draws: int = 100,
    batch_size: int | None = 256,
    estimator: str = "monte_carlo",
    target: str = "posterior",
    inner: InnerTraining | None = None,
    free: str | Sequence[str] = ("inputs", "weights"),
) -> Objective:
    """The reverse KL divergence between the coreset and the full-data posterior, for one model.

    With ``target="posterior"`` the coreset posterior is compared with the full-data posterior itself, for weights that
    sum to about n, learned or fixed. With ``target="tempered"`` it is compared with the posterior of the data weighted
    down to the mass of the coreset; that says nothing of the mass, which ``fit`` keeps where weights are learned, as it
    does around MAP solutions of networks.

    Args:
        model: a bound model.
        proxy: where draws of the coreset posterior come from: ``"conjugate"``, ``"laplace"``, ``"chains"`` (or
            ``Chains(...)``), or a Gaussian around a MAP solution of a network, ``"isotropic"`` (sigma 0.01),
            ``"trajectory"`` or one of ``pseudocoreset.proxies``; by default what suits the model.
        num_draws: S (with chains, their number counts).
        batch_size: B, data that the residual is estimated from at a step; None for all.
        estimator: ``"monte_carlo"``, the identities above, or ``"closed_form"`` where both posteriors are Gaussian
            (conjugate or dense Laplace): exact, no draws.
        target: ``"posterior"``, or ``"tempered"``: (weighted) means in the residual, as published for networks. The
            gradient is that of the tempered divergence, the mass M held fixed, times m / M^2: for weights of one the
            published one, and around MAP solutions the same at any mass.
        inner: training of networks on the coreset; its defaults are those of the reference.
        free: leaves of the coreset to differentiate.

    Raises:
        ValueError: for arguments out of range, or a proxy that this model does not have.
    """
    check_integer(num_draws, "num_draws", minimum=2)
    check_choice(estimator, "estimator", ESTIMATORS)
    check_choice(target, "target", TARGETS)
    if batch_size is not None:
        check_integer(batch_size, "batch_size")
    if estimator == "closed_form" and target == "tempered":
        raise ValueError("target='tempered' has no closed form here; use estimator='monte_carlo'")
    free = check_free(free)
    chains = "proxy='chains'" if estimator == "monte_carlo" else "proxy='chains' with estimator='monte_carlo'"
    posteriors = bind_posteriors(
        model,
        proxy,
        InnerTraining() if inner is None else inner,
        wants_data=estimator == "closed_form",
        remedy=f"{chains}, or tighter priors",
    )
    settings = {
        **posteriors.settings,
        "num_draws": num_draws,
        "batch_size": batch_size,
        "estimator": estimator,
        "target": target,
    }
    if estimator == "closed_form":
        return closed_form("reverse_kl", model, posteriors, kl_divergence, free, settings)

    def gradient(
        key: jax.Array, state: Any, coreset: Rows, data: DeviceData, snapshots: tuple[Params, ...]
    ) -> Gradient:
        draw_key, batch_key = jax.random.split(key)
        fixed = jax.lax.stop_gradient(coreset)
        draws: WeightDraws
        draws, _, state, info = posteriors.draws(draw_key, state, fixed, data, snapshots, num_draws)
        n = data.num_data
        rows = (
            data.batch(jnp.arange(n)) if batch_size is None or batch_size >= n else data.sample(batch_key, batch_size)
        )
        devices = data.devices.for_draws_of(model)
        residual = functools.partial(_residual, model, n, target)
        # One factor of a covariance centred is enough.
        each = devices.map(residual, draws.items, draws.to_params, rows, fixed)
        count = each.shape[0]
        centred = (each - jnp.mean(each)) * (count / (count - 1))
        if target == "tempered":
            centred = centred / jnp.mean(fixed.weights)

        slope = functools.partial(_slope, model, free)
        total = devices.sum(slope, (draws.items, centred), coreset, draws.to_params)
        leaves = jax.tree.map(lambda leaf: leaf / count, total)
        info |= {"loss": jnp.std(each), "residual_mean": jnp.mean(each)}
        return leaves, state, info

    mass = "kept" if target == "tempered" else posteriors.mass
    return Objective(
        "reverse_kl", model, posteriors.init, gradient, posteriors.window, settings, free, mass, loss_is_value=True
    )


def _residual(
    model: Model, n: int, target: str, item: Any, to_params: Partial, rows: tuple[jax.Array, jax.Array], points: Rows
) -> jax.Array:
    """r(theta) of a draw; the sum over n data is estimated from ``rows``."""
    params = to_params(item)
    full = jnp.mean(model.log_likelihood(params, *rows))
    small = jnp.sum(points.weights * model.log_likelihood(params, points.inputs, points.targets))
    if target == "tempered":
        return full - small / jnp.sum(points.weights)
    return n * full - small


def _slope(
    model: Model, free: tuple[str, ...], item: tuple[Any, jax.Array], points: Rows, to_params: Partial
) -> dict[str, jax.Array]:
    """The derivative of the log-likelihood of the points at a draw, times what its residual is above the mean."""
    params, factor = to_params(item[0]), item[1]

    def loss_fn(arrays: Rows) -> tuple[jax.Array, None]:
        each = model.log_likelihood(params, arrays.inputs, arrays.targets)
        return -factor * jnp.sum(arrays.weights * each), None

    return differentiate(loss_fn, points, free)[1]
