"""``Default``: the posterior of the coreset, sampled by a kernel whose stationary distribution is tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import jax
from jax.sharding import Mesh

from pseudocoreset.arguments import checked_class
from pseudocoreset.augment import Augmentation
from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.diagnostics.convergence import convergence
from pseudocoreset.diagnostics.predictions.predictive import Predictive, predict
from pseudocoreset.formatting import number
from pseudocoreset.inference import Posterior, sample
from pseudocoreset.mass import choose_mass
from pseudocoreset.models import Model
from pseudocoreset.validation import check_integer, check_positive

if TYPE_CHECKING:
    from pseudocoreset.data import Split

__all__ = ["Default", "run_default"]

ENOUGH_DRAWS = 4  # of a chain, for R-hat


@checked_class
@dataclass(frozen=True)
class Default:
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


def run_default(
    protocol: Default,
    model: Model,
    coreset: Pseudocoreset,
    split: Split,
    validation: Split | None,
    key: jax.Array,
    *,
    mesh: Mesh | None = None,
    progress: bool,
) -> tuple[Posterior, list[Predictive], dict[str, Any], list[str]]:
    """Sample, and predict.

    Args:
        protocol: the configuration.
        model: a bound model.
        coreset: the coreset.
        split: what is scored.
        validation: for ``mass="choose"``.
        key: one typed key.
        mesh: devices that share the chains.
        progress: show progress bars.

    Returns:
        The draws; the average of each repeat; settings as they came out; notes.
    """
    mass_key, sample_key = jax.random.split(key)
    notes: list[str] = []
    settings: dict[str, Any] = {}
    if protocol.mass == "choose":
        assert validation is not None
        coreset = choose_mass(
            model,
            coreset,
            validation,
            key=mass_key,
            masses=protocol.masses,
            num_chains=protocol.num_chains,
            mesh=mesh,
            progress=progress,
            **protocol.sampling(),
        )
        settings["mass_choice"] = coreset.metadata["mass_choice"]
        if validation is split:
            notes.append("The mass of the weights was chosen on the very data that are scored here.")
    elif protocol.mass is not None:
        coreset = coreset.with_mass(protocol.mass)
    posterior = sample(
        model,
        coreset,
        key=sample_key,
        predict_on=split,
        num_chains=protocol.num_chains * protocol.num_repeats,
        mesh=mesh,
        progress=progress,
        **protocol.sampling(),
    )
    groups = [
        slice(first, first + protocol.num_chains) for first in range(0, posterior.num_chains, protocol.num_chains)
    ]
    settings |= {
        "mass": coreset.mass,
        "step_size": posterior.metadata["step_size"],
        "augment": posterior.metadata["augment"],
    }
    if posterior.num_draws >= ENOUGH_DRAWS:
        notes += _convergence(posterior)
    return posterior, [predict(posterior, chains=group) for group in groups], settings, notes


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
