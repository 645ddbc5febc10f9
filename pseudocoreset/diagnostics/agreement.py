"""How close are posteriors to one another, judged by what they predict on held-out inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from pseudocoreset.diagnostics.blocks import bound, log_probability_blocks, mean_blocks
from pseudocoreset.diagnostics.convergence import Convergence, convergence
from pseudocoreset.diagnostics.distances import Distances, distances, median_distance
from pseudocoreset.diagnostics.formatting import (
    Table,
    html_table,
    json_values,
    number,
    text_table,
    with_error,
)
from pseudocoreset.diagnostics.metrics import Metrics, metrics_of, top_classes
from pseudocoreset.diagnostics.predictive import Predictive, predict, uniform_predictive

if TYPE_CHECKING:
    from pseudocoreset.data import Split
    from pseudocoreset.inference import Posterior
    from pseudocoreset.models import Model

__all__ = ["Agreement", "Comparison", "agreement", "compare_posteriors"]

UNIFORM = "uniform"
NUM_HALVES = 2


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How close predictions q are to reference predictions p, averaged over held-out inputs.

    Attributes:
        top1: Fraction of inputs with the same most probable class (ties: shared over all tied classes).
        total_variation: Mean of (1/2) sum_c |p_c - q_c|; between 0 and 1.
        kl: Mean of KL(p || q), nats. For a regression, of Gaussians with the mean and variance over draws of
            the predicted means.
        mean_difference: Mean of |E p - E q| in units of the standard deviation of p's predicted mean
            (regression).
    """

    top1: float | None = None
    total_variation: float | None = None
    kl: float | None = None
    mean_difference: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The values by name, ready for JSON."""
        return json_values(dataclasses.asdict(self))


def agreement(reference: Predictive, other: Predictive) -> Agreement:
    """Agreement of two predictive distributions at the same inputs.

    Args:
        reference: p, the one that is taken for the truth.
        other: q.

    Returns:
        ``Agreement``; all zeros and ones when both are equal.
    """
    if reference.log_probabilities is not None and other.log_probabilities is not None:
        p, q = reference.probabilities, other.probabilities
        top_p, top_q = top_classes(p), top_classes(q)
        # 0 log 0 = 0
        with np.errstate(invalid="ignore"):
            terms = np.where(p > 0, p * (reference.log_probabilities - other.log_probabilities), 0.0)
        return Agreement(
            top1=float(((top_p & top_q).sum(-1) / (top_p | top_q).sum(-1)).mean()),
            total_variation=float(0.5 * np.abs(p - q).sum(-1).mean()),
            kl=max(0.0, float(terms.sum(-1).mean())),
        )
    if reference.mean is None or other.mean is None or reference.variance is None or other.variance is None:
        return Agreement()
    gap = np.abs(reference.mean - other.mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = reference.variance / other.variance
        kl = 0.5 * (ratio - 1 - np.log(ratio) + gap**2 / other.variance)
        scaled = gap / np.sqrt(reference.variance)
    return Agreement(kl=float(kl.sum(-1).mean()), mean_difference=float(scaled.mean()))


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Several posteriors on the same held-out data; ``print`` it, or make a page of it with ``report``.

    Attributes:
        metrics: Scores by posterior, and of the uniform prediction under "uniform" (classes only).
        agreement: Closeness to the reference by posterior, the reference left out; empty without a reference.
        distances: Distances of function values (log-probabilities, centred over classes, or means of the target) from
            those of the reference, jointly at the first held-out inputs; of posteriors with two draws or more.
        noise_floor: Agreement between two halves of the reference's own chains (of its draws, if it has one
            chain): what a perfect coreset would be measured at, or a little better, since halves are noisier.
        distance_floor: The same of the distances.
        convergence: R-hat and effective sample size by posterior.
        reference: Name of the reference posterior, or None.
        predictions: Model averages by posterior.
        settings: What made each posterior: its metadata.
    """

    metrics: dict[str, Metrics]
    agreement: dict[str, Agreement]
    noise_floor: Agreement | None
    distances: dict[str, Distances]
    distance_floor: Distances | None
    convergence: dict[str, Convergence]
    reference: str | None
    predictions: dict[str, Predictive]
    settings: dict[str, dict[str, Any]]

    @property
    def num_data(self) -> int:
        """Number of held-out examples."""
        return next(iter(self.metrics.values())).num_data

    @property
    def is_classification(self) -> bool:
        """Whether the targets are classes."""
        return next(iter(self.metrics.values())).accuracy is not None

    def as_dict(self) -> dict[str, Any]:
        """Everything but the predictions, ready for JSON."""
        return {
            "num_data": self.num_data,
            "reference": self.reference,
            "metrics": {name: row.as_dict() for name, row in self.metrics.items()},
            "agreement": {name: row.as_dict() for name, row in self.agreement.items()},
            "noise_floor": None if self.noise_floor is None else self.noise_floor.as_dict(),
            "distances": {name: row.as_dict() for name, row in self.distances.items()},
            "distance_floor": None if self.distance_floor is None else self.distance_floor.as_dict(),
            "convergence": {name: row.as_dict() for name, row in self.convergence.items()},
            "settings": json_values(self.settings),
        }

    def tables(self) -> list[Table]:
        """Heading, columns and rows of the tables that it prints as."""
        tables = [self._metrics_table()]
        if self.reference is not None:
            tables.append(self._agreement_table())
        if self.distances:
            tables.append(self._distances_table())
        tables.append(self._convergence_table())
        return tables

    def _metrics_table(self) -> Table:
        heading = f"Predictions on {self.num_data} held-out examples, averaged over draws (± standard error)"
        if self.is_classification:
            columns = ["accuracy", "NLL", "NLL of one draw", "Brier", "calibration error", "entropy", "draws"]
            rows = [
                [
                    name,
                    with_error(row.accuracy, row.accuracy_standard_error),
                    with_error(row.nll, row.nll_standard_error),
                    number(row.nll_member),
                    number(row.brier),
                    number(row.ece),
                    number(row.entropy),
                    number(row.num_draws),
                ]
                for name, row in self.metrics.items()
            ]
        else:
            columns = ["RMSE", "NLL", "NLL of one draw", "draws"]
            rows = [
                [
                    name,
                    number(row.rmse),
                    with_error(row.nll, row.nll_standard_error),
                    number(row.nll_member),
                    number(row.num_draws),
                ]
                for name, row in self.metrics.items()
            ]
        return heading, columns, rows

    def _agreement_table(self) -> Table:
        named = dict(self.agreement)
        if self.noise_floor is not None:
            named[f"{self.reference}, half against half"] = self.noise_floor
        if self.is_classification:
            columns = ["same top class", "total variation", "KL"]
            rows = [[name, number(a.top1), number(a.total_variation), number(a.kl)] for name, a in named.items()]
        else:
            columns = ["difference of means", "KL"]
            rows = [[name, number(a.mean_difference), number(a.kl)] for name, a in named.items()]
        return f"Agreement with {self.reference!r} (last row: the noise floor)", columns, rows

    def _distances_table(self) -> Table:
        named = dict(self.distances)
        if self.distance_floor is not None:
            named[f"{self.reference}, half against half"] = self.distance_floor
        rows = [[name, *map(number, (d.sliced_wasserstein, d.energy, d.mmd))] for name, d in named.items()]
        heading = (
            f"Distances of function values from {self.reference!r}, all inputs at once (last row: the noise floor)"
        )
        return heading, ["sliced Wasserstein", "energy", "MMD squared"], rows

    def _convergence_table(self) -> Table:
        columns = ["R-hat max", "R-hat median", "ESS min", "ESS median", "chains", "draws", "divergences"]
        rows = [
            [
                name,
                number(row.rhat_max),
                number(row.rhat_median),
                number(row.ess_min, 0),
                number(row.ess_median, 0),
                number(row.num_chains),
                number(row.num_draws),
                number(row.num_divergences),
            ]
            for name, row in self.convergence.items()
        ]
        return (
            "Convergence of predictions (good: R-hat at most 1.01, ESS at least 100 a chain)",
            columns,
            rows,
        )

    def __str__(self) -> str:
        return "\n\n".join(text_table(table) for table in self.tables())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(html_table(table) for table in self.tables())


