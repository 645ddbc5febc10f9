"""Figures made without pyplot: they open no window and need no closing.

Show one by returning it from a notebook cell, or ``figure.savefig(path)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MAX_POINTS", "new_figure"]

MAX_POINTS = 2000


def new_figure(width: float, height: float) -> Figure:
    """A figure without pyplot, of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
