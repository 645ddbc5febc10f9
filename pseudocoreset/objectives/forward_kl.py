"""Forward KL divergence KL(pi_x || pi_u): BPC-fKL (Kim et al. 2022).

    grad_u KL = E_{pi_u}[ grad_u sum_j w_j l(theta; u_j) ] - E_{pi_x}[ grad_u sum_j w_j l(theta; u_j) ],

likewise in weights and targets.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from pseudocoreset.arguments import checked
from pseudocoreset.data.augmentation import Augmentation
from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.models import Model, Params
from pseudocoreset.objectives.base import Gradient, Objective, check_free, differentiate
from pseudocoreset.objectives.chains import Chains
from pseudocoreset.objectives.gaussian import kl_divergence
from pseudocoreset.objectives.posteriors import InnerTraining, WeightDraws, bind_posteriors, closed_form
from pseudocoreset.proxies import Covariance
from pseudocoreset.rows import Rows
from pseudocoreset.validation import check_choice, check_integer

__all__ = ["check_draws", "forward_kl"]

ESTIMATORS = ("monte_carlo", "closed_form")


@checked
def forward_kl(
    model: Model,
    *,
    proxy: str | Covariance | Chains | None = None,
    data_draws: Params | None = None,
    num_draws: int = 30,
    estimator: str = "monte_carlo",
    augment: Augmentation | None = None,
    inner: InnerTraining | None = None,
    free: str | Sequence[str] = ("inputs",),
) -> Objective:
    """The forward KL divergence from the full-data to the coreset posterior, for one model.

    Estimated from draws, the gradient is divided by the mass of the weights, so that step sizes do not depend on it, as
    in the published recipes; that of ``estimator="closed_form"`` is of the divergence itself. Memory does not grow with
    the number of draws. Around MAP solutions of networks the sum of the weights is
    not determined, and ``fit`` keeps it.

    Args:
        model: a bound model.
        proxy: where draws come from, as in ``reverse_kl``.
        data_draws: draws of the full-data posterior, unconstrained parameters with a leading axis over draws (those of
            MCMC on the full data, say), instead of those of the proxy; needed with ``"chains"``.
        num_draws: S.
        estimator: ``"monte_carlo"``, or ``"closed_form"`` where both posteriors are Gaussian.
        augment: of the coreset, one a draw, the same for both terms; none by default.
        inner: training of networks on the coreset; its defaults are those of the reference.
        free: leaves of the coreset to differentiate.

    Raises:
        ValueError: for arguments out of range, or a proxy that this model does not have.
    """
    check_integer(num_draws, "num_draws")
    check_choice(estimator, "estimator", ESTIMATORS)
    free = check_free(free)
    if data_draws is not None:
        check_draws(model, data_draws)
    chains = "proxy='chains' with data_draws=sample(model, data, kernel='nuts', ...)"
    extra = "" if estimator == "monte_carlo" else " and estimator='monte_carlo'"
    posteriors = bind_posteriors(
        model,
        proxy,
        InnerTraining() if inner is None else inner,
        wants_data=data_draws is None,
        remedy=f"{chains}{extra}, or tighter priors",
    )
    settings = {
        **posteriors.settings,
        "num_draws": num_draws,
        "estimator": estimator,
        "data_draws": None if data_draws is None else len(jax.tree.leaves(data_draws)[0]),
        "augment_draws": None if augment is None else augment.strategy,
    }
    if estimator == "closed_form":
        return closed_form("forward_kl", model, posteriors, lambda p, q: kl_divergence(q, p), free, settings)

    def gradient(
        key: jax.Array, state: Any, coreset: Rows, data: DeviceData, snapshots: tuple[Params, ...]
    ) -> Gradient:
        draw_key, choice_key, view_key = jax.random.split(key, 3)
        fixed = jax.lax.stop_gradient(coreset)
        small: WeightDraws
        small, full, state, info = posteriors.draws(draw_key, state, fixed, data, snapshots, num_draws)
        count = jax.tree.leaves(small.items)[0].shape[0]
        if data_draws is not None:
            stored = jax.tree.map(jnp.asarray, data_draws)
            chosen = jax.random.choice(choice_key, jax.tree.leaves(stored)[0].shape[0], (count,))
            full = WeightDraws(jax.tree.map(lambda leaf: leaf[chosen], stored), Partial(lambda params: params))

        items = (small.items, full.items, jax.random.split(view_key, count))
        devices = data.devices.for_draws_of(model)
        total = devices.sum(
            functools.partial(_slope, model, augment, free), items, coreset, small.to_params, full.to_params
        )
        leaves, both = jax.tree.map(lambda leaf: leaf / count, total)
        info |= {"loss": both[0] - both[1], "data_loss": both[0], "coreset_loss": both[1]}
        return leaves, state, info

    return Objective("forward_kl", model, posteriors.init, gradient, posteriors.window, settings, free, posteriors.mass)


def _slope(
    model: Model,
    augment: Augmentation | None,
    free: tuple[str, ...],
    item: Any,
    points: Rows,
    of_small: Partial,
    of_full: Partial,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """The derivative of the mean loss at a draw of the data less that at one of the coreset, and both losses (2,)."""
    small_item, full_item, key = item
    mass = jax.lax.stop_gradient(jnp.sum(points.weights))

    def loss_fn(arrays: Rows) -> tuple[jax.Array, jax.Array]:
        inputs = arrays.inputs if augment is None else augment(key, arrays.inputs)

        def loss(params: Params) -> jax.Array:
            return -jnp.sum(arrays.weights * model.log_likelihood(params, inputs, arrays.targets)) / mass

        both = jnp.stack([loss(of_full(full_item)), loss(of_small(small_item))])
        return both[0] - both[1], both

    (_, both), leaves = differentiate(loss_fn, points, free)
    return leaves, both


def check_draws(model: Model, draws: Params) -> None:
    """Refuse what is not unconstrained draws of a bound model with one leading axis over draws.

    Raises:
        ValueError: for other sites or shapes, or sites with other numbers of draws.
    """
    wanted = {site.name: tuple(site.unconstrained_shape) for site in model.sites}
    shapes = {name: jnp.shape(leaf) for name, leaf in draws.items()}
    counts = {shape[:1] for shape in shapes.values()}
    if {name: shape[1:] for name, shape in shapes.items()} != wanted or len(counts) != 1 or counts == {(0,)}:
        raise ValueError(
            f"data_draws must hold a leading axis over draws and then the unconstrained shapes of {model.name!r}, "
            f"{wanted}; got {shapes}"
        )
