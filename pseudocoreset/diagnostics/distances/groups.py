"""Groups of draws that depend little on each other: halves of chains, parts left out in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pseudocoreset.inference import Posterior

__all__ = ["draw_groups", "halves", "jackknife"]

NUM_HALVES = 2
NUM_GROUPS = 4  # of draws that are left out in turn, at least


def halves(posterior: Posterior) -> list[tuple[slice, slice]] | None:
    """(Chains, draws) of two halves of the chains, or of the draws of a single chain; None for one draw."""

    def parts(count: int) -> list[slice]:
        return [slice(None, count // 2), slice(count // 2, None)]

    if posterior.num_chains >= NUM_HALVES:
        return [(part, slice(None)) for part in parts(posterior.num_chains)]
    if posterior.num_draws >= NUM_HALVES:
        return [(slice(None), part) for part in parts(posterior.num_draws)]
    return None


def draw_groups(num_chains: int, num_draws: int) -> np.ndarray:
    """``(chain * draw,)``: which group a draw is left out with.

    The chains are the groups, as draws of one chain depend on each other; fewer than four of them are cut into parts.
    """
    parts = min(max(1, -(-NUM_GROUPS // num_chains)), num_draws)
    within = np.arange(num_draws) * parts // num_draws
    return (np.arange(num_chains)[:, None] * parts + within).ravel()


def jackknife(
    values: Callable[[np.ndarray, np.ndarray], np.ndarray], groups: tuple[np.ndarray, np.ndarray]
) -> np.ndarray | None:
    """Standard errors of a function of two samples by leaving out one group of draws at a time, of either.

    Args:
        values: of the groups kept of each sample, (number of groups,) bool.
        groups: integers from zero, the group of each draw.

    Returns:
        Standard errors; None where a sample has one group, or fewer than two draws would be left of it.
    """
    counts = [np.bincount(labels) for labels in groups]
    if any(len(count) < 2 or count.sum() - count.max() < 2 for count in counts):
        return None
    everything = [np.ones(len(count), bool) for count in counts]
    variance: Any = 0.0
    for side, count in enumerate(counts):
        number = len(count)
        left_out = []
        for group in range(number):
            keep = list(everything)
            keep[side] = np.arange(number) != group
            left_out.append(values(*keep))
        variance = variance + (number - 1) * np.var(left_out, axis=0)
    return np.sqrt(variance)
