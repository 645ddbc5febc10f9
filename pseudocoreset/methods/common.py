"""What every ``fit_*`` front door does before and after the loop."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from pseudocoreset.augment import Augmentation, resolve_augmentation
from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data import Dataset
from pseudocoreset.data.doors import bind_to, check_start
from pseudocoreset.device import check_in_memory
from pseudocoreset.experts import Experts, train_experts
from pseudocoreset.fitting import Callback, FitResult, fit
from pseudocoreset.memory import stop_at_plan
from pseudocoreset.meshes import check_mesh
from pseudocoreset.methods.keeping import keep_better
from pseudocoreset.methods.scales import column_scales, in_units, is_table
from pseudocoreset.models import Model
from pseudocoreset.objectives import Objective, SnapshotWindow
from pseudocoreset.validation import check_choice, check_integer, check_key, check_positive

__all__ = [
    "Common",
    "Optimizer",
    "adam",
    "as_models",
    "distillation_sgd",
    "last_start",
    "published_sgd",
    "run",
    "snapshot_window",
]

logger = logging.getLogger(__name__)
Optimizer: TypeAlias = optax.GradientTransformation | Mapping[str, optax.GradientTransformation]
EXPERT_EPOCHS = 50
# Learning rates of experts trained here: the next where columns on raw scales, or noise near zero, overflow.
EXPERT_RATES = (0.01, 1e-3, 1e-4, 1e-5, 1e-6)
MOMENTUM = 0.5  # of SGD on the inputs, in all reference codes of dataset distillation


def as_models(model: Model | Sequence[Model]) -> tuple[Model, ...]:
    """The ``model`` argument of a front door as a tuple.

    Raises:
        TypeError: for anything but models.
    """
    models = (model,) if isinstance(model, Model) else tuple(model)
    if not models or not all(isinstance(m, Model) for m in models):
        raise TypeError(f"model must be a Model or a sequence of them; got {model!r}")
    return models


@dataclass(frozen=True)
class Common:
    """The arguments that all front doors share, as given; see ``fit_fbpc`` for their meaning."""

    model: Model | Sequence[Model]
    data: Dataset
    images_per_class: int | None
    size: int | None
    key: jax.Array
    steps: int
    experts: Experts | Sequence[Experts] | None = None
    augment: Augmentation | str | None = None
    weights: str | None = None
    targets: str = "fixed"
    num_experts: int = 10
    num_expert_epochs: int | None = None
    coreset: Pseudocoreset | None = None
    callbacks: Sequence[Callback] = ()
    checkpoint_dir: str | os.PathLike[str] | None = None
    progress: bool = True
    mesh: Mesh | None = None
    fixed: Sequence[str | int] = ()
    learns_weights: bool = True  # of models that are no networks, where ``weights`` is None

    def checked(self) -> Common:
        """With every argument checked, models bound and the augmentation resolved.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        check_key(self.key)
        check_integer(self.steps, "steps")
        check_mesh(self.mesh)
        check_in_memory(self.data.train)
        check_choice(self.targets, "targets", ("fixed", "learned"))
        models = as_models(self.model)
        if self.coreset is None and (self.images_per_class is None) == (self.size is None):
            raise ValueError(f"give one of images_per_class and size; got {self.images_per_class} and {self.size}")
        bound = tuple(bind_to(m, self.data) for m in models)
        if self.coreset is not None:
            check_start(
                self.coreset,
                self.data,
                images_per_class=self.images_per_class,
                size=self.size,
                weights=self.weights,
            )
        # Models that are no networks are fitted for the posterior of all data, whether or not weights are learned.
        default = "ones" if all(m.is_network for m in bound) else "learned" if self.learns_weights else "data"
        weights = self.weights or default
        check_choice(weights, "weights", ("ones", "data", "learned"))
        augment = resolve_augmentation(self.augment, self.data.train.feature_shape, self.data.name)
        return replace(self, model=bound, weights=weights, augment=augment)

    @property
    def models(self) -> tuple[Model, ...]:
        """The models, once checked."""
        assert isinstance(self.model, tuple)
        return self.model

    @property
    def augmentation(self) -> Augmentation | None:
        """The augmentation, once checked."""
        assert not isinstance(self.augment, str)
        return self.augment

    @property
    def free(self) -> tuple[str, ...]:
        """The leaves to learn."""
        chosen = {"inputs": True, "targets": self.targets == "learned", "weights": self.weights == "learned"}
        return tuple(name for name, is_free in chosen.items() if is_free)

    @property
    def points_per_class(self) -> float | None:
        """Points of each class, by which published settings are chosen; on average where a size was given.

        None without classes.
        """
        if self.coreset is None and self.images_per_class is not None:
            return self.images_per_class
        count = self.size if self.coreset is None else self.coreset.size
        return None if self.data.num_classes is None or count is None else count / self.data.num_classes


