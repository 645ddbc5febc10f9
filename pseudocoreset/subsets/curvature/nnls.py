"""Non-negative least squares by the active set method of Lawson and Hanson, with a bound on the support."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["NonNegative", "non_negative_least_squares"]

Array = NDArray[np.float64]
LEAST_GAIN = 1e-14  # cosine of the residual with a column, below which that column is of no use


class NonNegative(NamedTuple):
    """A solution.

    weights
        (N,), not negative.
    residual
        The length of what is left.
    """

    weights: Array
    residual: float


def non_negative_least_squares(
    columns: Array, target: Array, *, tolerance: float = 0.0, most: int | None = None
) -> NonNegative:
    """min_{w >= 0} |columns @ w - target|, one column taken in at a time.

    Taken in is the column of the largest cosine with the residual; columns whose weight would become negative leave.
    The factorisation of the columns within is updated, not made again.

    Args:
        columns: (D, N).
        target: (D,).
        tolerance: a residual that is small enough to stop at.
        most: how many weights may be positive; the best that the search comes by is returned.
    """
    from scipy.linalg import qr_delete, qr_insert, solve_triangular

    lengths = np.linalg.norm(columns, axis=0)
    usable = lengths > 0
    unit = np.where(usable, columns / np.where(usable, lengths, 1.0), 0.0)
    most = len(target) if most is None else min(most, len(target))
    inside: list[int] = []
    weights = np.zeros(0)
    q, r = np.zeros((len(target), 0)), np.zeros((0, 0))
    residual, is_barred = target.copy(), ~usable
    for _ in range(6 * len(target) + 100):
        size = float(np.linalg.norm(residual))
        if size <= tolerance or len(inside) >= most:
            break
        gains = np.where(is_barred, -np.inf, residual @ unit)
        gains[inside] = -np.inf
        best = int(np.argmax(gains))
        if gains[best] <= LEAST_GAIN * size:
            break
        try:
            if inside:
                grown_q, grown_r = qr_insert(q, r, unit[:, best], len(inside), which="col", rcond=1e-12)
            else:
                grown_q, grown_r = unit[:, [best]], np.ones((1, 1))
        except np.linalg.LinAlgError:
            is_barred[best] = True
            continue
        trial = solve_triangular(grown_r, grown_q.T @ target)
        if not trial[-1] > 0:
            is_barred[best] = True
            continue
        q, r, inside, weights = grown_q, grown_r, [*inside, best], np.append(weights, 0.0)
        while len(trial) and trial.min() <= 0:
            falling = trial <= 0
            share = np.min(weights[falling] / np.maximum(weights[falling] - trial[falling], 1e-300))
            weights = weights + share * (trial - weights)
            leaving = np.flatnonzero(falling & (weights <= 1e-14 * np.max(weights, initial=1e-300)))
            for place in leaving[::-1]:
                q, r = qr_delete(q, r, place, which="col")
                del inside[place]
                # A square factor is given back as it is: the economic form is what is updated here.
                q, r = q[:, : len(inside)], r[: len(inside)]
            weights = np.delete(weights, leaving)
            trial = solve_triangular(r, q.T @ target)
        weights = trial
        residual, is_barred = target - unit[:, inside] @ weights, ~usable
    found = np.zeros(columns.shape[1])
    found[inside] = weights / lengths[inside]
    return NonNegative(found, float(np.linalg.norm(residual)))
