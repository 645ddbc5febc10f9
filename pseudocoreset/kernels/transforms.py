"""The transforms of Winograd's F(4x4, 3x3), as linear combinations of whatever can be added and scaled.

Winograd 1980; B^T, A^T and G as in Lavin and Gray 2016. ``models.winograd`` applies them to arrays, ``routines`` to the
vectors of a processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["FILTER", "INPUT", "OUTPUT", "TILE", "combine", "mirrored"]

TILE = 4
# Interpolation at 0, 1, -1, 2, -2 and infinity. Points of opposite sign share even and odd parts of polynomials:
# B^T and A are these matrices followed by ``mirrored``, which takes fewer operations, to run and to compile.
INPUT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, 0, -4, 0, 1, 0],
        [0, -4, 0, 1, 0, 0],
        [0, 0, -1, 0, 1, 0],
        [0, -2, 0, 2, 0, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
OUTPUT = np.array([[1, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 4, 0], [0, 2, 0, 8], [0, 0, 0, 1]])
FILTER = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24


def mirrored(parts: Sequence[Any]) -> list[Any]:
    """Of six parts, sum and difference of the second and third, and of the fourth and fifth: its own transpose."""
    first, even, odd, even_2, odd_2, last = parts
    return [first, even + odd, even - odd, even_2 + odd_2, even_2 - odd_2, last]


def combine(matrix: np.ndarray, parts: Sequence[Any]) -> list[Any]:
    """Linear combinations: one for each row of the matrix, its zeros and ones not multiplied."""

    def combination(row: list[int]) -> Any:
        # Positive factors first: what is then subtracted need not be negated.
        terms = sorted(((f, p) for f, p in zip(row, parts, strict=True) if f), key=lambda term: term[0] < 0)
        total: Any = None
        for factor, part in terms:
            if total is None:
                total = part if factor == 1 else factor * part
                continue
            size = part if abs(factor) == 1 else abs(factor) * part
            total = total + size if factor > 0 else total - size
        assert total is not None
        return total

    return [combination(row) for row in matrix.tolist()]
