"""``fit_bacon``: BACON, with and without several images stored in one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pseudocoreset.arguments import checked
from pseudocoreset.augment import Augmentation
from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data import Dataset
from pseudocoreset.experts import Experts
from pseudocoreset.fitting import Callback, FitResult
from pseudocoreset.methods.common import Common, Optimizer, distillation_sgd, run, snapshot_window
from pseudocoreset.methods.scales import is_table
from pseudocoreset.models import Model
from pseudocoreset.objectives import Objective
from pseudocoreset.objectives.bacon import bacon, decode, encode
from pseudocoreset.validation import check_integer

__all__ = ["fit_bacon"]


@checked
def fit_bacon(
    model: Model | Sequence[Model],
    data: Dataset,
    *,
    images_per_class: int | None = None,
    size: int | None = None,
    key: jax.Array,
    steps: int = 2000,
    experts: Experts | Sequence[Experts] | None = None,
    optimizer: Optimizer | None = None,
    step_size: float | None = None,
    augment: Augmentation | str | None = "auto",
    weights: str | None = None,
    variant: str | None = None,
    weight: float = 0.8,
    likelihood_scale: float = 1.0,
    cross_entropy: float | None = None,
    batch_size: int = 256,
    formation: int = 1,
    first_epoch: int = 0,
    last_epoch: int | None = None,
    coreset: Pseudocoreset | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    mesh: Mesh | None = None,
    fixed: Sequence[str | int] = (),
) -> FitResult:
    """BACON (Zhou et al. 2024), published with 20,000 steps; ``objectives.bacon`` says what is the paper's in it.

    With ``formation=2`` the points that are learned hold 2 x 2 images of half the size each, while the coreset that
    comes back holds the decoded images, four times as many, ready for any posterior; ``result.state.arrays`` keeps
    those learned. Compare it with coresets of as many stored images as methods that decode too.

    Args:
        model: a model with features and classes, or several.
        data: the data set.
        images_per_class: stored points of each class.
        size: number of stored points in all; with ``formation=2`` give ``images_per_class``.
        key: one typed key.
        steps: updates of the coreset.
        experts: networks in training, one set a model; fresh random networks by default.
        optimizer: as in ``fit_gradient_matching``.
        step_size: of the optimiser; 0.2 for networks, 0.1 for other models.
        augment: of data and coreset alike.
        weights: ``"learned"``, ``"data"`` or ``"ones"``; None learns them, and takes ones for networks. Learned weights
            keep the mass of each class, of which the objective says nothing.
        variant: ``"paper"`` (images only) or ``"released"``; by default the paper's for images, the released elsewhere.
        weight: lambda.
        likelihood_scale: of the variant ``"paper"``.
        cross_entropy: its weight; see ``objectives.bacon``.
        batch_size: data of each class a step.
        formation: 1, or 2.
        first_epoch: the earliest snapshot of ``experts``.
        last_epoch: the latest.
        coreset: where to start, of stored points; real data by default.
        callbacks: called between blocks, with the stored points.
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
        augment=augment, weights=weights, coreset=coreset, callbacks=callbacks, checkpoint_dir=checkpoint_dir,
        progress=progress, mesh=mesh, fixed=fixed,
    ).checked()  # fmt: skip
    if formation == 2 and coreset is None:
        common = replace(common, coreset=_encoded_start(common))

    def build(one: Model) -> Objective:
        return bacon(
            one,
            variant=("released" if is_table(data) else "paper") if variant is None else variant,
            weight=weight,
            likelihood_scale=likelihood_scale,
            cross_entropy=cross_entropy,
            batch_size=batch_size,
            formation=formation,
            augment=common.augmentation,
            window=snapshot_window(common, first_epoch, last_epoch),
            free=common.free,
        )

    default = distillation_sgd(common, 0.2)
    result = run("bacon", common, build, optimizer=optimizer, step_size=step_size, default=default)
    return result if formation == 1 else replace(result, coreset=_decoded(result.coreset))


def _encoded_start(common: Common) -> Pseudocoreset:
    """Stored images of four real images of their class each."""
    count = common.images_per_class
    if count is None:
        raise ValueError("formation=2 starts from images of one class in each point; give images_per_class or coreset")
    real = Pseudocoreset.from_data(
        common.data,
        images_per_class=4 * check_integer(count, "images_per_class"),
        key=jax.random.fold_in(common.key, 4),
    )
    classes = real.size // (4 * count)
    quarters = real.inputs.reshape(classes, 4, count, *real.inputs.shape[1:]).swapaxes(0, 1)
    stored = replace(
        real,
        inputs=np.asarray(encode(jnp.asarray(quarters.reshape(real.inputs.shape)))),
        targets=np.repeat(real.targets[:: 4 * count], count),
        weights=np.repeat(real.weights[:: 4 * count], count),
    )
    return stored.with_mass("ones" if common.weights == "ones" else "data")


def _decoded(coreset: Pseudocoreset) -> Pseudocoreset:
    """Every image of a stored one as a point; weights of mean one keep it, others are shared out."""
    counted = np.isclose(coreset.mass, coreset.size)
    return replace(
        coreset,
        inputs=np.asarray(decode(jnp.asarray(coreset.inputs))),
        targets=np.concatenate([coreset.targets] * 4),
        weights=np.tile(coreset.weights if counted else coreset.weights / 4, 4),
        metadata=coreset.metadata | {"formation": 2, "stored_images": coreset.size},
    )
