"""Step sizes of SGHMC and SGLD that change along a chain.

A schedule multiplies ``step_size`` by a factor that depends on the place of a step among the steps after the warmup,
t = 0, 1, ...; the warmup itself runs at ``step_size``, the largest. So a step depends on its place in the chain alone
and a run can be cut anywhere.

**Momentum.** With SGHMC the factor c that the momentum keeps a step, exp(-friction * step_size) at the unscheduled
step size, is held constant, so friction over time grows as the step shrinks. The O step is exact for any c, so that
nothing is lost; but at constant friction a momentum would persist for 1 / (friction * step) steps, without bound as
the step goes to zero, and the heat of gradient noise, step^2 / (1 - c^2) times its variance, would fall only like the
step instead of like its square.

**Weights.** Draws made with a smaller step are worth less: they have moved less since the draw before. Averages over
a chain whose step size decreases are to be weighted by the time that a step takes: the step size of SGLD (Welling and
Teh 2011; Teh, Thiery and Vollmer 2016), at constant c the square of SGHMC's. ``sample_stats["step_size"]`` holds it for
every draw; ArviZ and ``predictive_metrics`` weight all draws alike, which is less precise.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pseudocoreset.arguments import checked, checked_class
from pseudocoreset.validation import check_choice, check_integer, check_positive

__all__ = [
    "Constant",
    "Cycles",
    "Cyclical",
    "Decay",
    "Polynomial",
    "Schedule",
    "arrange",
    "described",
    "resolve_schedule",
    "scheduled",
    "steps_of_draw",
]


@checked_class
@dataclass(frozen=True)
class Constant:
    """The same step size throughout."""


@checked_class
@dataclass(frozen=True)
class Polynomial:
    """A step size that decreases to zero: step_t = step_size * (1 + t / offset)^-power.

    With SGLD the bias of weighted averages vanishes for every power in (0, 1]. Powers above 1/2 are those of Welling
    and Teh (2011); 1/3 gives the fastest convergence (Teh, Thiery and Vollmer 2016).

    Attributes:
        power: in (0, 1].
        offset: steps until the step size has fallen to 2^-power of the first, positive.

    Raises:
        ValueError: for values outside these ranges.
    """

    power: float = 0.55
    offset: float = 1000.0

    def __post_init__(self) -> None:
        check_positive(self.power, "power")
        check_positive(self.offset, "offset")
        if self.power > 1:
            raise ValueError(f"power must be at most 1, or the chain stops at a finite distance; got {self.power}")


@checked_class
@dataclass(frozen=True)
class Cyclical:
    """Cosine cycles, each of which explores, then samples (Zhang, Li, Zhang, Chen and Wilson 2020).

    With cycles of C steps, step_t = (step_size / 2) (cos(pi (t mod C) / C) + 1). In the first part of a cycle, where
    the steps are large, no noise is injected (temperature zero, stochastic optimisation with momentum) and nothing is
    recorded; in the rest the chain has its temperature, and its draws are recorded ``thinning`` steps apart, as many
    in every cycle. C follows: num_samples * thinning / (num_cycles * (1 - exploration)), so that a run takes
    1 / (1 - exploration) times the steps of a constant schedule.

    The formula is applied to ``step_size``: SGLD's learning rate, and the square root of SGHMC's.

    Attributes:
        num_cycles: at least 1; ``num_samples`` must be a multiple.
        exploration: fraction of a cycle without noise and draws, in [0, 1).

    Raises:
        TypeError, ValueError: for values outside these ranges.
    """

    num_cycles: int = 4
    exploration: float = 0.5

    def __post_init__(self) -> None:
        check_integer(self.num_cycles, "num_cycles")
        if not 0 <= float(self.exploration) < 1:
            raise ValueError(f"exploration must be at least 0 and less than 1; got {self.exploration!r}")


Schedule = Constant | Polynomial | Cyclical
_BY_NAME: dict[str, type[Schedule]] = {"constant": Constant, "polynomial": Polynomial, "cyclical": Cyclical}


class Decay(NamedTuple):
    """``Polynomial`` as arrays."""

    power: Any
    offset: Any


class Cycles(NamedTuple):
    """``Cyclical`` as arrays, given the length of a run: draws, steps without draws, and steps of a cycle."""

    draws: Any
    exploration: Any
    steps: Any


@checked
def resolve_schedule(schedule: Any) -> Schedule:
    """A schedule, by name with its defaults, or as it is."""
    if isinstance(schedule, Constant | Polynomial | Cyclical):
        return schedule
    if not isinstance(schedule, str):
        raise TypeError(
            "schedule must be 'constant', 'polynomial', 'cyclical' or one of pseudocoreset.inference.schedules; got "
            f"{schedule!r}"
        )
    return _BY_NAME[check_choice(schedule, "schedule", _BY_NAME)]()


@checked
def described(schedule: Schedule) -> dict[str, Any]:
    """A schedule in JSON."""
    return {"name": type(schedule).__name__.lower(), **asdict(schedule)}


@checked
def arrange(schedule: Schedule, num_samples: int, thinning: int) -> Decay | Cycles | None:
    """What compiled code takes of a schedule; None where the step size is constant.

    Raises:
        ValueError: if the cycles cannot have equally many draws.
    """
    if isinstance(schedule, Polynomial):
        return Decay(float(schedule.power), float(schedule.offset))
    if isinstance(schedule, Constant):
        return None
    if num_samples % schedule.num_cycles:
        raise ValueError(
            f"num_samples={num_samples} must be a multiple of num_cycles={schedule.num_cycles}, so that every cycle "
            "gives as many draws"
        )
    draws = num_samples // schedule.num_cycles
    exploration = math.ceil(draws * thinning * schedule.exploration / (1 - schedule.exploration))
    return Cycles(draws, exploration, exploration + draws * thinning)


@checked
def steps_of_draw(schedule: Decay | Cycles, draw: jax.Array, thinning: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first step that belongs to a draw, and how many do; the exploration belongs to the first of a cycle."""
    if isinstance(schedule, Decay):
        return draw * thinning, thinning
    cycle, place = draw // schedule.draws, draw % schedule.draws
    is_first = place == 0
    first = cycle * schedule.steps + jnp.where(is_first, 0, schedule.exploration + place * thinning)
    return first, thinning + jnp.where(is_first, schedule.exploration, 0)


@checked
def scheduled(schedule: Decay | Cycles, step: jax.Array, tuning: dict[str, Any]) -> dict[str, Any]:
    """What changes of the tuning at step t: the step size, and the temperature and friction that go with it."""
    size, temperature = tuning["step_size"], tuning["temperature"]
    if isinstance(schedule, Decay):
        factor = (1 + step.astype(size.dtype) / schedule.offset) ** -schedule.power
    else:
        place = step % schedule.steps
        # (cos(pi r) + 1) / 2 without its cancellation at the end of the cycle.
        rest = (schedule.steps - place).astype(size.dtype) / schedule.steps.astype(size.dtype)
        factor = jnp.square(jnp.sin(0.5 * jnp.pi * rest))
        temperature = jnp.where(place < schedule.exploration, jnp.zeros_like(temperature), temperature)
    now = {"step_size": (size * factor).astype(size.dtype), "temperature": temperature}
    if "friction" in tuning:
        now["friction"] = (tuning["friction"] / factor).astype(size.dtype)
    return now
