"""``fit_bpc_rkl``, ``fit_bpc_fkl`` and ``fit_bpc_w``: pseudocoresets under divergences between weight posteriors."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pseudocoreset.arguments import checked
from pseudocoreset.augment import Augmentation
from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data import Dataset
from pseudocoreset.data.doors import check_preprocessing
from pseudocoreset.experts import Experts
from pseudocoreset.fitting import Callback, FitResult
from pseudocoreset.methods.common import Common, Optimizer, adam, last_start, published_sgd, run
from pseudocoreset.models import Model, Params
from pseudocoreset.objectives import Chains, InnerTraining, Objective, forward_kl, reverse_kl, wasserstein
from pseudocoreset.objectives.posteriors import NoModeError
from pseudocoreset.proxies import Covariance
from pseudocoreset.recipes import BPCRecipe, bpc_recipe
from pseudocoreset.validation import check_integer

__all__ = ["fit_bpc_fkl", "fit_bpc_rkl", "fit_bpc_w"]

logger = logging.getLogger(__name__)

ALL_DATA_UP_TO, BATCH_BEYOND = 10_000, 1_000
PUBLISHED_STEP_SIZE = 1000.0
Proxy = str | Covariance | Chains | None


@checked
def fit_bpc_rkl(
    model: Model | Sequence[Model],
    data: Dataset,
    *,
    images_per_class: int | None = None,
    size: int | None = None,
    key: jax.Array,
    steps: int = 500,
    experts: Experts | Sequence[Experts] | None = None,
    proxy: Proxy = None,
    optimizer: Optimizer | None = None,
    step_size: float | None = None,
    augment: Augmentation | str | None = "auto",
    weights: str | None = None,
    targets: str = "fixed",
    num_draws: int | None = None,
    batch_size: int | None = None,
    estimator: str = "monte_carlo",
    target: str = "posterior",
    num_inner_steps: int | None = None,
    inner_learning_rate: float | None = None,
    expert_epochs: int = 1,
    first_epoch: int = 0,
    last_epoch: int | None = None,
    num_experts: int = 10,
    num_expert_epochs: int | None = None,
    coreset: Pseudocoreset | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    mesh: Mesh | None = None,
    fixed: Sequence[str | int] = (),
) -> FitResult:
    """Reverse KL: PSVI (Manousakas et al. 2020) for any model, BPC-rKL (Kim et al. 2022) for networks.

    Defaults for networks that are None are those of the reference code at its nearest number of points of each class
    (1, 10 or 20), which it runs for 5,000 steps; with ``target="tempered"`` the rest is the reference's too.

    Args:
        model: a model, or several (multi-architecture: their gradients are summed).
        data: the data set.
        images_per_class: points of each class.
        size: number of points in all; give this or ``images_per_class``.
        key: one typed key.
        steps: updates of the coreset.
        experts: for networks: trajectories from ``train_experts``, one set a model; trained here if None.
        proxy: where draws of the coreset posterior come from: ``"conjugate"`` (exact, where there is one),
            ``"laplace"``, ``"chains"`` (NUTS, warm from step to step, or ``Chains(...)``), for networks
            ``"isotropic"``, ``"trajectory"`` or one of ``pseudocoreset.proxies``; by default the first of conjugate,
            Laplace and chains that the model has, isotropic for networks.
        optimizer: acts on the free leaves, or one a leaf by name. By default Adam (second-moment decay 0.9) on all
            of them with steps ``step_size`` * cosine decay, of tables in units of each column; with
            ``target="tempered"`` SGD on the inputs of images.
        step_size: of the optimiser; 0.1, for networks on tables 0.01, or 1,000 with ``target="tempered"``.
        augment: of the coreset in the training of networks; ``"auto"``, a strategy, an ``Augmentation`` or None.
        weights: ``"learned"`` (from n / m each), ``"data"`` (n / m each) or ``"ones"``; None learns them, and takes
            ones for networks (Kim et al. 2022). Learned weights keep their mass, n, where the objective does not
            determine it: around MAP solutions of networks, and with ``target="tempered"``.
        targets: ``"fixed"``, or ``"learned"``: class probabilities, or real targets.
        num_draws: S, draws per step; 100, and 10 or 30 for networks.
        batch_size: B, data that the residual is estimated from in a step. By default all of them up to 10,000 and
            1,000 beyond, always 1,000 for networks; the noise of a batch is what keeps the divergence from zero.
        estimator: ``"monte_carlo"``, or ``"closed_form"`` where both posteriors are Gaussian.
        target: ``"posterior"``, or ``"tempered"``, as published for networks; see ``objectives.reverse_kl``.
        num_inner_steps: L, of networks on the coreset.
        inner_learning_rate: alpha, of networks on the coreset.
        expert_epochs: E, from the snapshot where this starts to the next.
        first_epoch: the earliest start.
        last_epoch: the latest start; 1, 19 or 29, or what the experts allow.
        num_experts: experts to train if none are given.
        num_expert_epochs: their epochs.
        coreset: where to start instead of random real data.
        callbacks: called between blocks as ``callback(step, coreset, info)``; True stops.
        checkpoint_dir: where to keep checkpoints.
        progress: show progress bars.
        mesh: devices that share the draws of a step and the experts trained here; see ``fit``.
        fixed: inputs to hold as they are at the start: arrays of a dictionary by name, or columns of inputs (n, p) by
            position.

    Returns:
        ``FitResult``.

    Raises:
        ValueError: for arguments out of range or that do not go together.
    """
    common = Common(
        model, data, images_per_class, size, key, steps, experts, augment, weights, targets, num_experts,
        num_expert_epochs, coreset, callbacks, checkpoint_dir, progress, mesh, fixed,
    ).checked()  # fmt: skip
    recipe = bpc_recipe(common.points_per_class)
    inner = _inner(common, recipe, num_inner_steps, inner_learning_rate, expert_epochs, first_epoch, last_epoch)

    def build(one: Model, proxy: Any = proxy) -> Objective:
        draws = (recipe.reverse_kl_draws if one.is_network else 100) if num_draws is None else num_draws
        return reverse_kl(
            one,
            proxy=proxy,
            num_draws=draws,
            batch_size=_residual_batch(one, data) if batch_size is None else batch_size,
            estimator=estimator,
            target=target,
            inner=inner,
            free=common.free,
        )

    default = published_sgd(common, PUBLISHED_STEP_SIZE, momentum=0.0) if target == "tempered" else adam(common)
    how: dict[str, Any] = {"optimizer": optimizer, "step_size": step_size, "default": default}
    try:
        return run("bpc_rkl", common, build, **how)
    except NoModeError as error:
        if proxy is not None or estimator != "monte_carlo":
            raise
        logger.warning("%s Chains of the coreset posterior take its place.", _first_sentence(error))
        return run("bpc_rkl", common, functools.partial(build, proxy="chains"), **how)


@checked
def fit_bpc_fkl(
    model: Model | Sequence[Model],
    data: Dataset,
    *,
    images_per_class: int | None = None,
    size: int | None = None,
    key: jax.Array,
    steps: int = 500,
    experts: Experts | Sequence[Experts] | None = None,
    proxy: Proxy = None,
    data_draws: Any = None,
    optimizer: Optimizer | None = None,
    step_size: float | None = None,
    augment: Augmentation | str | None = "auto",
    weights: str | None = None,
    targets: str = "fixed",
    num_draws: int = 30,
    estimator: str = "monte_carlo",
    num_inner_steps: int | None = None,
    inner_learning_rate: float | None = None,
    expert_epochs: int = 1,
    first_epoch: int = 0,
    last_epoch: int | None = None,
    num_experts: int = 10,
    num_expert_epochs: int | None = None,
    coreset: Pseudocoreset | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    mesh: Mesh | None = None,
    fixed: Sequence[str | int] = (),
) -> FitResult:
    """Forward KL: BPC-fKL (Kim et al. 2022), for networks and for any other model.

    Arguments are those of ``fit_bpc_rkl``, but for these.

    Args:
        model: a model, or several.
        data: the data set.
        images_per_class: points of each class.
        size: number of points in all.
        key: one typed key.
        steps: updates of the coreset.
        experts: for networks.
        proxy: as in ``fit_bpc_rkl``; ``"chains"`` takes the draws of the full data from ``data_draws``.
        data_draws: draws of the full-data posterior instead of the proxy's: a ``Posterior`` that kept its weights, or
            unconstrained parameters with a leading axis over draws. A ``Posterior`` of a coreset, of another number of
            data or of inputs with another preprocessing is refused.
        optimizer: SGD with momentum 0.5 on the images of networks by default, Adam elsewhere as in ``fit_bpc_rkl``.
        step_size: of the optimiser; 1,000 for networks, 0.1 elsewhere.
        augment: of the coreset, in the training of networks and, one a draw, in both terms of the gradient.
        weights: ``"learned"``, ``"data"`` or ``"ones"``; None learns them, and takes ones for networks. Learned weights
            keep their mass where the objective does not determine it (around MAP solutions of networks).
        targets: ``"fixed"`` or ``"learned"``.
        num_draws: S, draws a step; memory does not grow with it.
        estimator: ``"monte_carlo"``, or ``"closed_form"`` where both posteriors are Gaussian.
        num_inner_steps: L.
        inner_learning_rate: alpha.
        expert_epochs: E.
        first_epoch: the earliest start.
        last_epoch: the latest start.
        num_experts: experts to train if none are given.
        num_expert_epochs: their epochs.
        coreset: where to start.
        callbacks: called between blocks.
        checkpoint_dir: where to keep checkpoints.
        progress: show progress bars.
        mesh: devices that share the draws of a step and the experts trained here; see ``fit``.
        fixed: inputs to hold as they are at the start: arrays of a dictionary by name, or columns of inputs (n, p) by
            position.

    Returns:
        ``FitResult``.

    Raises:
        ValueError: for arguments out of range or that do not go together.
    """
    common = Common(
        model, data, images_per_class, size, key, steps, experts, augment, weights, targets, num_experts,
        num_expert_epochs, coreset, callbacks, checkpoint_dir, progress, mesh, fixed,
    ).checked()  # fmt: skip
    recipe = bpc_recipe(common.points_per_class)
    inner = _inner(common, recipe, num_inner_steps, inner_learning_rate, expert_epochs, first_epoch, last_epoch)
    given = _stacked(data_draws, data, common.models[0])

    def build(one: Model, proxy: Any = proxy, given: Params | None = given) -> Objective:
        return forward_kl(
            one,
            proxy=proxy,
            data_draws=given,
            num_draws=num_draws,
            estimator=estimator,
            augment=common.augmentation if one.is_network else None,
            inner=inner,
            free=common.free,
        )

    networks = all(m.is_network for m in common.models)
    default = published_sgd(common, PUBLISHED_STEP_SIZE, momentum=0.5) if networks else adam(common)
    how: dict[str, Any] = {"optimizer": optimizer, "step_size": step_size, "default": default}
    try:
        return run("bpc_fkl", common, build, **how)
    except NoModeError as error:
        if proxy is not None or estimator != "monte_carlo" or given is not None or len(common.models) > 1:
            raise
        logger.warning("%s Draws by NUTS of both posteriors take its place.", _first_sentence(error))
        # BlackJAX puts an array on the device when it is imported.
        from pseudocoreset.inference import sample

        draws = sample(common.models[0], data, kernel="nuts", key=jax.random.fold_in(key, 1), progress=progress)
        given = _stacked(draws, data, common.models[0])
        return run("bpc_fkl", common, functools.partial(build, proxy="chains", given=given), **how)


@checked
def fit_bpc_w(
    model: Model | Sequence[Model],
    data: Dataset,
    *,
    images_per_class: int | None = None,
    size: int | None = None,
    key: jax.Array,
    steps: int = 500,
    experts: Experts | Sequence[Experts] | None = None,
    proxy: str | None = None,
    optimizer: Optimizer | None = None,
    step_size: float | None = None,
    augment: Augmentation | str | None = "auto",
    weights: str | None = None,
    targets: str = "fixed",
    num_inner_steps: int | None = None,
    inner_learning_rate: float | None = None,
    learn_step_size: float = 1e-3,
    rematerialise: str = "step",
    expert_epochs: int | None = None,
    first_epoch: int = 0,
    last_epoch: int | None = None,
    num_experts: int = 10,
    num_expert_epochs: int | None = None,
    coreset: Pseudocoreset | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    mesh: Mesh | None = None,
    fixed: Sequence[str | int] = (),
) -> FitResult:
    """Wasserstein distance: BPC-W (Kim et al. 2022), for networks the same as trajectory matching.

    Arguments are those of ``fit_bpc_rkl``, but for these.

    Args:
        model: a model, or several.
        data: the data set.
        images_per_class: points of each class.
        size: number of points in all.
        key: one typed key.
        steps: updates of the coreset.
        experts: for networks.
        proxy: ``"conjugate"``, ``"laplace"``, or ``"isotropic"`` for networks; by default what suits the model.
        optimizer: SGD with momentum 0.5 on the images of networks by default, Adam elsewhere as in ``fit_bpc_rkl``.
        step_size: of the optimiser; 1,000 for networks, 0.1 elsewhere.
        augment: of the coreset in the training of networks.
        weights: ``"learned"``, ``"data"`` or ``"ones"``; None learns them, and takes ones for networks. Learned weights
            keep their mass where the objective does not determine it (around MAP solutions of networks).
        targets: ``"fixed"`` or ``"learned"``.
        num_inner_steps: L; gradients flow through all of them.
        inner_learning_rate: alpha at the start.
        learn_step_size: Adam step size on the logarithm of alpha; 0 keeps it.
        rematerialise: ``"step"`` or ``"sqrt"``; see ``objectives.wasserstein``.
        expert_epochs: E; 1 or 2, by the table of the reference.
        first_epoch: the earliest start.
        last_epoch: the latest start.
        num_experts: experts to train if none are given.
        num_expert_epochs: their epochs.
        coreset: where to start.
        callbacks: called between blocks.
        checkpoint_dir: where to keep checkpoints.
        progress: show progress bars.
        mesh: devices that share the experts trained here; the steps themselves gain nothing.
        fixed: inputs to hold as they are at the start: arrays of a dictionary by name, or columns of inputs (n, p) by
            position.

    Returns:
        ``FitResult``.

    Raises:
        ValueError: for arguments out of range or that do not go together.
    """
    common = Common(
        model, data, images_per_class, size, key, steps, experts, augment, weights, targets, num_experts,
        num_expert_epochs, coreset, callbacks, checkpoint_dir, progress, mesh, fixed,
    ).checked()  # fmt: skip
    recipe = bpc_recipe(common.points_per_class)
    ahead = recipe.wasserstein_epochs if expert_epochs is None else expert_epochs
    inner = _inner(common, recipe, num_inner_steps, inner_learning_rate, ahead, first_epoch, last_epoch)

    def build(one: Model) -> Objective:
        return wasserstein(
            one,
            proxy=proxy,
            inner=inner,
            learn_step_size=learn_step_size,
            rematerialise=rematerialise,
            free=common.free,
        )

    networks = all(m.is_network for m in common.models)
    default = published_sgd(common, PUBLISHED_STEP_SIZE, momentum=0.5) if networks else adam(common)
    return run("bpc_w", common, build, optimizer=optimizer, step_size=step_size, default=default)


def _inner(
    common: Common,
    recipe: BPCRecipe,
    num_steps: int | None,
    learning_rate: float | None,
    expert_epochs: int,
    first_epoch: int,
    last_epoch: int | None,
) -> InnerTraining:
    """Settings of the training on the coreset, by the reference's table where they are not given."""
    check_integer(expert_epochs, "expert_epochs")
    check_integer(first_epoch, "first_epoch", minimum=0)
    if last_epoch is None:
        last_epoch = last_start(common, first_epoch, recipe.starts - 1, expert_epochs)
    return InnerTraining(
        num_steps=recipe.num_inner_steps if num_steps is None else num_steps,
        learning_rate=recipe.inner_learning_rate if learning_rate is None else learning_rate,
        expert_epochs=expert_epochs,
        first_epoch=first_epoch,
        last_epoch=last_epoch,
        augment=common.augmentation,
    )


