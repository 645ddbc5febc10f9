"""``compare_posteriors``: everything that is measured of posteriors against a reference, in one object."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, overload

import jax
import numpy as np
from numpy.typing import ArrayLike

from pseudocoreset.arguments import checked
from pseudocoreset.diagnostics.agreement import UNIFORM, agreement, function_draws
from pseudocoreset.diagnostics.blocks import bound, held_out, same_data
from pseudocoreset.diagnostics.comparison import Comparison, Comparisons
from pseudocoreset.diagnostics.convergence import convergence, spread_indices
from pseudocoreset.diagnostics.differences import score_difference
from pseudocoreset.diagnostics.distances import Distances, PairedSamples, Sample, median_distance
from pseudocoreset.diagnostics.formatting import json_values
from pseudocoreset.diagnostics.metrics import metrics_of
from pseudocoreset.diagnostics.moments import moments_of_all
from pseudocoreset.diagnostics.noise import Noise, Parts, distance_noise, parts_of, prediction_noise
from pseudocoreset.diagnostics.predictive import predict, uniform_predictive
from pseudocoreset.diagnostics.reweighting import Reweighting, reweight

if TYPE_CHECKING:
    from pseudocoreset.data import Split
    from pseudocoreset.inference import Posterior
    from pseudocoreset.models import Model

__all__ = ["compare_posteriors"]


@checked
@overload
def compare_posteriors(
    posteriors: Mapping[str, Posterior],
    model: Model,
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
    model: Model,
    split: Split | tuple[ArrayLike, ArrayLike],
    *,
    reference: str | None = ...,
    num_bins: int = ...,
    max_inputs: int = ...,
    sources: Mapping[str, Any] | None = ...,
    key: jax.Array | None = ...,
) -> Comparison: ...


@checked
def compare_posteriors(
    posteriors: Mapping[str, Posterior],
    model: Model,
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
        posteriors: Posteriors by name, such as ``{"coreset": ..., "full": ...}``.
        model: The model that all were sampled from.
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
        ValueError: A posterior of another model, no posterior, an unknown ``reference``, the name "uniform", a
            posterior without predictions on ``split`` and without weights to make them, or ``sources`` that do not fit.
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
    _check_sources(sources, posteriors, reference)
    key = jax.random.key(0) if key is None else key

    is_several = isinstance(split, Mapping)
    named: dict[Any, Split] = {name: _as_split(part) for name, part in (split if is_several else {None: split}).items()}
    if not named:
        raise ValueError("split is empty; give held-out data, or some by name: {'test': data.test}")
    parameters: dict[str, Any] = {}
    if reference is not None:
        parameters["reweighting"] = _reweighting(posteriors, model, sources or {}, reference)
        parameters["moments"], parameters["moment_floor"] = moments_of_all(posteriors, reference, model)
    found: dict[Any, Comparison] = {}
    for name, part in named.items():
        found[name] = _compare(posteriors, model, part, name, reference, num_bins, max_inputs, parameters, key)
        parameters = {}
    return Comparisons(found) if is_several else found[None]


def _compare(
    posteriors: Mapping[str, Posterior],
    model: Model,
    split: Split,
    split_name: str | None,
    reference: str | None,
    num_bins: int,
    max_inputs: int,
    parameters: Mapping[str, Any],
    key: jax.Array,
) -> Comparison:
    model = bound(model, split)
    _check_model(posteriors, model)
    evaluated = {name: _evaluated(name, posterior, model, split, split_name) for name, posterior in posteriors.items()}
    predictions = {name: predict(posterior, model) for name, posterior in evaluated.items()}
    if model.num_classes is not None:
        predictions[UNIFORM] = uniform_predictive(split.y, model.num_classes)
    found: dict[str, Any] = {"agreement": {}, "distances": {}}
    if reference is not None:
        full = predictions[reference]
        others = {name: row for name, row in predictions.items() if name != reference}
        found["agreement"] = {name: agreement(full, other) for name, other in others.items()}
        found["differences"] = {
            name: score_difference(full, other, num_bins=num_bins) for name, other in others.items()
        }
        found["distances"], found["noise"] = _distances_and_noise(evaluated, reference, model, max_inputs, key)
    return Comparison(
        metrics={name: metrics_of(row, num_bins=num_bins) for name, row in predictions.items()},
        convergence={name: convergence(p, model, max_inputs=max_inputs) for name, p in evaluated.items()},
        reference=reference,
        predictions=predictions,
        settings={name: json_values(posterior.metadata) for name, posterior in posteriors.items()},
        **found,
        **parameters,
    )


def _distances_and_noise(
    posteriors: Mapping[str, Posterior], reference: str, model: Model, max_inputs: int, key: jax.Array
) -> tuple[dict[str, Distances], dict[str, Noise]]:
    """Distances of the others from the reference, with one kernel function, and what noise alone makes of a comparison.

    The noise of a reference alone is that of a second run of it.
    """
    full = posteriors[reference]
    inputs = spread_indices(held_out(full).num_data, max_inputs)
    samples: dict[str, tuple[Sample, Parts]] = {}
    for name, posterior in posteriors.items():
        values = function_draws(posterior, model, inputs)
        parts = parts_of(values)
        chains = np.repeat(np.arange(values.shape[0]), values.shape[1])
        samples[name] = Sample(values.reshape(len(chains), -1), chains, parts.labels), parts
    left, left_parts = samples[reference]
    bandwidth = median_distance(left.draws / np.sqrt(left.draws.shape[1])) if len(left.draws) > 1 else 1.0
    found: dict[str, Distances] = {}
    noises: dict[str, Noise] = {}
    others = [name for name in posteriors if name != reference]
    for name in others or [reference]:
        right, right_parts = samples[name]
        parts_of_both = left_parts, right_parts
        distances = None
        if min(len(left.draws), len(right.draws)) > 1:
            pairs = PairedSamples(left, right, key, bandwidth)
            distances = distance_noise(pairs, parts_of_both, jax.random.fold_in(key, 1))
            if others:
                found[name] = pairs()
        noise = prediction_noise((full, posteriors[name]), parts_of_both, model, jax.random.fold_in(key, 2))
        if noise is not None:
            noises[name] = dataclasses.replace(noise, distances=distances)
    return found, noises


def _check_model(posteriors: Mapping[str, Posterior], model: Model) -> None:
    """Refuse posteriors of another model."""
    wanted = {name: list(leaf.shape) for name, leaf in jax.eval_shape(model.init, jax.random.key(0)).items()}
    for name, posterior in posteriors.items():
        made = posterior.metadata.get("model", model.name)
        kept = posterior.unconstrained
        sites = None if kept is None else {site: list(array.shape[2:]) for site, array in kept.items()}
        sites = posterior.metadata.get("sites", sites)
        if made != model.name or sites not in (None, wanted):
            raise ValueError(
                f"the posterior {name!r} is of the model {made!r} with the sites {sites or 'not known'}; it is "
                f"compared as one of {model.name!r} with the sites {wanted}. Give the model that it was sampled from"
            )


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


def _reweighting(
    posteriors: Mapping[str, Posterior], model: Model, sources: Mapping[str, Any], reference: str
) -> dict[str, Reweighting]:
    found = {}
    for name, source in sources.items():
        if name != reference:
            try:
                found[name] = reweight(posteriors[name], model, source=source, target=sources[reference])
            except ValueError as error:
                raise ValueError(f"the posterior {name!r} cannot be weighted to {reference!r}: {error}") from error
    return found


def _evaluated(name: str, posterior: Posterior, model: Model, split: Split, split_name: str | None) -> Posterior:
    if posterior.predict_on is not None and same_data(posterior.predict_on, split):
        return posterior
    try:
        return posterior.evaluate(model, split)
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
        # BlackJAX puts an array on the device when it is imported
        from pseudocoreset.inference.validation import resolve_predict_on

        return resolve_predict_on(split, None, "split")
    raise TypeError(f"split must be a Split, such as data.test, or (x, y); got {type(split).__name__}")
