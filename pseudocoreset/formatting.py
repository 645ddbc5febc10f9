"""Numbers and tables as text, HTML and JSON."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["Table", "html_table", "json_values", "number", "text_table", "with_error"]

# heading, column names, rows: the first cell of a row is its name
Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
MISSING = "-"
_ROUNDING = 1e-12


def number(value: float | int | None, digits: int = 3) -> str:
    """A number for reading: fixed decimals, more of them or an exponent where it would round to zero."""
    if value is None:
        return MISSING
    if isinstance(value, int | np.integer):
        return str(value)
    if not math.isfinite(value):
        return "inf" if value > 0 else ("-inf" if value < 0 else "nan")
    if abs(value) > _ROUNDING and (abs(value) < 10.0**-digits or abs(value) >= 1e6):
        return f"{value:.1e}"
    return f"{value:.{digits}f}"


def with_error(value: float | None, standard_error: float | None) -> str:
    """A number and its standard error: ``0.853 ± 0.019``."""
    if value is None or standard_error is None or not math.isfinite(standard_error):
        return number(value)
    return f"{number(value)} ± {number(standard_error)}"


def text_table(table: Table) -> str:
    """A fixed-width table under its heading; names to the left, numbers to the right."""
    heading, columns, rows = table
    cells = [["", *columns], *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in cells
    ]
    return "\n".join([heading, *(line.rstrip() for line in lines)])


def html_table(table: Table) -> str:
    """The same as an HTML table, everything escaped."""
    heading, columns, rows = table
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in ["", *columns])
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f"<table><caption>{html.escape(heading)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def json_values(value: Any) -> Any:
    """The same with everything that JSON cannot write replaced.

    Arrays become lists, numbers that are not finite the strings "inf", "-inf" and "nan", anything else its
    ``str``.
    """
    if isinstance(value, Mapping):
        return {str(name): json_values(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return json_values(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return number(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
