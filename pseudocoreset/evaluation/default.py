"""``Default``: the posterior of the coreset, sampled by a kernel whose stationary distribution is tested."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax

from pseudocoreset.arguments import checked_class
from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data.augmentation import Augmentation
from pseudocoreset.diagnostics.convergence import convergence
from pseudocoreset.diagnostics.predictions.predictive import predict
from pseudocoreset.evaluation.mass import choose_mass
from pseudocoreset.evaluation.protocol import Protocol, Scored, Task
from pseudocoreset.evaluation.scores import estimates, scores_of
from pseudocoreset.formatting import number
from pseudocoreset.inference import Posterior, sample
from pseudocoreset.validation import check_integer, check_positive

__all__ = ["Default"]

ENOUGH_DRAWS = 4  # of a chain, for R-hat


@checked_class
@dataclass(frozen=True)
class Default(Protocol):
    """Sampling the posterior of the coreset, weights as they are, and scoring the average of its draws.

    Attributes:
        kernel: as in ``pseudocoreset.inference.sample``, and so are the next eight.
        num_chains: chains of one repeat.
        num_warmup: steps before the first draw.
        num_samples: draws of each chain.
        thinning: steps from one draw to the next.
        temperature: 1 is the posterior.
        batch_size: data a step.
        step_size: of the integrator.
        augment: of the images of each gradient; none by default, since the posterior under augmentation is another.
        kernel_options: the kernel's own.
        mass: total of the weights: ``"ones"``, ``"data"`` or a number; ``"choose"`` for the one of ``masses`` with the
            best NLL on validation data (``choose_mass``); None leaves the coreset's.
        masses: candidates for ``"choose"``; five from m to n by default.
        num_repeats: sets of ``num_chains`` chains, all sampled together and scored apart.
    """

    kernel: str = "sghmc"
    num_chains: int = 4
    num_warmup: int = 500
    num_samples: int = 50
    thinning: int = 10
    temperature: float = 1.0
    batch_size: int | None = None
    step_size: float | None = None
    augment: Augmentation | str | None = None
    kernel_options: Mapping[str, Any] = field(default_factory=dict)
    mass: str | float | None = None
    masses: tuple[float, ...] | None = None
    num_repeats: int = 1

    name: ClassVar[str] = "default"

    def __post_init__(self) -> None:
        # What sample and with_mass check is left to them.
        for name in ("num_chains", "num_repeats"):
            check_integer(getattr(self, name), name)
        if self.mass not in (None, "ones", "data", "choose"):
            if isinstance(self.mass, str):
                raise ValueError(f"mass must be 'ones', 'data', 'choose', a positive number or None; got {self.mass!r}")
            check_positive(self.mass, "mass")
        if self.masses is not None and self.mass != "choose":
            raise ValueError(f"masses are candidates for mass='choose'; got mass={self.mass!r}")

    def sampling(self) -> dict[str, Any]:
        """Arguments of ``sample``."""
        names = ("kernel", "num_warmup", "num_samples", "thinning", "temperature", "batch_size", "step_size", "augment")
        return {name: getattr(self, name) for name in names} | dict(self.kernel_options)

    @property
    def needs_validation(self) -> bool:
        """Whether the mass is chosen."""
        return self.mass == "choose"

    def run(self, task: Task) -> Scored:
        """Sample the posterior, and score the average of each repeat."""
        mass_key, sample_key = jax.random.split(task.key)
        coreset, settings, notes = self._weighted(task, mass_key)
        posterior = sample(
            task.model,
            coreset,
            key=sample_key,
            predict_on=task.split,
            num_chains=self.num_chains * self.num_repeats,
            mesh=task.mesh,
            progress=task.progress,
            **self.sampling(),
        )
        groups = [slice(first, first + self.num_chains) for first in range(0, posterior.num_chains, self.num_chains)]
        settings |= {
            "mass": coreset.mass,
            "step_size": posterior.metadata["step_size"],
            "augment": posterior.metadata["augment"],
        }
        if posterior.num_draws >= ENOUGH_DRAWS:
            notes += _convergence(posterior)
        metrics = estimates([scores_of(predict(posterior, chains=group)) for group in groups])
        said = (_mass_note(coreset.mass, task.coreset), *notes)
        return Scored(metrics, dataclasses.asdict(self) | settings, said, posterior)

    def _weighted(self, task: Task, key: jax.Array) -> tuple[Pseudocoreset, dict[str, Any], list[str]]:
        """The coreset at the mass that is asked for, what was chosen, and a note on that."""
        if self.mass is None:
            return task.coreset, {}, []
        if self.mass != "choose":
            return task.coreset.with_mass(self.mass), {}, []
        assert task.validation is not None
        coreset = choose_mass(
            task.model,
            task.coreset,
            task.validation,
            key=key,
            masses=self.masses,
            num_chains=self.num_chains,
            mesh=task.mesh,
            progress=task.progress,
            **self.sampling(),
        )
        is_same = task.validation is task.split
        notes = ["The mass of the weights was chosen on the very data that are scored here."] if is_same else []
        return coreset, {"mass_choice": coreset.metadata["mass_choice"]}, notes


def _convergence(posterior: Posterior) -> list[str]:
    """A sentence where the chains have not converged, or cannot be judged."""
    found = convergence(posterior)
    if found.is_good is None:
        return ["Convergence cannot be judged: it takes two chains or more whose predictions vary."]
    if found.is_good:
        return []
    return [
        f"Not converged by the usual standard (R-hat of predictions up to {number(found.rhat_max)}, ESS from "
        f"{number(found.ess_min, 0)}): read the figures as those of this run."
    ]


def _mass_note(mass: float, coreset: Pseudocoreset) -> str:
    if not coreset.num_data:
        return f"The mass of the weights is {mass:g}."
    return f"The mass of the weights is {mass:g}, {number(mass / coreset.num_data)} of that of the data."
