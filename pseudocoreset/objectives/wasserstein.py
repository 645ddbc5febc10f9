"""Squared Wasserstein distance between coreset and full-data posterior: BPC-W (Kim et al. 2022).

Between Gaussians N(mu_u, Sigma_u) and N(mu_x, Sigma_x) it is |mu_u - mu_x|^2 and a term in the covariances. For
networks mu_u is the end of a short training on the coreset, differentiated through, and the covariances are held fixed,
which makes it trajectory matching (MTT; Cazenavette et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pseudocoreset.arguments import checked
from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.models import Model, Params
from pseudocoreset.objectives.base import LEAVES, Gradient, Objective, check_free
from pseudocoreset.objectives.gaussian import squared_wasserstein
from pseudocoreset.objectives.posteriors import InnerTraining, bind_posteriors, closed_form
from pseudocoreset.objectives.unrolled import KEPT, descend_through
from pseudocoreset.proxies import mean_loss
from pseudocoreset.proxies.laplace import DENSE_LIMIT
from pseudocoreset.rows import Rows
from pseudocoreset.validation import check_choice

__all__ = ["trajectory_matching", "wasserstein"]


class _StepSize(NamedTuple):
    """The learned step size of the inner training, as its logarithm: it cannot turn negative."""

    log_value: jax.Array
    optimizer: Any


@checked
def wasserstein(
    model: Model,
    *,
    proxy: str | None = None,
    inner: InnerTraining | None = None,
    learn_step_size: float = 1e-3,
    rematerialise: str = "step",
    free: str | Sequence[str] = ("inputs",),
) -> Objective:
    """The squared Wasserstein distance, for one model.

    For networks |theta_L - theta*_{t+E}|^2 / |theta*_t - theta*_{t+E}|^2, theta_L after L steps on the coreset from the
    expert snapshot theta*_t; gradients flow through all L steps (``objectives.unrolled``). The steps go down a weighted
    mean, so that the sum of the weights has no say, and ``fit`` keeps it. For models with Gaussian posteriors
    (conjugate or dense Laplace) the distance itself in closed form.

    Args:
        model: a bound model.
        proxy: ``"conjugate"``, ``"laplace"`` or ``"isotropic"``; by default what suits the model.
        inner: training of networks on the coreset; its defaults are those of the reference.
        learn_step_size: Adam step size on the logarithm of alpha; 0 keeps it.
        rematerialise: what is kept for the backward sweep: ``"step"``, the parameters of every step, or ``"sqrt"``,
            of every sqrt(L)-th, for large networks.
        free: leaves of the coreset to differentiate.

    Raises:
        ValueError: for arguments out of range, or a proxy that this model does not have.
    """
    free = check_free(free)
    training = InnerTraining() if inner is None else inner
    has_gaussian = model.is_network or model.conjugate is not None or model.num_params <= DENSE_LIMIT
    if proxy == "chains" or (proxy is None and not has_gaussian):
        raise ValueError(
            "proxy: the Wasserstein distance is taken between Gaussians, by a conjugate posterior or a dense Laplace "
            f"approximation of at most {DENSE_LIMIT} parameters; {model.name!r} has {model.num_params}, or was asked "
            "for chains. Take fit_bpc_rkl, whose chains are of the coreset's posterior alone, or fit_bpc_fkl with "
            "data_draws=sample(model, data, kernel='nuts', keep='weights', ...)"
        )
    posteriors = bind_posteriors(model, proxy, training)
    if posteriors.gaussians is not None:
        return closed_form("wasserstein", model, posteriors, squared_wasserstein, free)
    if proxy not in (None, "isotropic"):
        raise ValueError(
            f"proxy={proxy!r}: fixed covariances leave the gradient of the Wasserstein distance as it is; use "
            "'isotropic', or 'conjugate' or 'laplace' for a model of a few parameters"
        )
    return _unrolled("wasserstein", model, training, learn_step_size, rematerialise, free)


@checked
def trajectory_matching(
    model: Model,
    *,
    inner: InnerTraining | None = None,
    learn_step_size: float = 1e-3,
    rematerialise: str = "step",
    free: str | Sequence[str] = ("inputs",),
) -> Objective:
    """Matching training trajectories (MTT; Cazenavette et al. 2022).

    The same as ``wasserstein`` with equal isotropic covariances (Kim et al. 2022), for any model, under its own name.

    Args:
        model: a bound model.
        inner: L, alpha, E and the window of the expert snapshots.
        learn_step_size: Adam step size on the logarithm of alpha; 0 keeps it.
        rematerialise: see ``wasserstein``.
        free: leaves of the coreset to differentiate.
    """
    training = InnerTraining() if inner is None else inner
    return _unrolled("trajectory_matching", model, training, learn_step_size, rematerialise, check_free(free))


def _unrolled(
    name: str,
    model: Model,
    inner: InnerTraining,
    learn_step_size: float,
    rematerialise: str,
    free: tuple[str, ...],
) -> Objective:
    check_choice(rematerialise, "rematerialise", KEPT)
    if not 0 <= learn_step_size < 1:
        raise ValueError(f"learn_step_size must be in [0, 1); got {learn_step_size}")
    adam = optax.adam(learn_step_size)

    def init(key: jax.Array, coreset: Rows, data: DeviceData) -> _StepSize:
        log_value = jnp.log(jnp.asarray(inner.learning_rate, coreset.inputs.dtype))
        return _StepSize(log_value, adam.init(log_value))

    def step_loss(key: jax.Array, params: Params, leaves: dict[str, jax.Array], coreset: Rows) -> jax.Array:
        return mean_loss(model, params, inner.batches(coreset._replace(**leaves))(key))

    def gradient(
        key: jax.Array, state: _StepSize, coreset: Rows, data: DeviceData, snapshots: tuple[Params, ...]
    ) -> Gradient:
        start, target = snapshots

        def distance(one: Params, other: Params) -> jax.Array:
            return optax.tree.norm(optax.tree.sub(one, other), squared=True)

        whole = distance(start, target)

        def loss_fn(leaves: dict[str, jax.Array], log_value: jax.Array) -> jax.Array:
            keys = jax.random.split(key, inner.num_steps)
            solution = descend_through(step_loss, start, leaves, jnp.exp(log_value), coreset, keys, rematerialise)
            return distance(solution, target) / whole

        chosen = {leaf: getattr(coreset, leaf) for leaf in LEAVES if leaf in free}
        loss, (leaves, slope) = jax.value_and_grad(loss_fn, argnums=(0, 1))(chosen, state.log_value)
        update, optimizer = adam.update(slope, state.optimizer)
        moved = _StepSize(state.log_value + update, optimizer) if learn_step_size else state
        return leaves, moved, {"loss": loss, "step_size": jnp.exp(state.log_value)}

    settings = {**inner.describe(), "learn_step_size": learn_step_size, "rematerialise": rematerialise}
    return Objective(name, model, init, gradient, inner.window, settings, free, "kept", loss_is_value=True)
