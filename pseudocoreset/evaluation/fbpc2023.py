"""``FBPC2023``: SGHMC as the paper of FBPC describes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import jax

from pseudocoreset.augment import Augmentation
from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.evaluation.base import Published, Task, check_non_negative, check_share, still
from pseudocoreset.evaluation.steps import Moving, fbpc2023_sghmc, normal_like, one_pass
from pseudocoreset.models import Params
from pseudocoreset.objectives import CoresetArrays
from pseudocoreset.validation import check_integer, check_positive

__all__ = ["FBPC2023"]


@dataclass(frozen=True)
class FBPC2023(Published):
    """SGHMC as the paper of FBPC describes its evaluation (Kim, Lee and Lee 2023, appendix C.2, equation 27).

    v <- v - eta grad U(theta) - alpha v + N(0, 2 d), theta <- theta + v, with d = 0.01 / m, 1,000 epochs and a draw
    every 100. The paper states neither U nor its prior, and there is no code. Our reading: U is the *mean*
    cross-entropy over the m points, since a noise that falls like 1 / m belongs to a potential that does not grow with
    m, plus weight_decay * ||theta||^2 / 2, the weight decay of the common evaluation of condensed data; networks start
    from their own initialiser; a step takes all points, so that an epoch is a step; images are augmented. At small
    steps that samples exp(-m U) at temperature 0.01 / (eta alpha), about 3.3.

    Attributes:
        learning_rate: eta.
        friction: alpha.
        noise: d times the number of points.
        num_epochs: passes over the coreset; a multiple of ``sample_every``.
        sample_every: passes from one draw to the next.
        weight_decay: of our reading of the prior.
        batch_size: points a step; None for all.
        augment: ``"auto"``, a strategy, an ``Augmentation``, or None.
        num_repeats: independent runs; the paper's seeds on CIFAR-10.
    """

    learning_rate: float = 0.03
    friction: float = 0.1
    noise: float = 0.01
    num_epochs: int = 1000
    sample_every: int = 100
    weight_decay: float = 5e-4
    batch_size: int | None = None
    augment: Augmentation | str | None = "auto"
    num_repeats: int = 5

    name: ClassVar[str] = "fbpc2023"
    batch_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive(self.learning_rate, "learning_rate")
        check_share(self.friction, "friction")
        for field in ("noise", "weight_decay"):
            check_non_negative(getattr(self, field), field)
        for field in ("num_epochs", "sample_every", "num_repeats"):
            check_integer(getattr(self, field), field)
        if self.num_epochs % self.sample_every:
            raise ValueError(
                f"num_epochs={self.num_epochs} must be a multiple of sample_every={self.sample_every}: the last epoch "
                "gives a draw"
            )
        if self.batch_size is not None:
            check_integer(self.batch_size, "batch_size")

    @property
    def repeats(self) -> int:
        """Independent runs."""
        return self.num_repeats

    @property
    def rounds(self) -> tuple[int, int]:
        """Draws; each predicts."""
        return self.num_epochs // self.sample_every, 0

    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures must know."""
        return (
            "SGHMC of Kim, Lee and Lee 2023, equation 27. The paper does not state the potential: that it is the mean "
            "cross-entropy with weight decay as its prior, on all points at once, is our reading.",
            "Which formula the paper's NLL is of is not stated either; nll_batchmean is that of the same group's code.",
        )

    def resolved(self, coreset: Pseudocoreset, num_classes: int) -> FBPC2023:
        """With what depends on the coreset filled in."""
        return replace(self, batch_size=min(self.batch_size or coreset.size, coreset.size))

    def start(self, key: jax.Array, task: Task) -> Moving:
        """State of one repeat."""
        position = task.model.init(key)
        return Moving(position, still(position))

    def advance(self, key: jax.Array, index: jax.Array, state: Moving, task: Task, coreset: CoresetArrays) -> Moving:
        """Epochs from one draw to the next."""
        assert self.batch_size is not None
        diffusion = self.noise / coreset.inputs.shape[0]

        def step(moving: Moving, step_key: jax.Array, batch: CoresetArrays) -> Moving:
            noise_key, augment_key = jax.random.split(step_key)

            def gradient(params: Params) -> Params:
                slope = jax.grad(task.loss)(params, batch, augment_key)
                return jax.tree.map(lambda g, theta: g + self.weight_decay * theta, slope, params)

            rule = {"learning_rate": self.learning_rate, "friction": self.friction, "diffusion": diffusion}
            return fbpc2023_sghmc(moving, normal_like(noise_key, moving.position), gradient, **rule)

        def epoch(moving: Moving, epoch_key: jax.Array) -> tuple[Moving, None]:
            return one_pass(step, moving, epoch_key, coreset, self.batch_size or coreset.inputs.shape[0]), None

        return jax.lax.scan(epoch, state, jax.random.split(key, self.sample_every))[0]
