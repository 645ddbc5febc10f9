"""The inner loop of all routines: products of a matrix with a panel of another, summed up in registers."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from llvmlite import ir

from pseudocoreset.kernels.emitter import Emitter, Integer, Pointer, Program, Vector

__all__ = ["Products", "Strides"]


@dataclass(frozen=True)
class Strides:
    """``out[r] = start[r] + sum over parts and k of a[r * row + k * step] * factors[k * factor_step]``, a row a panel.

    Attributes:
        row: distance of rows of the first matrix, in numbers.
        step: of its columns.
        factor_step: of rows of the second.
        out_row: of rows of the sum.
        adds: whether the sum begins with rows that are ``out_row`` apart, rather than with one row for all.
    """

    row: int
    step: int
    factor_step: int
    out_row: int
    adds: bool


class Products:
    """Functions that add products of matrices with one panel to as many rows as registers hold, by number of rows."""

    def __init__(self, program: Program, name: str, panel: int, strides: Strides):
        """Emit them; ``panel`` is the columns of the factors, one vector or two."""
        vectors = panel // program.lanes
        # Beside the sums there are the factors and one number of the first matrix.
        self._most = min(14, (program.registers - vectors - 2) // vectors)
        self._strides = strides
        self._by_rows = [self._emitted(program, f"{name}_{rows}", rows, vectors) for rows in range(1, self._most + 1)]

    def _emitted(self, program: Program, name: str, rows: int, vectors: int) -> ir.Function:
        emitter, (a, factors, start, out), (length, parts, part, factor_part) = program.function(name, 4, 4)
        strides, lanes = self._strides, program.lanes

        def each(row: int, first: Pointer) -> list[Pointer]:
            return [first + (r * row + v * lanes) for r in range(rows) for v in range(vectors)]

        def add_part(index: Integer, *sums: Vector) -> list[Vector]:
            a_here, factors_here = a + index * part, factors + index * factor_part

            def add_step(k: Integer, *sums: Vector) -> list[Vector]:
                given = [(factors_here + k * strides.factor_step + v * lanes).load() for v in range(vectors)]
                made = []
                # Row by row, for LLVM keeps the order, and all numbers at once would not fit beside the sums.
                for row in range(rows):
                    number = (a_here + k * strides.step + row * strides.row).spread()
                    made += [sums[row * vectors + v] + number * given[v] for v in range(vectors)]
                return made

            return emitter.repeat(length, add_step, sums)

        first = [place.load() for place in each(strides.out_row if strides.adds else 0, start)]
        for place, total in zip(each(strides.out_row, out), emitter.repeat(parts, add_part, first), strict=True):
            place.store(total)
        emitter.builder.ret_void()
        return emitter.function

    def __call__(
        self,
        emitter: Emitter,
        count: Integer | int,
        a: Pointer,
        factors: Pointer,
        start: Pointer,
        out: Pointer,
        length: Integer | int,
        parts: Integer | int,
        part: Integer | int,
        factor_part: Integer | int,
    ) -> None:
        """For ``count`` rows; ``parts`` of ``length`` steps are ``part`` and, in the factors, ``factor_part`` apart."""

        def of(first: Integer, rows: int) -> None:
            begin = start + first * self._strides.out_row if self._strides.adds else start
            places = a + first * self._strides.row, factors, begin, out + first * self._strides.out_row
            emitter.call(self._by_rows[rows - 1], *places, length, parts, part, factor_part)

        count = emitter.integer(0) + count
        emitter.repeat(count // self._most, lambda group: of(group * self._most, self._most))
        rest = count % self._most
        emitter.choose(rest, [functools.partial(of, count - rest, rows) for rows in range(1, self._most)])
