"""Choosing the mass of the weights on a validation split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from pseudocoreset.arguments import checked
from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.diagnostics import predictive_metrics
from pseudocoreset.inference import sample
from pseudocoreset.inference.validation import resolve_predict_on
from pseudocoreset.models import Model
from pseudocoreset.validation import check_key, check_positive

__all__ = ["choose_mass"]


@checked
def choose_mass(
    model: Model,
    coreset: Pseudocoreset,
    split: Any,
    *,
    key: jax.Array,
    masses: Sequence[float] | None = None,
    **sampling: Any,
) -> Pseudocoreset:
    """The coreset with the mass whose posterior predicts a validation split best.

    The mass (the sum of the weights) decides how sure the coreset posterior is. Accuracy hardly shows it, the negative
    log-likelihood does; published coresets of one image a class mostly predict worse than the uniform distribution.

    Args:
        model: the model.
        coreset: the coreset.
        split: ``Split`` or ``(x, y)`` to score on: training data that were held out, not the test split.
        key: one typed key; every mass is sampled with the same.
        masses: candidates, positive; by default five from m to n, evenly spaced on a logarithmic scale, or to 10 m for
            a coreset that does not know n or has as many points.
        **sampling: arguments of ``pseudocoreset.inference.sample``.

    Returns:
        The coreset at the best mass. ``metadata["mass_choice"]`` holds the negative log-likelihood of every candidate.

    Raises:
        ValueError: for a mass that is not positive, or no candidates.
    """
    check_key(key)
    if masses is None:
        largest = coreset.num_data if coreset.num_data > coreset.size else 10 * coreset.size
        masses = np.geomspace(coreset.size, largest, 5).tolist()
    candidates = sorted({check_positive(mass, "masses") for mass in masses})
    if not candidates:
        raise ValueError("masses is empty; give at least one")
    settings = {"progress": False, **sampling}
    found = []
    split = resolve_predict_on(split, None, "split")
    for mass in candidates:
        posterior = sample(model, coreset.with_mass(mass), key=key, predict_on=split, **settings)
        found.append(float(predictive_metrics(posterior).nll))
    if not np.any(np.isfinite(found)):
        raise ValueError(f"the negative log-likelihood is not finite at any of the masses {candidates}: {found}")
    best = candidates[int(np.nanargmin(found))]
    chosen = coreset.with_mass(best)
    record = {"mass": candidates, "nll": found}
    return replace(chosen, metadata={**chosen.metadata, "mass_choice": record})
