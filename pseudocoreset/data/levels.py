"""Levels of the integers among inputs: groups and categories, of which a few points may have none."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import jax
import numpy as np

if TYPE_CHECKING:
    from pseudocoreset.coreset import Pseudocoreset
    from pseudocoreset.data import Dataset

__all__ = ["missing_levels", "stratified", "warn_of_missing_levels"]

logger = logging.getLogger(__name__)
MOST_LEVELS = 10_000  # integers of more values are counts rather than categories


def _levels(data: Dataset, name: str) -> np.ndarray:
    """The level (n,) of every training datum in an array of integers."""
    layout = data.train.layout
    found = [leaf for leaf in (() if layout is None else layout.leaves) if leaf.name == name]
    if not found or found[0].is_float or found[0].shape != ():
        raise ValueError(f"stratify must name an array (n,) of integers among the inputs of data; got {name!r}")
    return np.asarray(data.train.packed[:, found[0].start]).astype(np.int64)


def stratified(data: Dataset, name: str, size: int, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Choose data of every level of an array of integers.

    Args:
        data: the data set.
        name: of the array.
        size: number of data to choose, at least one a level.
        key: one typed key.

    Returns:
        Indices (size,) into the training data, and weights (size,) that sum to ``size``, those of each level in
        proportion to its data.

    Raises:
        ValueError: for another array, or fewer points than levels.
    """
    levels = _levels(data, name)
    values, counts = np.unique(levels, return_counts=True)
    if not len(values) <= size <= len(levels):
        raise ValueError(f"size={size} must be at least the {len(values)} levels of {name!r}, at most the data")
    share = size * counts / counts.sum()
    quota = np.clip(np.floor(share).astype(int), 1, counts)
    while quota.sum() != size:
        change = 1 if quota.sum() < size else -1
        allowed = (quota < counts) if change > 0 else (quota > 1)
        quota[np.argmax(np.where(allowed, change * (share - quota), -np.inf))] += change
    chosen, weights = [], []
    for value, count, wanted, k in zip(values, counts, quota, jax.random.split(key, len(values)), strict=True):
        members = np.flatnonzero(levels == value)
        chosen.append(members[np.asarray(jax.random.permutation(k, len(members)))[:wanted]])
        weights.append(np.full(wanted, size * count / counts.sum() / wanted, np.float32))
    return np.concatenate(chosen), np.concatenate(weights)


def missing_levels(coreset: Pseudocoreset, data: Dataset) -> dict[str, np.ndarray]:
    """Levels of the training data that no point with weight has, by array of integers."""
    layout = data.train.layout
    missing = {}
    for leaf in () if layout is None else layout.leaves:
        if leaf.dtype == "int" and leaf.shape == ():
            levels = np.unique(_levels(data, leaf.name))
            ours = coreset.packed[coreset.weights > 0, leaf.start].astype(np.int64)
            lost = np.setdiff1d(levels, ours)
            if len(lost) and len(levels) <= MOST_LEVELS:
                missing[leaf.name] = lost
    return missing


def warn_of_missing_levels(coreset: Pseudocoreset, data: Dataset) -> None:
    """Say which levels have no point: what belongs to them alone is left to the prior."""
    for name, lost in missing_levels(coreset, data).items():
        shown = ", ".join(map(str, lost[:5])) + (", ..." if len(lost) > 5 else "")
        logger.warning(
            "no point has one of %d levels of %r (%s): parameters of these levels alone are left to their prior. Take "
            "more points, or start from Pseudocoreset.from_data(data, size=..., stratify=%r, key=...)",
            len(lost),
            name,
            shown,
            name,
        )
