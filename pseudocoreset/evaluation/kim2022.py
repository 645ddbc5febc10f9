"""``Kim2022``: SGHMC and HMC as in the reference code of the first paper on pseudocoresets of networks."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from pseudocoreset.arguments import checked_class
from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data.augmentation import Augmentation
from pseudocoreset.evaluation.base import Learning, check_non_negative, check_share
from pseudocoreset.evaluation.runs import Published
from pseudocoreset.evaluation.steps import (
    Moving,
    kim2022_hmc,
    kim2022_potential,
    kim2022_sghmc,
    normal_like,
    scattered,
)
from pseudocoreset.models import Params
from pseudocoreset.rows import Rows
from pseudocoreset.validation import check_choice, check_integer, check_positive

__all__ = ["Kim2022"]


class _Transitions(NamedTuple):
    position: Params
    num_accepted: jax.Array
    num_done: jax.Array


# (sampler, images a class) -> iterations, steps, burn-in, step size, momentum scale, weight decay
_KIM_SETTINGS = {
    ("sghmc", 1): (20, 5, 10, 0.03, 0.1, 1.0),
    ("sghmc", 10): (100, 5, 50, 0.01, 0.1, 1.5),
    ("sghmc", 20): (100, 5, 50, 0.01, 0.1, 1.0),
    ("hmc", 1): (20, 20, 10, 0.05, 0.01, 0.5),
    ("hmc", 10): (100, 5, 50, 0.01, 0.1, 1.5),
    ("hmc", 20): (100, 5, 50, 0.01, 0.1, 1.5),
}
_KIM_FIELDS = ("num_iterations", "num_steps", "num_burn_in", "step_size", "momentum_scale", "weight_decay")


@checked_class
@dataclass(frozen=True)
class Kim2022(Published):
    """SGHMC or HMC as in the reference code of Kim et al. 2022 (BPC), to compare with published tables.

    It is not a valid sampler. Its potential has a norm of the weights that is not squared and grows with the number of
    points; noise and friction of SGHMC are not scaled by the step size; HMC takes the kinetic energy with the wrong
    sign; every parameter, scales of norms included, starts at 0.1 N(0, 1); ten draws after ten iterations (one image a
    class), or fifty after fifty, are called a posterior. See ``steps`` for its equations. Fields that are None are
    those of the code at the nearest of 1, 10 and 20 images a class; it has none for 50.

    Attributes:
        sampler: ``"sghmc"`` or ``"hmc"``.
        num_iterations: iterations, of which each later one gives a draw.
        num_steps: steps, or leapfrog steps, of each.
        num_burn_in: iterations that give no draw.
        step_size: eps.
        momentum_scale: standard deviation of the momentum: SGHMC's first one, HMC's of every iteration.
        weight_decay: of the norm.
        friction: of SGHMC.
        noise: of SGHMC; 2 * friction * noise is the variance of the noise of one step.
        init_scale: standard deviation of the starting parameters.
        augment: of SGHMC: ``"auto"``, a strategy, an ``Augmentation``, or None; see ``resolve_augmentation``. HMC's
            coreset is never augmented.
        num_repeats: independent runs.
    """

    sampler: str = "sghmc"
    num_iterations: int | None = None
    num_steps: int | None = None
    num_burn_in: int | None = None
    step_size: float | None = None
    momentum_scale: float | None = None
    weight_decay: float | None = None
    friction: float = 0.1
    noise: float = 0.01
    init_scale: float = 0.1
    augment: Augmentation | str | None = "auto"
    num_repeats: int = 10

    name: ClassVar[str] = "kim2022"
    batch_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_choice(self.sampler, "sampler", ("sghmc", "hmc"))
        for field, least in (("num_iterations", 1), ("num_steps", 1), ("num_burn_in", 0)):
            if getattr(self, field) is not None:
                check_integer(getattr(self, field), field, least)
        if self.num_iterations is not None and self.num_burn_in is not None and self.num_burn_in >= self.num_iterations:
            raise ValueError(
                f"num_burn_in={self.num_burn_in} leaves no draw of num_iterations={self.num_iterations}; give less"
            )
        if self.step_size is not None:
            check_positive(self.step_size, "step_size")
        check_positive(self.init_scale, "init_scale")
        for field in ("momentum_scale", "weight_decay", "noise"):
            check_non_negative(getattr(self, field), field)
        check_share(self.friction, "friction")
        check_integer(self.num_repeats, "num_repeats")

    @property
    def repeats(self) -> int:
        """Independent runs."""
        return self.num_repeats

    @property
    def rounds(self) -> tuple[int, int]:
        """Iterations, and those of burn-in."""
        assert self.num_iterations is not None
        assert self.num_burn_in is not None
        return self.num_iterations, self.num_burn_in

    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures must know."""
        return (
            f"This is the evaluation of Kim et al. 2022 ({self.sampler.upper()}) as their code does it. It is not a "
            "valid sampler of any posterior, and is for comparison with published tables only.",
            "Tables made with this code report nll_batchmean and ece_batch; nll and ece are the scores themselves.",
        )

    def resolved(self, coreset: Pseudocoreset, num_classes: int) -> Kim2022:
        """With what depends on the coreset filled in."""
        count = coreset.size / num_classes
        nearest = min((1, 10, 20), key=lambda published: abs(published - count))
        row = zip(_KIM_FIELDS, _KIM_SETTINGS[self.sampler, nearest], strict=True)
        filled: dict[str, Any] = {field: value for field, value in row if getattr(self, field) is None}
        if self.sampler == "hmc":
            filled["augment"] = None
        return replace(self, **filled)

    def start(self, key: jax.Array, task: Learning) -> Any:
        """State of one repeat."""
        assert self.momentum_scale is not None
        moving = scattered(key, task.model, self.init_scale, self.momentum_scale)
        if self.sampler == "hmc":
            return _Transitions(moving.position, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
        return moving

    def advance(self, key: jax.Array, index: jax.Array, state: Any, task: Learning, coreset: Rows) -> Any:
        """One iteration: steps of SGHMC, or one transition of HMC."""
        assert self.num_steps is not None
        assert self.step_size is not None
        if self.sampler == "hmc":
            assert self.momentum_scale is not None
            momentum_key, uniform_key = jax.random.split(key)
            position, accepted = kim2022_hmc(
                state.position,
                normal_like(momentum_key, state.position),
                jax.random.uniform(uniform_key),
                functools.partial(self._potential, task, coreset, key),
                num_points=coreset.inputs.shape[0],
                step_size=self.step_size,
                num_steps=self.num_steps,
                momentum_scale=self.momentum_scale,
            )
            return _Transitions(position, state.num_accepted + accepted, state.num_done + 1)

        step = functools.partial(self._step, task, coreset)
        return jax.lax.scan(step, state, jax.random.split(key, self.num_steps))[0]

    def _potential(self, task: Learning, coreset: Rows, augment_key: jax.Array, params: Params) -> jax.Array:
        assert self.weight_decay is not None
        return kim2022_potential(task.loss(params, coreset, augment_key), params, self.weight_decay)

    def _step(self, task: Learning, coreset: Rows, moving: Moving, step_key: jax.Array) -> tuple[Moving, None]:
        assert self.step_size is not None
        noise_key, augment_key = jax.random.split(step_key)
        num_points = coreset.inputs.shape[0]

        def energy(params: Params) -> jax.Array:
            return num_points * self._potential(task, coreset, augment_key, params)

        diffusion = self.friction * self.noise
        rule = {"step_size": self.step_size, "friction": self.friction, "diffusion": diffusion}
        return kim2022_sghmc(moving, normal_like(noise_key, moving.position), jax.grad(energy), **rule), None

    def measured(self, state: Any) -> dict[str, jax.Array]:
        """Share of proposals that HMC accepted."""
        return {"acceptance_rate": state.num_accepted / state.num_done} if self.sampler == "hmc" else {}