def run(
    name: str,
    common: Common,
    build: Callable[[Model], Objective],
    *,
    optimizer: Optimizer | None,
    step_size: float | None,
    default: Callable[[float | None], Optimizer],
    first_epochs: int = 0,
) -> FitResult:
    """Choose the start, train experts if none are given and the objective wants them, and fit.

    Args:
        name: of the method, saved with the coreset.
        common: the shared arguments, checked.
        build: makes the objective of one model.
        optimizer: the user's, or None.
        step_size: the user's, or None.
        default: makes the optimiser from ``step_size`` where the user gave none.
        first_epochs: the fewest epochs of experts that serve.
    """
    if optimizer is not None and step_size is not None:
        raise ValueError("give optimizer or step_size, not both")
    if optimizer is None:
        optimizer = default(None if step_size is None else check_positive(step_size, "step_size"))
    objectives = [build(m) for m in common.models]
    expert_key, fit_key = jax.random.split(common.key)
    coreset = common.coreset
    if coreset is None:
        # Chosen before the experts are trained: a size that the data do not have must not cost an hour first.
        coreset = Pseudocoreset.from_data(
            common.data,
            images_per_class=common.images_per_class,
            size=common.size,
            key=jax.random.fold_in(fit_key, 0),
            mass="ones" if common.weights == "ones" else "data",
        )
    wants_experts = any(o.window is not None for o in objectives)
    experts = common.experts
    if experts is None and wants_experts and stop_at_plan not in common.callbacks:
        experts = _train(common, expert_key, max(EXPERT_EPOCHS, first_epochs))
    result = fit(
        objectives,
        common.data,
        coreset=coreset,
        key=fit_key,
        steps=common.steps,
        optimizer=optimizer,
        experts=experts if wants_experts else None,
        callbacks=common.callbacks,
        checkpoint_dir=common.checkpoint_dir,
        progress=common.progress,
        mesh=common.mesh,
        fixed=common.fixed,
    )
    extra: dict[str, Any] = {"objective": name, "images_per_class": common.images_per_class}
    if "step_size" in result.history:  # learned with the points: that at which networks are to be trained on them
        extra["learned_step_size"] = float(result.history["step_size"][-1])
    result = replace(result, coreset=replace(result.coreset, metadata=result.coreset.metadata | extra))
    is_of_ones = common.weights != "learned" and bool(np.isclose(coreset.mass, coreset.size))
    if is_of_ones or stop_at_plan in common.callbacks:
        return result  # whose posterior is not to be that of all data, or which did not run
    return keep_better(result, common.models, common.data, coreset)


def adam(common: Common) -> Callable[[float | None], Optimizer]:
    """Adam with cosine decay of its step, 0.1 at the start, on all leaves.

    Of tables in units of each column, and with networks a tenth of that: their gradients are noise for the most part,
    which would carry points away from all data.
    """
    table = is_table(common.data)
    first = 0.01 if table and any(m.is_network for m in common.models) else 0.1

    def default(alpha: float | None) -> Optimizer:
        # Near the optimum the gradient falls by orders of magnitude; a long memory of its square would stall there.
        optimizer = optax.adam(optax.cosine_decay_schedule(first if alpha is None else alpha, common.steps), b2=0.9)
        return in_units(optimizer, _units(common)) if table else optimizer

    return default


