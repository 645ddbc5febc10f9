"""The course of a fit as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from pseudocoreset.arguments import checked
from pseudocoreset.diagnostics.plots.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_history"]


@checked
def plot_history(history: Mapping[str, ArrayLike]) -> Figure:
    """The course of a fit: one panel a recorded series, against the step where "step" is recorded.

    Args:
        history: Series by name; those that are not one number a step are left out.

    Returns:
        A matplotlib ``Figure``.

    Raises:
        ValueError: No series to draw.
    """
    arrays = {name: np.asarray(values) for name, values in history.items()}
    series = {
        name: values.astype(float)
        for name, values in arrays.items()
        if name != "step" and values.ndim == 1 and values.size and values.dtype.kind in "fiub"
    }
    if not series:
        raise ValueError(f"history has no series of numbers; got {sorted(arrays)}")
    num_columns = min(3, len(series))
    num_rows = -(-len(series) // num_columns)
    figure = new_figure(3.6 * num_columns, 2.4 * num_rows)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes, (name, values) in zip(panels, series.items(), strict=False):
        steps = arrays.get("step")
        axes.plot(steps if steps is not None and steps.shape == values.shape else np.arange(values.size), values)
        axes.set(title=name, xlabel="step")
    for axes in panels[len(series) :]:
        axes.set_axis_off()
    return figure
