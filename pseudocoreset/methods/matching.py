"""``fit_gradient_matching``, ``fit_trajectory_matching`` and ``fit_distribution_matching``.

Front doors of dataset distillation: DC and DSA, MTT, and DM. Step sizes, momenta and loops are those of the
reference codes; the numbers of steps are a fraction of the published ones, which each docstring names.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from pseudocoreset.arguments import checked
from pseudocoreset.augment import Augmentation
from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data import Dataset
from pseudocoreset.experts import Experts
from pseudocoreset.fitting import Callback, FitResult
from pseudocoreset.methods.common import Common, Optimizer, distillation_sgd, last_start, run, snapshot_window
from pseudocoreset.models import Model
from pseudocoreset.objectives import InnerTraining, Objective, trajectory_matching
from pseudocoreset.objectives.distribution_matching import distribution_matching
from pseudocoreset.objectives.gradient_matching import gradient_matching
from pseudocoreset.recipes import gradient_matching_recipe, trajectory_recipe
from pseudocoreset.validation import check_integer

__all__ = ["fit_distribution_matching", "fit_gradient_matching", "fit_trajectory_matching"]


@checked
def fit_gradient_matching(
    model: Model | Sequence[Model],
    data: Dataset,
    *,
    images_per_class: int | None = None,
    size: int | None = None,
    key: jax.Array,
    steps: int = 1000,
    experts: Experts | Sequence[Experts] | None = None,
    optimizer: Optimizer | None = None,
    step_size: float | None = None,
    augment: Augmentation | str | None = "auto",
    weights: str | None = None,
    targets: str = "fixed",
    distance: str | None = None,
    num_inner_steps: int | None = None,
    inner_learning_rate: float = 0.01,
    num_outer: int | None = None,
    batch_size: int = 256,
    by_class: bool | None = None,
    first_epoch: int = 0,
    last_epoch: int | None = None,
    coreset: Pseudocoreset | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    mesh: Mesh | None = None,
    fixed: Sequence[str | int] = (),
) -> FitResult:
    """Gradient matching: DSA (Zhao and Bilen 2021), and with ``augment=None`` DC (Zhao et al. 2021).

    The published numbers of steps are 1,000 for each of the ``num_outer`` matches of a network: 10,000 for 10 images a
    class. DC starts from noise, this from real data as DSA does.

    Args:
        model: a model, or several (their gradients are summed).
        data: the data set.
        images_per_class: points of each class.
        size: number of points in all; give this or ``images_per_class``.
        key: one typed key.
        steps: updates of the coreset.
        experts: where to take networks from instead of training them on the coreset, one set a model.
        optimizer: acts on the free leaves, or one a leaf by name. By default SGD with momentum 0.5 on the inputs of
            networks and Adam of step 0.01 on other leaves; Adam with cosine decay for other models.
        step_size: of the optimiser; 0.1.
        augment: of data and coreset alike; ``"auto"``, a strategy, an ``Augmentation`` or None.
        weights: ``"learned"``, ``"data"`` or ``"ones"``; None learns them, and takes ones for networks. Learned weights
            keep the mass of each class (without ``by_class``, in all), of which the objective says nothing.
        targets: ``"fixed"`` or ``"learned"``.
        distance: ``"cosine"`` or ``"squared"``; see ``objectives.gradient_matching``. By default cosine, and
            squared for a model all of whose sites are vectors, which have no rows to compare.
        num_inner_steps: steps on the coreset between two matches; by the table of the reference.
        inner_learning_rate: their step size.
        num_outer: matches of a network before it is drawn afresh; by the table of the reference.
        batch_size: data of each class a step.
        by_class: match class by class; where there are classes by default.
        first_epoch: the earliest snapshot of ``experts``.
        last_epoch: the latest.
        coreset: where to start instead of random real data.
        callbacks: called between blocks as ``callback(step, coreset, info)``; True stops.
        checkpoint_dir: where to keep checkpoints.
        progress: show a progress bar.
        mesh: devices that share the classes; see ``fit``.
        fixed: inputs to hold as they are at the start: arrays of a dictionary by name, or columns of inputs (n, p) by
            position.

    Returns:
        ``FitResult``.

    Raises:
        ValueError: for arguments out of range or that do not go together.
    """
    common = Common(
        model=model, data=data, images_per_class=images_per_class, size=size, key=key, steps=steps, experts=experts,
        augment=augment, weights=weights, targets=targets, coreset=coreset, callbacks=callbacks,
        checkpoint_dir=checkpoint_dir, progress=progress, mesh=mesh, fixed=fixed,
    ).checked()  # fmt: skip
    outer, inner = gradient_matching_recipe(common.points_per_class)

    def build(one: Model) -> Objective:
        return gradient_matching(
            one,
            distance=_distance(one) if distance is None else distance,
            num_inner_steps=inner if num_inner_steps is None else num_inner_steps,
            inner_learning_rate=inner_learning_rate,
            num_outer=outer if num_outer is None else num_outer,
            batch_size=batch_size,
            by_class=one.num_classes is not None if by_class is None else by_class,
            augment=common.augmentation,
            window=snapshot_window(common, first_epoch, last_epoch),
            free=common.free,
        )

    default = distillation_sgd(common, 0.1)
    return run("gradient_matching", common, build, optimizer=optimizer, step_size=step_size, default=default)


def _distance(model: Model) -> str:
    """By default that of the reference code, or squares for a model without the matrices whose rows it compares."""
    has_matrices = any(len(site.unconstrained_shape) > 1 for site in model.sites)
    return "cosine" if has_matrices else "squared"


@checked
def fit_trajectory_matching(
    model: Model | Sequence[Model],
    data: Dataset,
    *,
    images_per_class: int | None = None,
    size: int | None = None,
    key: jax.Array,
    steps: int = 1000,
    experts: Experts | Sequence[Experts] | None = None,
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
    """Matching training trajectories (MTT; Cazenavette et al. 2022).

    Defaults that are None are the authors' for CIFAR-10, CIFAR-100 and Tiny ImageNet at the nearest published number
    of images a class. They take 5,000 steps, ZCA whitening for some settings, batches of the larger coresets, and learn
    the inner step size by SGD on the number itself, this by Adam on its logarithm.

    Args:
        model: a model, or several.
        data: the data set.
        images_per_class: points of each class.
        size: number of points in all.
        key: one typed key.
        steps: updates of the coreset.
        experts: trajectories from ``train_experts``, one set a model; trained here if None.
        optimizer: as in ``fit_gradient_matching``.
        step_size: of the optimiser; 100 to 10,000 for networks, 0.1 for other models.
        augment: of the coreset in the training of networks.
        weights: ``"learned"``, ``"data"`` or ``"ones"``; None learns them, and takes ones for networks. Learned weights
            keep their mass, of which the objective says nothing.
        targets: ``"fixed"`` or ``"learned"``.
        num_inner_steps: L; gradients flow through all of them.
        inner_learning_rate: alpha at the start.
        learn_step_size: Adam step size on the logarithm of alpha; 0 keeps it.
        rematerialise: ``"step"`` or ``"sqrt"``; see ``objectives.wasserstein``.
        expert_epochs: E, from the snapshot where this starts to the one it should meet.
        first_epoch: the earliest start.
        last_epoch: the latest start; no later than the experts allow.
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
    recipe = trajectory_recipe(data.name, common.points_per_class)
    ahead = recipe.expert_epochs if expert_epochs is None else check_integer(expert_epochs, "expert_epochs")
    check_integer(first_epoch, "first_epoch", minimum=0)
    if last_epoch is None:
        last_epoch = last_start(common, first_epoch, recipe.starts - 1, ahead)
    inner = InnerTraining(
        num_steps=recipe.num_inner_steps if num_inner_steps is None else num_inner_steps,
        learning_rate=recipe.inner_learning_rate if inner_learning_rate is None else inner_learning_rate,
        expert_epochs=ahead,
        first_epoch=first_epoch,
        last_epoch=last_epoch,
        augment=common.augmentation,
    )

    def build(one: Model) -> Objective:
        return trajectory_matching(
            one, inner=inner, learn_step_size=learn_step_size, rematerialise=rematerialise, free=common.free
        )

    default = distillation_sgd(common, recipe.step_size)
    return run("trajectory_matching", common, build, optimizer=optimizer, step_size=step_size, default=default)


