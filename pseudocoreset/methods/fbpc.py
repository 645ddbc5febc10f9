"""``fit_fbpc``: function space Bayesian pseudocoresets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import jax
from jax.sharding import Mesh

from pseudocoreset.arguments import checked
from pseudocoreset.augment import Augmentation
from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data import Dataset
from pseudocoreset.experts import Experts
from pseudocoreset.fitting import Callback, FitResult
from pseudocoreset.methods.common import Common, Optimizer, published_sgd, run
from pseudocoreset.models import Model
from pseudocoreset.objectives import Objective, function_kl
from pseudocoreset.proxies import Covariance, Trajectory
from pseudocoreset.recipes import fbpc_recipe
from pseudocoreset.validation import check_integer

__all__ = ["fit_fbpc"]


@checked
def fit_fbpc(
    model: Model | Sequence[Model],
    data: Dataset,
    *,
    images_per_class: int | None = None,
    size: int | None = None,
    key: jax.Array,
    steps: int | None = None,
    experts: Experts | Sequence[Experts] | None = None,
    proxy: str | Covariance = "trajectory",
    optimizer: Optimizer | None = None,
    step_size: float | None = None,
    augment: Augmentation | str | None = "auto",
    weights: str | None = None,
    targets: str = "fixed",
    num_draws: int = 30,
    num_networks: int = 1,
    first_epoch: int | None = None,
    last_epoch: int | None = None,
    inner_loss: float | None = None,
    inner_learning_rate: float = 1e-3,
    inner_max_steps: int = 500,
    coreset_batch_size: int | None = None,
    num_experts: int = 10,
    num_expert_epochs: int | None = None,
    coreset: Pseudocoreset | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    mesh: Mesh | None = None,
    fixed: Sequence[str | int] = (),
) -> FitResult:
    """Function space Bayesian pseudocoreset (FBPC; Kim, Lee and Lee 2023, Algorithm 1).

    Defaults that are None come from Table 4 of the paper for the data sets that it names, at its nearest number of
    images of each class (1, 10 or 50), and are sensible elsewhere.

    Args:
        model: a model with function values, or several (multi-architecture: their gradients are summed).
        data: the data set.
        images_per_class: points of each class.
        size: number of points in all; give this or ``images_per_class``.
        key: one typed key.
        steps: N, updates of the coreset.
        experts: trajectories from ``train_experts``, one set a model; trained here if None.
        proxy: ``"trajectory"`` (Eq. 16), ``"isotropic"`` (unit variance), ``"linearized"`` (Eq. 11 to 13), or one of
            ``pseudocoreset.proxies``.
        optimizer: acts on the free leaves, or one a leaf by name. By default SGD of step ``step_size``, and Adam of
            step 0.01 on targets and weights where they are learned; for tables Adam in units of each column.
        step_size: alpha; of Adam for tables, 0.1, and 0.01 with networks.
        augment: ``"auto"``, a strategy, an ``Augmentation`` or None (see ``resolve_augmentation``).
        weights: mass of the weights, ``"ones"`` (as published) or ``"data"``, n, which is carried by the coreset into
            its posterior; None takes ones for networks and n elsewhere, and keeps that of a ``coreset``. With n, of
            models that are no networks, the start comes back where it is nearer to the posterior of all data: points
            whose functions are right under experts need not have the right posterior. The fit itself, whose gradient is
            divided by the mass, does not depend on it, but for a covariance from the curvature
            (``proxy="linearized"``, Laplace), which narrows as the mass grows. Or ``"learned"`` from n / m each, which
            keeps their mass n: the objective does not determine it.
        targets: ``"fixed"``, or ``"learned"``: class probabilities, or real targets.
        num_draws: S, draws of the function values a step.
        num_networks: pairs of an expert and a network trained on the coreset, over which each step averages: one as
            published; more make a step less noisy and as many times as long, unless devices share them.
        first_epoch: T, the earliest expert epoch used.
        last_epoch: the latest.
        inner_loss: gamma, the loss at which the training of a network on the coreset stops.
        inner_learning_rate: its Adam step size.
        inner_max_steps: its cap; a log line says when it is hit.
        coreset_batch_size: B, points used a step.
        num_experts: experts to train if none are given.
        num_expert_epochs: their epochs; 50, or what ``first_epoch`` asks for.
        coreset: where to start instead of random real data.
        callbacks: called between blocks as ``callback(step, coreset, info)``; True stops.
        checkpoint_dir: where to keep checkpoints; experts trained here are kept there too.
        progress: show progress bars.
        mesh: devices that share the experts trained here, and the ``num_networks`` of a step; with one,
            ``jax.make_mesh((4,), ("data",))`` shares the data of every batch; see ``fit``.
        fixed: inputs to hold as they are at the start: arrays of a dictionary by name, or columns of inputs (n, p) by
            position.

    Returns:
        ``FitResult``.

    Raises:
        ValueError: for arguments out of range or that do not go together.
    """
    common = Common(
        model=model,
        data=data,
        images_per_class=images_per_class,
        size=size,
        key=key,
        steps=1 if steps is None else steps,  # until the recipe is known
        experts=experts,
        augment=augment,
        weights=weights,
        targets=targets,
        num_experts=num_experts,
        num_expert_epochs=num_expert_epochs,
        coreset=coreset,
        callbacks=callbacks,
        checkpoint_dir=checkpoint_dir,
        progress=progress,
        mesh=mesh,
        fixed=fixed,
        learns_weights=False,
    ).checked()
    recipe = fbpc_recipe(data.name, common.points_per_class)
    if steps is None:
        common = replace(common, steps=recipe.steps)
    first = recipe.first_epoch if first_epoch is None else check_integer(first_epoch, "first_epoch", minimum=0)
    if proxy == "trajectory":
        proxy = Trajectory(
            data_learning_rate=recipe.data_learning_rate,
            coreset_learning_rate=recipe.coreset_learning_rate,
            batch_size=min(256, data.train.num_data),
        )

    def build(one: Model) -> Objective:
        return function_kl(
            one,
            proxy=proxy,
            num_draws=num_draws,
            num_networks=num_networks,
            first_epoch=first,
            last_epoch=last_epoch,
            inner_loss=recipe.inner_loss if inner_loss is None else inner_loss,
            inner_learning_rate=inner_learning_rate,
            inner_max_steps=inner_max_steps,
            coreset_batch_size=recipe.coreset_batch_size if coreset_batch_size is None else coreset_batch_size,
            augment=common.augmentation,
            free=common.free,
        )

    default = published_sgd(common, recipe.step_size, momentum=0.0)
    return run("fbpc", common, build, optimizer=optimizer, step_size=step_size, default=default, first_epochs=first)
