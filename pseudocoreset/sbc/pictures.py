"""The picture of a simulation-based calibration."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pseudocoreset.arguments import checked
from pseudocoreset.formatting import number
from pseudocoreset.sbc.calibration import Calibration
from pseudocoreset.sbc.ranks import ecdf_band, ecdf_counts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_calibration"]


@checked
def plot_calibration(calibration: Calibration, *, level: float = 0.95, max_panels: int = 12) -> Figure:
    """Distribution functions of the ranks less that of uniform ones, with the band that holds all of it.

    Above zero to the left and below to the right: too narrow posteriors; the reverse: too wide; to one side: biased.

    Args:
        calibration: What ``calibrate`` returned.
        level: Probability with which uniform ranks stay inside the band everywhere, for each panel.
        max_panels: Quantities shown, those of smallest p-value.

    Returns:
        A matplotlib ``Figure``.
    """
    from matplotlib.figure import Figure

    p_values = calibration.p_values
    shown = sorted(sorted(p_values, key=p_values.__getitem__)[:max_panels], key=calibration.quantities.index)
    num_columns = min(4, len(shown))
    num_rows = math.ceil(len(shown) / num_columns)
    figure = Figure(figsize=(2.8 * num_columns, 2.2 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True).ravel()
    places, low, high = ecdf_band(calibration.num_simulations, calibration.num_draws, level)
    for axes, name in zip(panels, shown, strict=False):
        column = calibration.ranks[:, calibration.quantities.index(name)]
        _, counts = ecdf_counts(column, calibration.num_draws)
        axes.fill_between(places, low - places, high - places, color="0.85", linewidth=0)
        axes.axhline(0, color="0.6", linewidth=1)
        axes.plot(places, counts / calibration.num_simulations - places, drawstyle="steps-mid")
        axes.set_title(f"{name}, p {number(p_values[name])}", fontsize="small")
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    figure.supxlabel("rank of the truth / draws", fontsize="small")
    figure.supylabel("share below, less uniform", fontsize="small")
    return figure
