"""``Distillation``: networks trained on the coreset, as papers on dataset distillation evaluate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp

from pseudocoreset.arguments import checked_class
from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data.augmentation import Augmentation
from pseudocoreset.evaluation.base import Learning, check_non_negative, check_share, still
from pseudocoreset.evaluation.runs import Published
from pseudocoreset.evaluation.steps import Moving, one_pass, sgd
from pseudocoreset.rows import Rows
from pseudocoreset.validation import check_integer, check_positive

__all__ = ["Distillation"]


@checked_class
@dataclass(frozen=True)
class Distillation(Published):
    """Networks trained from scratch on the coreset by SGD, as papers on dataset distillation evaluate.

    The loop that the codes of DC, DSA, DM, MTT and their followers share: SGD on the mean cross-entropy with momentum
    and weight decay on all parameters; after half of the epochs and one the step size falls to a tenth, and the
    optimiser is made anew, its velocity zero. Scores are taken once, at the end of training.

    Attributes:
        learning_rate: None for the coreset's own, ``metadata["learned_step_size"]``, where it has one (trajectory
            matching), and 0.01 otherwise.
        momentum: of SGD.
        weight_decay: of SGD.
        batch_size: points a step; the last step of an epoch takes what is left, and with no more points than that every
            step takes all.
        num_epochs: passes over the coreset; the codes count from 0 to 1,000.
        decay_after: passes before the step size falls; None for ``(num_epochs - 1) // 2 + 2``, 502 of 1,001.
        decay: what it is multiplied by.
        augment: ``"auto"``, a strategy, an ``Augmentation``, or None.
        num_networks: networks trained.
    """

    learning_rate: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 256
    num_epochs: int = 1001
    decay_after: int | None = None
    decay: float = 0.1
    augment: Augmentation | str | None = "auto"
    num_networks: int = 5

    name: ClassVar[str] = "distillation"
    scores_ensemble: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.learning_rate is not None:
            check_positive(self.learning_rate, "learning_rate")
        check_positive(self.decay, "decay")
        check_share(self.momentum, "momentum")
        check_non_negative(self.weight_decay, "weight_decay")
        for field in ("batch_size", "num_epochs", "num_networks"):
            check_integer(getattr(self, field), field)
        if self.decay_after is not None:
            check_integer(self.decay_after, "decay_after", 0)

    @property
    def repeats(self) -> int:
        """Independent runs."""
        return self.num_networks

    @property
    def rounds(self) -> tuple[int, int]:
        """Epochs; the last one predicts."""
        return self.num_epochs, self.num_epochs - 1

    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures must know."""
        return (
            "Scores of single networks at the end of their training, and of the average of their predictions under "
            "names that begin with ensemble_.",
        )

    def resolved(self, coreset: Pseudocoreset, num_classes: int) -> Distillation:
        """With what depends on the coreset filled in."""
        learned = coreset.metadata.get("learned_step_size", 0.01)
        return replace(
            self,
            learning_rate=check_positive(learned, "learned_step_size")
            if self.learning_rate is None
            else self.learning_rate,
            decay_after=(self.num_epochs - 1) // 2 + 2 if self.decay_after is None else self.decay_after,
        )

    def start(self, key: jax.Array, task: Learning) -> Moving:
        """State of one repeat."""
        position = task.model.init(key)
        return Moving(position, still(position))

    def advance(self, key: jax.Array, index: jax.Array, state: Moving, task: Learning, coreset: Rows) -> Moving:
        """One epoch."""
        assert self.learning_rate is not None
        assert self.decay_after is not None
        learning_rate = self.learning_rate * jnp.where(index < self.decay_after, 1.0, self.decay)
        velocity = jax.tree.map(lambda v: jnp.where(index == self.decay_after, 0.0, v), state.momentum)

        def step(moving: Moving, step_key: jax.Array, batch: Rows) -> Moving:
            return sgd(
                moving,
                lambda params: jax.grad(task.loss)(params, batch, step_key),
                learning_rate=learning_rate,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
            )

        return one_pass(step, Moving(state.position, velocity), key, coreset, self.batch_size)