@checked
def fit_distribution_matching(
    model: Model | Sequence[Model],
    data: Dataset,
    *,
    images_per_class: int | None = None,
    size: int | None = None,
    key: jax.Array,
    steps: int = 2000,
    optimizer: Optimizer | None = None,
    step_size: float | None = None,
    augment: Augmentation | str | None = "auto",
    weights: str | None = None,
    batch_size: int = 256,
    coreset: Pseudocoreset | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    mesh: Mesh | None = None,
    fixed: Sequence[str | int] = (),
) -> FitResult:
    """Distribution matching (DM; Zhao and Bilen 2023), published with 20,000 steps.

    Args:
        model: a model with features and classes, or several.
        data: the data set.
        images_per_class: points of each class.
        size: number of points in all.
        key: one typed key.
        steps: updates of the coreset.
        optimizer: as in ``fit_gradient_matching``.
        step_size: of the optimiser; 1 for networks, 10 from 100 images a class on, 0.1 for other models.
        augment: of data and coreset alike.
        weights: ``"learned"``, ``"data"`` or ``"ones"``; None learns them, and takes ones for networks. Learned weights
            keep the mass of each class, of which the objective says nothing.
        batch_size: data of each class a step.
        coreset: where to start instead of random real data.
        callbacks: called between blocks.
        checkpoint_dir: where to keep checkpoints.
        progress: show a progress bar.
        mesh: devices that share the classes; see ``fit``.
        fixed: inputs to hold as they are at the start: arrays of a dictionary by name, or columns of inputs (n, p) by
            position.

    Returns:
        ``FitResult``.

    Raises:
        ValueError: for arguments out of range or that do not go together.
    """
    common = Common(
        model=model, data=data, images_per_class=images_per_class, size=size, key=key, steps=steps, augment=augment,
        weights=weights, coreset=coreset, callbacks=callbacks, checkpoint_dir=checkpoint_dir, progress=progress,
        mesh=mesh,
        fixed=fixed,
    ).checked()  # fmt: skip

    def build(one: Model) -> Objective:
        return distribution_matching(one, batch_size=batch_size, augment=common.augmentation, free=common.free)

    default = distillation_sgd(common, 10.0 if (common.points_per_class or 0) >= 100 else 1.0)
    return run("distribution_matching", common, build, optimizer=optimizer, step_size=step_size, default=default)