def compare_posteriors(
    posteriors: Mapping[str, Posterior],
    model: Model,
    split: Split | tuple[ArrayLike, ArrayLike],
    *,
    reference: str | None = "full",
    num_bins: int = 15,
    max_inputs: int = 200,
    key: jax.Array | None = None,
) -> Comparison:
    """Score posteriors on held-out data and measure how close each is to the reference.

    Args:
        posteriors: Posteriors by name, such as ``{"coreset": ..., "full": ...}``.
        model: The model that all were sampled from.
        split: Held-out data, a ``Split`` or ``(x, y)``. A posterior evaluated on other data is evaluated
            again from its kept weights.
        reference: Name of the posterior that the others are held against; None for scores alone.
        num_bins: Bins of the calibration error.
        max_inputs: Held-out inputs whose predictions are examined for convergence and distances.
        key: For the directions of the sliced Wasserstein distance; the same ones every time by default.

    Returns:
        ``Comparison``.

    Raises:
        ValueError: No posterior, an unknown ``reference``, the name "uniform", or a posterior without
            predictions on ``split`` and without weights to make them.
    """
    if not posteriors:
        raise ValueError("posteriors is empty; give at least one, {'coreset': posterior}")
    if reference is not None and reference not in posteriors:
        raise ValueError(
            f"reference={reference!r} is not among the posteriors {sorted(posteriors)}; name one of them, or "
            "pass reference=None for scores without agreement"
        )
    if UNIFORM in posteriors:
        raise ValueError(f"the name {UNIFORM!r} is taken by the uniform prediction; call the posterior something else")
    split = _as_split(split)
    model = bound(model, split)
    evaluated = {name: _evaluated(name, posterior, model, split) for name, posterior in posteriors.items()}
    predictions = {name: predict(posterior, model) for name, posterior in evaluated.items()}
    if model.num_classes is not None:
        predictions[UNIFORM] = uniform_predictive(split.y, model.num_classes)
    agreements = {}
    if reference is not None:
        agreements = {
            name: agreement(predictions[reference], other) for name, other in predictions.items() if name != reference
        }
    spread, spread_floor = _distances(
        evaluated, reference, model, slice(0, max_inputs), jax.random.key(0) if key is None else key
    )
    return Comparison(
        metrics={name: metrics_of(row, num_bins=num_bins) for name, row in predictions.items()},
        agreement=agreements,
        noise_floor=None if reference is None else _noise_floor(evaluated[reference], model),
        distances=spread,
        distance_floor=spread_floor,
        convergence={name: convergence(p, model, max_inputs=max_inputs) for name, p in evaluated.items()},
        reference=reference,
        predictions=predictions,
        settings={name: json_values(posterior.metadata) for name, posterior in posteriors.items()},
    )