def _first_sentence(error: Exception) -> str:
    return str(error).split(". Take ")[0] + "."


def _residual_batch(model: Model, data: Dataset) -> int | None:
    """Data for the residual of the reverse KL, None for all."""
    return None if data.train.num_data <= ALL_DATA_UP_TO and not model.is_network else BATCH_BEYOND


def _stacked(draws: Any, data: Dataset, model: Model) -> Params | None:
    """Unconstrained draws of the posterior of ``data`` with one leading axis, from a ``Posterior`` or as they are."""
    if draws is None:
        return None
    if isinstance(draws, dict):
        stacked = {name: jnp.asarray(leaf) for name, leaf in draws.items()}
    else:
        unconstrained = getattr(draws, "unconstrained", None)
        if unconstrained is None:
            raise ValueError(
                "data_draws must be a Posterior that kept its weights (keep='weights'), or unconstrained parameters "
                f"with a leading axis over draws; got {draws!r}"
            )
        _check_is_of(data, draws.metadata)
        stacked = {name: jnp.asarray(np.reshape(a, (-1, *a.shape[2:]))) for name, a in unconstrained.items()}
    wanted = {site.name: tuple(site.unconstrained_shape) for site in model.sites}
    shapes = {name: leaf.shape[1:] for name, leaf in stacked.items()}
    if shapes != wanted or len({leaf.shape[0] for leaf in stacked.values()}) != 1:
        raise ValueError(
            f"data_draws must hold a leading axis over draws and then the unconstrained shapes of {model.name!r}, "
            f"{wanted}; got { ({name: leaf.shape for name, leaf in stacked.items()}) }"
        )
    return stacked


def _check_is_of(data: Dataset, metadata: Mapping[str, Any]) -> None:
    """Refuse draws whose metadata say that their posterior is of something other than all the training data."""
    remedy = "Take sample(model, data, kernel='nuts', keep='weights', ...) of the data that the coreset is learned from"
    if metadata.get("coreset") is not None:
        raise ValueError(f"data_draws are of the posterior of a coreset, not of all data. {remedy}")
    count = metadata.get("num_data", data.train.num_data)
    if count != data.train.num_data:
        raise ValueError(f"data_draws are of the posterior of {count} data, data has {data.train.num_data}. {remedy}")
    check_preprocessing(metadata.get("preprocessing"), data.preprocessing.summary, "data_draws", "data", remedy)