def _units(common: Common) -> dict[str, Any]:
    """Of the leaves of a table: standard deviations of columns and real targets, and the mean weight of a point."""
    y = common.data.train.y
    if common.coreset is not None:
        weight = float(np.mean(common.coreset.weights))
    else:
        points = common.size or (common.images_per_class or 1) * (common.data.num_classes or 1)
        weight = 1.0 if common.weights == "ones" else common.data.train.num_data / points
    units: dict[str, Any] = {"inputs": column_scales(common.data), "weights": weight}
    if np.issubdtype(np.asarray(y).dtype, np.floating):
        units["targets"] = np.std(y, axis=0, dtype=float)
    return units


def published_sgd(common: Common, published: float, momentum: float) -> Callable[[float | None], Optimizer]:
    """SGD on the inputs, with the step size of a reference code for images; Adam of step 0.01 on other leaves.

    Tables have ``adam``: the published steps are those of whitened pixels.
    """
    if is_table(common.data):
        return adam(common)

    def default(alpha: float | None) -> Optimizer:
        each: dict[str, optax.GradientTransformation] = {name: optax.adam(0.01) for name in common.free}
        return each | {"inputs": optax.sgd(published if alpha is None else alpha, momentum=momentum or None)}

    return default


def distillation_sgd(common: Common, published: float) -> Callable[[float | None], Optimizer]:
    """SGD with the momentum of the reference codes of dataset distillation for networks, Adam elsewhere."""
    networks = all(m.is_network for m in common.models)
    return published_sgd(common, published, momentum=MOMENTUM) if networks else adam(common)


def snapshot_window(common: Common, first: int, last: int | None) -> SnapshotWindow | None:
    """Where objectives that do without experts take networks from: the experts, if there are any."""
    check_integer(first, "first_epoch", minimum=0)
    return None if common.experts is None else SnapshotWindow(first, last)


def last_start(common: Common, first: int, published: int, ahead: int) -> int:
    """The latest epoch where training on the coreset starts: the published one, or what the experts have.

    Args:
        common: the shared arguments, checked.
        first: the earliest.
        published: by the table of the method.
        ahead: epochs from the start to the snapshot that is to be met.
    """
    if common.experts is None:
        epochs = EXPERT_EPOCHS if common.num_expert_epochs is None else common.num_expert_epochs
    else:
        sets = (common.experts,) if isinstance(common.experts, Experts) else common.experts
        epochs = min(one.num_epochs for one in sets)
    return max(first, min(published, epochs - ahead))


def _train(common: Common, key: jax.Array, default_epochs: int) -> list[Experts]:
    epochs = default_epochs if common.num_expert_epochs is None else common.num_expert_epochs
    logger.info("no experts given: training %d of %d epochs for each model", common.num_experts, epochs)
    mesh = common.mesh
    if mesh is not None and common.num_experts >= mesh.size:
        # Enough for every device: none has to share its minibatches, whatever the axes are called.
        mesh = Mesh(mesh.devices.ravel(), ("experts",))

    def train(i: int, one: Model, rate: float) -> Experts:
        # The first rate is that of ``train_experts``, in the directory that it has always had.
        place = f"experts-{i}" if rate == EXPERT_RATES[0] else f"experts-{i}-rate-{rate:g}"
        return train_experts(
            one,
            common.data,
            num_experts=common.num_experts,
            num_epochs=epochs,
            key=jax.random.fold_in(key, i),
            learning_rate=rate,
            batch_size=min(256, common.data.train.num_data),
            augment=common.augmentation,
            directory=None if common.checkpoint_dir is None else os.path.join(common.checkpoint_dir, place),
            progress=common.progress,
            mesh=mesh,
        )

    def trained(i: int, one: Model) -> Experts:
        for rate, following in itertools.pairwise(EXPERT_RATES):
            try:
                return train(i, one, rate)
            except FloatingPointError:
                logger.info("experts left the finite numbers at the learning rate %g: trying %g", rate, following)
        return train(i, one, EXPERT_RATES[-1])

    return [trained(i, m) for i, m in enumerate(common.models)]
