"""``compare_posteriors``: everything that is measured of posteriors against a reference, in one object."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, overload

import jax
import numpy as np
from numpy.typing import ArrayLike

from pseudocoreset.arguments import checked
from pseudocoreset.diagnostics.comparison.noise import Noise, Parts, distance_noise, parts_of, prediction_noise
from pseudocoreset.diagnostics.comparison.result import Comparison, Comparisons
from pseudocoreset.diagnostics.convergence import convergence
from pseudocoreset.diagnostics.distances.agreement import UNIFORM, agreement_of, function_draws
from pseudocoreset.diagnostics.distances.between import Distances, PairedSamples
from pseudocoreset.diagnostics.distances.moments import moments_of_all
from pseudocoreset.diagnostics.distances.pairs import median_distance
from pseudocoreset.diagnostics.distances.reweighting import Reweighting, reweight
from pseudocoreset.diagnostics.distances.samples import Sample
from pseudocoreset.diagnostics.predictions.differences import score_difference
from pseudocoreset.diagnostics.predictions.metrics import metrics_of
from pseudocoreset.diagnostics.predictions.predictive import predict, uniform_predictive
from pseudocoreset.formatting import json_values
from pseudocoreset.inference.posterior.likelihoods import same_data
from pseudocoreset.inference.posterior.model import accepts_model, bound, check_is_of, held_out, model_of
from pseudocoreset.inference.validation import resolve_predict_on
from pseudocoreset.rows import spread_indices
from pseudocoreset.validation import check_integer

if TYPE_CHECKING:
    from pseudocoreset.data import Split
    from pseudocoreset.inference import Posterior

__all__ = ["compare_posteriors"]


@checked
@overload
def compare_posteriors(
    posteriors: Mapping[str, Posterior],
    split: Mapping[str, Split | tuple[ArrayLike, ArrayLike]],
    *,
    reference: str | None = ...,
    num_bins: int = ...,
    max_inputs: int = ...,
    sources: Mapping[str, Any] | None = ...,
    key: jax.Array | None = ...,
) -> Comparisons: ...


@checked
@overload
def compare_posteriors(
    posteriors: Mapping[str, Posterior],
    split: Split | tuple[ArrayLike, ArrayLike],
    *,
    reference: str | None = ...,
    num_bins: int = ...,
    max_inputs: int = ...,
    sources: Mapping[str, Any] | None = ...,
    key: jax.Array | None = ...,
) -> Comparison: ...


@accepts_model
@checked
def compare_posteriors(
    posteriors: Mapping[str, Posterior],
    split: Any,
    *,
    reference: str | None = "full",
    num_bins: int = 15,
    max_inputs: int = 200,
    sources: Mapping[str, Any] | None = None,
    key: jax.Array | None = None,
) -> Comparison | Comparisons:
    """Score posteriors on held-out data and measure how close each is to the reference.

    Args:
        posteriors: Posteriors of one model by name, such as ``{"coreset": ..., "full": ...}``. They know their model;
            those from files are given it by ``Posterior.load(path, model=model)``.
        split: Held-out data, a ``Split`` or ``(x, y)``, or several by name, such as
            ``{"test": data.test, "shifted": shifted}``. A posterior evaluated on other data is evaluated again from its
            kept weights, so several splits need posteriors that kept them.
        reference: Name of the posterior that the others are held against; None for scores alone.
        num_bins: Bins of the calibration error.
        max_inputs: Held-out inputs whose predictions are examined for convergence and distances, evenly spread over
            the split.
        sources: What posteriors were sampled on, by their names, that of the reference included: these are weighted
            to the reference, as ``reweight`` does. For models of few parameters.
        key: For the directions of the sliced Wasserstein distance and the simulation of noise; the same every time by
            default.

    Returns:
        ``Comparison``; of several splits ``Comparisons``, one by name. What does not depend on the split, moments and
        importance weights, is with the first.

    Raises:
        ValueError: A posterior of another model than the reference, or that does not know its model, no posterior, an
            unknown ``reference``, the name "uniform", a posterior without predictions on ``split`` and without weights
            to make them, or ``sources`` that do not fit.
    """
    check_integer(num_bins, "num_bins")
    check_integer(max_inputs, "max_inputs")
    if not posteriors:
        raise ValueError("posteriors is empty; give at least one, {'coreset': posterior}")
    if reference is not None and reference not in posteriors:
        raise ValueError(
            f"reference={reference!r} is not among the posteriors {sorted(posteriors)}; name one of them, or "
            "pass reference=None for scores without agreement"
        )
    if UNIFORM in posteriors:
        raise ValueError(f"the name {UNIFORM!r} is taken by the uniform prediction; call the posterior something else")
    _check_sources(sources, posteriors, reference)
    is_several = isinstance(split, Mapping)
    named: dict[Any, Split] = {name: _as_split(part) for name, part in (split if is_several else {None: split}).items()}
    if not named:
        raise ValueError("split is empty; give held-out data, or some by name: {'test': data.test}")
    measuring = _Measuring(posteriors, reference, num_bins, max_inputs, jax.random.key(0) if key is None else key)
    measuring.check_models(next(iter(named.values())))
    parameters = measuring.of_parameters(sources or {})
    found: dict[Any, Comparison] = {}
    for name, part in named.items():
        found[name] = measuring.on(part, name, parameters)
        parameters = {}
    return Comparisons(found) if is_several else found[None]


@dataclasses.dataclass(frozen=True)
class _Measuring:
    """What is compared, and how closely it is looked at; see ``compare_posteriors``."""

    posteriors: Mapping[str, Posterior]
    reference: str | None
    num_bins: int
    max_inputs: int
    key: jax.Array

    def check_models(self, split: Split) -> None:
        """Refuse posteriors that do not know their model, or are not all of one model."""
        models = {name: model_of(p, f"the posterior {name!r}") for name, p in self.posteriors.items()}
        first = bound(models[next(iter(models)) if self.reference is None else self.reference], split)
        for name, posterior in self.posteriors.items():
            check_is_of(posterior, first, f"the posterior {name!r}")

    def of_parameters(self, sources: Mapping[str, Any]) -> dict[str, Any]:
        """What does not depend on held-out data: importance weights to the reference, and moments."""
        if self.reference is None:
            return {}
        moments, floor = moments_of_all(self.posteriors, self.reference)
        weights = {name: self._weighted(name, sources) for name in sources if name != self.reference}
        return {"reweighting": weights, "moments": moments, "moment_floor": floor}

    def _weighted(self, name: str, sources: Mapping[str, Any]) -> Reweighting:
        try:
            return reweight(self.posteriors[name], source=sources[name], target=sources[self.reference or ""])
        except ValueError as error:
            raise ValueError(f"the posterior {name!r} cannot be weighted to {self.reference!r}: {error}") from error

    def on(self, split: Split, split_name: str | None, parameters: Mapping[str, Any]) -> Comparison:
        """The comparison on one split, with what was found of the parameters."""
        evaluated = {name: _evaluated(name, p, split, split_name) for name, p in self.posteriors.items()}
        predictions = {name: predict(posterior) for name, posterior in evaluated.items()}
        num_classes = model_of(next(iter(evaluated.values()))).num_classes
        if num_classes is not None:
            predictions[UNIFORM] = uniform_predictive(split.y, num_classes)
        found: dict[str, Any] = {"agreement": {}, "distances": {}}
        if self.reference is not None:
            full = predictions[self.reference]
            others = {name: row for name, row in predictions.items() if name != self.reference}
            found["agreement"] = {name: agreement_of(full, other) for name, other in others.items()}
            found["differences"] = {
                name: score_difference(full, other, num_bins=self.num_bins) for name, other in others.items()
            }
            found["distances"], found["noise"] = self._distances_and_noise(evaluated, self.reference)
        return Comparison(
            metrics={name: metrics_of(row, num_bins=self.num_bins) for name, row in predictions.items()},
            convergence={name: convergence(p, max_inputs=self.max_inputs) for name, p in evaluated.items()},
            reference=self.reference,
            predictions=predictions,
            settings={name: json_values(posterior.metadata) for name, posterior in self.posteriors.items()},
            **found,
            **parameters,
        )

    def _distances_and_noise(
        self, evaluated: Mapping[str, Posterior], reference: str
    ) -> tuple[dict[str, Distances], dict[str, Noise]]:
        """Distances of the others from the reference, with one kernel function, and the noise of each comparison.

        The noise of a reference alone is that of a second run of it.
        """
        full = evaluated[reference]
        inputs = spread_indices(held_out(full).num_data, self.max_inputs)
        samples = {name: _functions(posterior, inputs) for name, posterior in evaluated.items()}
        left, left_parts = samples[reference]
        bandwidth = median_distance(left.draws / np.sqrt(left.draws.shape[1])) if len(left.draws) > 1 else 1.0
        found: dict[str, Distances] = {}
        noises: dict[str, Noise] = {}
        others = [name for name in evaluated if name != reference]
        for name in others or [reference]:
            right, right_parts = samples[name]
            parts_of_both = left_parts, right_parts
            distances = None
            if min(len(left.draws), len(right.draws)) > 1:
                pairs = PairedSamples(left, right, self.key, bandwidth)
                distances = distance_noise(pairs, parts_of_both, jax.random.fold_in(self.key, 1))
                if others:
                    found[name] = pairs()
            noise = prediction_noise((full, evaluated[name]), parts_of_both, jax.random.fold_in(self.key, 2))
            if noise is not None:
                noises[name] = dataclasses.replace(noise, distances=distances)
        return found, noises


def _functions(posterior: Posterior, inputs: np.ndarray) -> tuple[Sample, Parts]:
    """The draws of a posterior as functions at some inputs, and how they are cut into parts."""
    values = function_draws(posterior, inputs)
    parts = parts_of(values)
    chains = np.repeat(np.arange(values.shape[0]), values.shape[1])
    return Sample(values.reshape(len(chains), -1), chains, parts.labels), parts


def _check_sources(
    sources: Mapping[str, Any] | None, posteriors: Mapping[str, Posterior], reference: str | None
) -> None:
    if sources is None:
        return
    unknown = sorted(set(sources) - set(posteriors))
    if unknown:
        raise ValueError(f"sources names {', '.join(map(repr, unknown))}; the posteriors are {sorted(posteriors)}")
    if reference is None or reference not in sources:
        raise ValueError(f"sources must hold the data of the reference, {reference!r}; got those of {sorted(sources)}")


def _evaluated(name: str, posterior: Posterior, split: Split, split_name: str | None) -> Posterior:
    if posterior.predict_on is not None and same_data(posterior.predict_on, split):
        return posterior
    try:
        return posterior.evaluate(split)
    except ValueError as error:
        where = "this split" if split_name is None else f"the split {split_name!r}"
        raise ValueError(
            f"the posterior {name!r} has no predictions on {where} and cannot make them ({error}); sample "
            "it with predict_on=split, or with keep='weights'"
        ) from error


def _as_split(split: Any) -> Split:
    if hasattr(split, "raw"):
        return split
    if isinstance(split, tuple | list):
        return resolve_predict_on(split, None, "split")
    raise TypeError(f"split must be a Split, such as data.test, or (x, y); got {type(split).__name__}")
