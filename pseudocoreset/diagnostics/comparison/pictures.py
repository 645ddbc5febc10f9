"""Pictures of a comparison: calibration, agreement with the reference, and the main figures with their errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from pseudocoreset.arguments import checked
from pseudocoreset.diagnostics.comparison.findings import Findings
from pseudocoreset.diagnostics.distances.agreement import UNIFORM
from pseudocoreset.diagnostics.plots.figures import MAX_POINTS, new_figure
from pseudocoreset.diagnostics.predictions.metrics import reliability
from pseudocoreset.rows import spread_indices

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_agreement", "plot_comparison", "plot_reliability"]

_Z = 1.959964  # of 95 % intervals


@checked
def plot_reliability(
    comparison_or_probabilities: Findings | ArrayLike, y: ArrayLike | None = None, *, num_bins: int = 15
) -> Figure:
    """Accuracy against confidence by bin, and how many examples each bin holds; calibrated is the diagonal.

    Bars are 95 % intervals of the accuracy in a bin (Wilson 1927).

    Args:
        comparison_or_probabilities: A ``Comparison``, or probabilities ``(n, C)``.
        y: ``(n,)`` labels, with probabilities.
        num_bins: Equal-width bins of confidence.

    Returns:
        A matplotlib ``Figure``.

    Raises:
        ValueError: A regression, or probabilities without labels.
    """
    if isinstance(comparison_or_probabilities, Findings):
        if not comparison_or_probabilities.is_classification:
            raise ValueError("plot_reliability needs class probabilities; this comparison is of regressions")
        curves = {
            name: (row.probabilities, row.y)
            for name, row in comparison_or_probabilities.predictions.items()
            if name != UNIFORM
        }
    elif y is None:
        raise ValueError("y is needed with probabilities: plot_reliability(probabilities, y)")
    else:
        curves = {"": (np.asarray(comparison_or_probabilities), np.asarray(y))}
    figure = new_figure(4.8, 5.0)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    for name, (probabilities, labels) in curves.items():
        counts, accuracies, confidences = reliability(probabilities, labels, num_bins=num_bins)
        held = counts > 0
        bars = _wilson(accuracies[held], counts[held])
        upper.errorbar(
            confidences[held],
            accuracies[held],
            np.abs(bars - accuracies[held]),
            marker="o",
            markersize=4,
            elinewidth=1,
            label=name,
            clip_on=False,
        )
        lower.stairs(counts, np.linspace(0, 1, num_bins + 1))
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    lower.set(xlabel="confidence (largest probability)", ylabel="examples")
    if any(curves):
        upper.legend(frameon=False)
    return figure


@checked
def plot_agreement(comparison: Findings) -> Figure:
    """Each posterior against the reference, one dot a held-out input.

    For classes: the probability given to the class that the reference finds most probable. For a regression:
    the predicted mean. Perfect agreement is the diagonal.

    Args:
        comparison: Made with a reference.

    Returns:
        A matplotlib ``Figure``, one panel a posterior.

    Raises:
        ValueError: No reference, or nothing to hold against it.
    """
    names = [name for name in comparison.agreement if name != UNIFORM]
    if comparison.reference is None or not names:
        raise ValueError("plot_agreement needs a reference and another posterior; compare_posteriors(..., reference=)")
    reference = comparison.predictions[comparison.reference]
    shown = spread_indices(comparison.num_data, MAX_POINTS)
    figure = new_figure(4.2 * len(names), 4.2)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        other = comparison.predictions[name]
        if comparison.is_classification:
            p, q = reference.probabilities, other.probabilities
            rows, top = np.arange(len(p)), p.argmax(-1)
            horizontal, vertical = p[rows, top], q[rows, top]
            same = q.argmax(-1) == top
            ends, what = (0.0, 1.0), "probability of the reference's top class"
        else:
            if reference.mean is None or other.mean is None:
                raise ValueError("plot_agreement needs predicted means, which these posteriors do not have")
            horizontal, vertical = reference.mean[:, 0], other.mean[:, 0]
            same = np.ones(len(horizontal), bool)
            both = np.concatenate([horizontal, vertical])
            ends, what = (float(both.min()), float(both.max())), "predicted mean"
        axes.plot(ends, ends, color="0.6", linestyle="--", linewidth=1)
        groups = [("C0", same, "same top class"), ("C3", ~same, "another top class")]
        for colour, group, label in groups:
            keep = shown[group[shown]]
            axes.scatter(horizontal[keep], vertical[keep], s=10, alpha=0.5, linewidths=0, color=colour, label=label)
        if comparison.is_classification:
            axes.legend(frameon=False, fontsize="small")
        axes.set(xlabel=f"{comparison.reference}", ylabel=f"{name}", title=what)
    return figure


@checked
def plot_comparison(comparison: Findings | Mapping[str, Findings]) -> Figure:
    """The main figures of a comparison, a panel each and a line a posterior, with 95 % intervals.

    Scores, closeness to the reference, and the distance of the draws; a broken line is the noise floor, two halves of
    the reference held against each other. Of several splits each has its colour.

    Args:
        comparison: What ``compare_posteriors`` returned.

    Returns:
        A matplotlib ``Figure``.
    """
    by_split = {"": comparison} if isinstance(comparison, Findings) else dict(comparison)
    if not by_split:
        raise ValueError("comparison is empty; give what compare_posteriors returned")
    first = next(iter(by_split.values()))
    panels = [panel for panel in _PANELS if _has(first, *panel[:2])]
    names = list(first.metrics)
    figure = new_figure(2.9 * len(panels) + 1.0, 0.45 * len(names) * max(1.0, len(by_split) / 2) + 1.4)
    for axes, (rows, field, title) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True
    ):
        for at, (split, found) in enumerate(by_split.items()):
            shift = 0.5 * (at - (len(by_split) - 1) / 2) / len(by_split)
            held = {name: row for name, row in getattr(found, rows).items() if getattr(row, field) is not None}
            errors = [getattr(row, f"{field}_standard_error") or 0.0 for row in held.values()]
            axes.errorbar(
                [getattr(row, field) for row in held.values()],
                [names.index(name) + shift for name in held],
                xerr=_Z * np.nan_to_num(np.asarray(errors)),
                fmt="o",
                markersize=5,
                color=f"C{at}",
                label=split,
            )
            floor = getattr(found, _FLOORS[rows]) if rows in _FLOORS else None
            if floor is not None:
                axes.axvline(getattr(floor, field), color=f"C{at}", linestyle="--", linewidth=1)
        if rows == "differences":
            axes.axvline(0.0, color="0.6", linewidth=1)
        axes.set(title=title, yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
        axes.locator_params(axis="x", nbins=5)
        axes.grid(axis="y", color="0.9")
    if len(by_split) > 1:
        figure.axes[0].legend(frameon=False, fontsize="small")
    if first.reference is not None:
        figure.suptitle(f"reference: {first.reference}", fontsize="small", color="0.4")
    return figure


_PANELS = (
    ("metrics", "accuracy", "accuracy"),
    ("metrics", "rmse", "RMSE"),
    ("metrics", "nll", "NLL"),
    ("metrics", "ece", "ECE"),
    ("differences", "elpd", "elpd less the reference's"),
    ("agreement", "total_variation", "total variation"),
    ("agreement", "mean_difference", "difference of means"),
    ("distances", "sliced_wasserstein", "sliced Wasserstein"),
)
_FLOORS = {"agreement": "noise_floor", "distances": "distance_floor"}


def _has(comparison: Findings, rows: str, field: str) -> bool:
    return any(getattr(row, field) is not None for row in getattr(comparison, rows).values())


def _wilson(shares: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Lower and upper ends (2, b) of 95 % intervals of shares of so many."""
    centre = shares + _Z**2 / (2 * counts)
    spread = _Z * np.sqrt(shares * (1 - shares) / counts + _Z**2 / (4 * counts**2))
    return np.stack([centre - spread, centre + spread]) / (1 + _Z**2 / counts)
