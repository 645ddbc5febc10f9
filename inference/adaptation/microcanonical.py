"""What microcanonical kernels share: options, and where BlackJAX's tuning of them starts and ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from pseudocoreset.inference.adaptation.lazy import load_blackjax
from pseudocoreset.inference.adaptation.mass import given_metric, metric_or_ones
from pseudocoreset.inference.engine.kernel import TRACED, Kernel, Tuning, per_chain
from pseudocoreset.inference.engine.plan import Run
from pseudocoreset.models import Params

__all__ = ["Microcanonical", "found_tuning", "start_parameters"]


@dataclass(frozen=True, kw_only=True)
class Microcanonical(Kernel):
    """Options of all of them; a subclass has the algorithm."""

    inverse_mass_matrix: ArrayLike | None = field(default=None, metadata=TRACED)
    diagonal_preconditioning: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.diagonal_preconditioning, bool):
            raise TypeError(f"diagonal_preconditioning must be a bool; got {self.diagonal_preconditioning!r}")

    def for_run(self, run: Run) -> Self:
        """Check the mass matrix, and that there is a direction to turn."""
        self._metric(run)
        if run.plan.model.num_params < 2:
            raise ValueError("microcanonical kernels need at least two parameters; take kernel='nuts'")
        return self

    def _metric(self, run: Run) -> np.ndarray | None:
        return given_metric(self.inverse_mass_matrix, run.plan.model.num_params, self.name)

    def tuning(self, run: Run, positions: Params, step_size: float | None) -> Tuning:
        """The mass matrix where it is not adapted."""
        return per_chain(metric_or_ones(self._metric(run), run.plan.model.num_params, step_size), positions)

    def finds_metric(self, tuning: Tuning) -> bool:
        """Whether the adaptation finds a diagonal metric."""
        return self.diagonal_preconditioning and "inverse_mass_matrix" not in tuning

    def reported(self, tuning: Tuning) -> dict[str, Any]:
        """The mass matrix, which can be large, by its kind."""
        kind = "adapted" if self.inverse_mass_matrix is None else "given"
        return {**super().reported(tuning), "inverse_mass_matrix": kind}


def start_parameters(position: Params, tuning: Tuning, share: float) -> Any:
    """Where the tuning starts: BlackJAX's own values, in the type of the parameters.

    Args:
        position: of the chain.
        tuning: of the chain, with the metric if it is given.
        share: of the decoherence length, that the first step size is.
    """
    size = sum(leaf.size for leaf in jax.tree.leaves(position))
    dtype = tuning["temperature"].dtype
    metric = tuning.get("inverse_mass_matrix", jnp.ones(size, dtype))
    length = jnp.sqrt(jnp.asarray(size, dtype))
    parameters = load_blackjax().adaptation.mclmc_adaptation.MCLMCAdaptationState
    return parameters(length, share * length, inverse_mass_matrix=metric)


def found_tuning(tuning: Tuning, found: Any, **others: jax.Array) -> Tuning:
    """Tuning with what was found; a metric that is not positive makes the step size NaN, which ``sample`` reports."""
    metric = found.inverse_mass_matrix
    values = {"step_size": found.step_size, "inverse_mass_matrix": metric, **others}
    is_sound = jnp.all(jnp.stack([jnp.all(jnp.isfinite(value) & (value > 0)) for value in values.values()]))
    values["step_size"] = jnp.where(is_sound, found.step_size, jnp.nan)
    return {**tuning, **{name: value.astype(tuning["temperature"].dtype) for name, value in values.items()}}
