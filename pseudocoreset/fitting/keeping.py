"""The better of what a method made and what it is to beat, by the divergence at the mode of the full data."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data import Dataset
from pseudocoreset.fitting.outcome import FitResult
from pseudocoreset.models import Model
from pseudocoreset.proxies.divergence import ModeDivergence, divergence_at, mode_of_data

__all__ = ["keep_better"]

logger = logging.getLogger(__name__)
MARGIN = 1e-3  # nats that rounding in single precision may make of nothing


def keep_better(
    result: FitResult,
    models: Sequence[Model],
    data: Dataset,
    other: Pseudocoreset | None,
    what: str = "start",
    *,
    replaces: bool = True,
) -> FitResult:
    """``result`` with the coreset that is nearer to the posterior of all data, and in its metadata which and how near.

    Where the divergence is not known, as of networks, the result's own coreset stays. ``metadata["at_mode"]`` has
    ``nats`` of what was kept, ``fitted`` and ``other`` of both, ``kept`` (``"fitted"``, or ``what``), ``reason`` and
    ``mismatch`` where there is no number, and ``nearer``, ``what`` where that is nearer and yet not kept, else None.

    Args:
        result: of a method.
        models: bound.
        data: the data set.
        other: what it is to beat, of the same number of points; None for nothing.
        what: its name.
        replaces: whether the other takes the place of the coreset where it is nearer; otherwise that is only said.
    """
    mode = mode_of_data(models[0], data) if len(models) == 1 else ModeDivergence(None, "there are several models")
    if isinstance(mode, ModeDivergence):
        found = dict.fromkeys(("nats", "fitted", "other", "nearer")) | {"kept": "fitted", "reason": mode.reason}
        return _with(result, result.coreset, found)
    fitted = divergence_at(models[0], mode, result.coreset)
    before = None if other is None else divergence_at(models[0], mode, other)
    is_worse = before is not None and _is_nearer(before, fitted)
    kept = before if before is not None and is_worse else fitted
    if is_worse and not replaces:
        kept = fitted
    found = {
        "nats": kept.nats,
        "fitted": fitted.nats,
        "other": None if before is None else before.nats,
        "kept": what if is_worse and replaces else "fitted",
        "reason": kept.reason,
        "mismatch": kept.mismatch,
        "nearer": what if is_worse and not replaces else None,
    }
    if is_worse and not replaces:
        assert before is not None
        logger.warning(
            "the choice of %s is farther from the posterior of all data than a %s of as many points: %s, and %s",
            result.coreset.metadata["objective"], what, _said(fitted), _said(before),
        )  # fmt: skip
    if not is_worse or not replaces:
        return _with(result, result.coreset, found)
    assert other is not None
    logger.warning("the fit ended farther from the posterior of all data than its %s: that is kept", what)
    metadata = {name: value for name, value in result.coreset.metadata.items() if name != "indices"} | other.metadata
    return _with(result, replace(other, metadata=metadata | {"objective": result.coreset.metadata["objective"]}), found)


def _said(divergence: ModeDivergence) -> str:
    """Its number in nats, or the mismatch where it has none."""
    mismatch = "" if divergence.mismatch is None else f" (mismatch {divergence.mismatch:.3g})"
    return str(divergence) if divergence.nats is not None else f"{divergence}{mismatch}"


def is_nearer(one: Pseudocoreset, other: Pseudocoreset) -> bool:
    """Whether ``one`` is nearer to the posterior of all data, by what the metadata of both say."""
    found = [coreset.metadata.get("at_mode") or {} for coreset in (one, other)]
    return _is_nearer(*(ModeDivergence(each.get("nats"), mismatch=each.get("mismatch")) for each in found))


def _is_nearer(one: ModeDivergence, other: ModeDivergence) -> bool:
    """Whether ``one`` is nearer by more than rounding: by the divergence where both have it, else by the mismatch."""
    pair = (one.nats, other.nats)
    if None in pair:
        pair = (one.mismatch, other.mismatch)
    if pair[0] is None:
        return False
    return pair[1] is None or pair[1] > pair[0] + MARGIN


def _with(result: FitResult, coreset: Pseudocoreset, found: dict[str, object]) -> FitResult:
    return replace(result, coreset=replace(coreset, metadata=coreset.metadata | {"at_mode": found}))
