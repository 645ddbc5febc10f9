"""Stan's window adaptation of step size and mass matrix, for NUTS and HMC of BlackJAX."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import jax
from numpy.typing import ArrayLike

from pseudocoreset.inference.adaptation.lazy import load_blackjax
from pseudocoreset.inference.adaptation.mass import check_acceptance_rate, given_metric, metric_or_ones
from pseudocoreset.inference.engine.kernel import TRACED, Density, Kernel, Tuning, per_chain, tempered
from pseudocoreset.inference.engine.plan import Run
from pseudocoreset.models import Params

__all__ = ["WindowAdapted"]


@dataclass(frozen=True, kw_only=True)
class WindowAdapted(Kernel, abc.ABC):
    """Options and adaptation that NUTS and HMC share; a subclass has the step."""

    target_acceptance_rate: float = 0.8
    inverse_mass_matrix: ArrayLike | None = field(default=None, metadata=TRACED)
    is_mass_matrix_diagonal: bool = True

    divergence_remedy = "higher target_acceptance_rate"

    def __post_init__(self) -> None:
        check_acceptance_rate(self.target_acceptance_rate)
        if not isinstance(self.is_mass_matrix_diagonal, bool):
            raise TypeError(f"is_mass_matrix_diagonal must be a bool; got {self.is_mass_matrix_diagonal!r}")

    @abc.abstractmethod
    def of_blackjax(self) -> tuple[Any, dict[str, Any]]:
        """BlackJAX's algorithm, and the arguments that are its own."""

    def for_run(self, run: Run) -> Self:
        """Check the mass matrix."""
        self._metric(run)
        return self

    def _metric(self, run: Run) -> Any:
        return given_metric(self.inverse_mass_matrix, run.plan.model.num_params, self.name, takes_dense=True)

    def tuning(self, run: Run, positions: Params, step_size: float | None) -> Tuning:
        """The mass matrix where it is not adapted."""
        return per_chain(metric_or_ones(self._metric(run), run.plan.model.num_params, step_size), positions)

    def init(self, key: jax.Array, position: Params, tuning: Tuning, density: Density) -> Any:
        """Position, log density and gradient."""
        del key
        return load_blackjax().hmc.init(position, tempered(tuning, density))

    def adapt(
        self, key: jax.Array, position: Params, tuning: Tuning, density: Density, num_steps: int
    ) -> tuple[Any, Tuning]:
        """Stan's windows for step size and mass matrix, or for the step size where the other is given."""
        if "inverse_mass_matrix" in tuning:
            metric: Any = _fixed_metric(tuning["inverse_mass_matrix"])
        else:
            metric = "welford_diag" if self.is_mass_matrix_diagonal else "welford_dense"
        algorithm, arguments = self.of_blackjax()
        warmup = load_blackjax().staged_adaptation(
            algorithm,
            tempered(tuning, density),
            metric,
            target_acceptance_rate=self.target_acceptance_rate,
            adaptation_info_fn=lambda *_: None,
            **arguments,
        )
        results, _ = warmup.run(key, position, num_steps=num_steps)
        found = {name: results.parameters[name] for name in ("step_size", "inverse_mass_matrix")}
        return results.state, {**tuning, **found}

    def reported(self, tuning: Tuning) -> dict[str, Any]:
        """The mass matrix, which can be large, by its kind."""
        kind = "adapted" if self.inverse_mass_matrix is None else "given"
        return {**super().reported(tuning), "inverse_mass_matrix": kind}


class _FixedMetric(NamedTuple):
    inverse_mass_matrix: jax.Array


def _fixed_metric(inverse_mass_matrix: jax.Array) -> Any:
    return load_blackjax().adaptation.metric_recipes.MetricCore(
        init=lambda num_dimensions: _FixedMetric(inverse_mass_matrix),
        update=lambda state, position, gradient=None: state,
        final=lambda state: state,
    )