def _halves(posterior: Posterior) -> list[tuple[slice, slice]] | None:
    """(Chains, draws) of two halves of the chains, or of the draws of a single chain; None for one draw."""

    def parts(count: int) -> list[slice]:
        return [slice(None, count // 2), slice(count // 2, None)]

    if posterior.num_chains >= NUM_HALVES:
        return [(part, slice(None)) for part in parts(posterior.num_chains)]
    if posterior.num_draws >= NUM_HALVES:
        return [(slice(None), part) for part in parts(posterior.num_draws)]
    return None


def _noise_floor(posterior: Posterior, model: Model) -> Agreement | None:
    halves = _halves(posterior)
    return None if halves is None else agreement(*(predict(posterior, model, chains=c, draws=d) for c, d in halves))


def _distances(
    posteriors: Mapping[str, Posterior], reference: str | None, model: Model, inputs: slice, key: jax.Array
) -> tuple[dict[str, Distances], Distances | None]:
    """Distances of the others from the reference, and of its halves, with one kernel."""
    if reference is None:
        return {}, None

    everything = slice(None)

    def functions(posterior: Posterior, chains: slice = everything, draws: slice = everything) -> np.ndarray:
        blocks = mean_blocks if model.num_classes is None else log_probability_blocks
        values = np.concatenate(list(blocks(posterior, model, inputs=inputs, chains=chains, draws=draws))).astype(
            np.float64
        )
        if model.num_classes is not None:
            # Probabilities of zero are far from all others, but not infinitely.
            values = np.maximum(values, np.log(np.finfo(np.float32).tiny))
            values -= values.mean(-1, keepdims=True)
        return values.reshape(len(values), -1)

    full = functions(posteriors[reference])
    if len(full) < NUM_HALVES:
        return {}, None
    bandwidth = median_distance(full / np.sqrt(full.shape[1]))
    found = {
        name: distances(full, functions(posterior), key=key, bandwidth=bandwidth)
        for name, posterior in posteriors.items()
        if name != reference and posterior.num_chains * posterior.num_draws >= NUM_HALVES
    }
    halves = _halves(posteriors[reference])
    parts = [] if halves is None else [functions(posteriors[reference], *half) for half in halves]
    enough = bool(parts) and min(map(len, parts)) >= NUM_HALVES
    return found, distances(*parts, key=key, bandwidth=bandwidth) if enough else None


def _evaluated(name: str, posterior: Posterior, model: Model, split: Split) -> Posterior:
    if posterior.predict_on is not None and _same_data(posterior.predict_on, split):
        return posterior
    try:
        return posterior.evaluate(model, split)
    except ValueError as error:
        raise ValueError(
            f"the posterior {name!r} has no predictions on this split and cannot make them ({error}); sample "
            "it with predict_on=split, or with keep='weights'"
        ) from error


def _same_data(left: Split, right: Split) -> bool:
    """Whether two splits hold the same model inputs and targets."""
    if left is right:
        return True
    if not (np.array_equal(left.raw, right.raw) and np.array_equal(left.y, right.y)):
        return False
    one, other = left.preprocessing, right.preprocessing
    arrays, others = one.arrays(), other.arrays()
    return one.metadata() == other.metadata() and all(np.array_equal(arrays[name], others[name]) for name in arrays)


def _as_split(split: Any) -> Split:
    if hasattr(split, "raw"):
        return split
    if isinstance(split, tuple | list):
        # BlackJAX puts an array on the device when it is imported
        from pseudocoreset.inference.validation import resolve_predict_on

        return resolve_predict_on(split, None)
    raise TypeError(f"split must be a Split, such as data.test, or (x, y); got {type(split).__name__}")
