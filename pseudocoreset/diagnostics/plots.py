"""Pictures: the coreset beside real data, calibration, agreement of posteriors, chains, the course of a fit.

Figures are made without pyplot, so they open no window and need no closing; show one by returning it from a
notebook cell or ``figure.savefig(path)``. The two plots of chains come from arviz-plots.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from pseudocoreset.diagnostics.agreement import UNIFORM, Comparison
from pseudocoreset.diagnostics.blocks import bound, held_out
from pseudocoreset.diagnostics.convergence import predicted_quantities, spread_indices
from pseudocoreset.diagnostics.metrics import reliability

if TYPE_CHECKING:
    from arviz_plots import PlotCollection
    from matplotlib.figure import Figure

    from pseudocoreset.coreset import Pseudocoreset
    from pseudocoreset.data import Dataset, Split
    from pseudocoreset.inference import Posterior
    from pseudocoreset.models import Model

__all__ = ["plot_agreement", "plot_coreset", "plot_history", "plot_rank", "plot_reliability", "plot_trace"]

_MAX_POINTS = 2000


def plot_coreset(
    coreset: Pseudocoreset,
    data: Dataset | Split | None = None,
    *,
    max_per_class: int = 10,
    max_classes: int = 20,
) -> Figure:
    """The synthetic points, beside real ones of the same class where ``data`` is given.

    Images are shown as they were stored (normalisation and whitening undone), one row a class; what lies
    outside the range of an image is clipped, and the title says how much that is. Other inputs are drawn by
    their first two features, or, with a single feature, against their target.

    Args:
        coreset: The coreset.
        data: The data that it stands for; a ``Dataset`` gives its train split.
        max_per_class: Images of a class shown, on either side.
        max_classes: Rows shown.

    Returns:
        A matplotlib ``Figure``.
    """
    split = getattr(data, "train", data)
    shape = coreset.inputs.shape[1:]
    is_image = len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 3))
    return _image_grid(coreset, split, max_per_class, max_classes) if is_image else _point_cloud(coreset, split)


def plot_reliability(
    comparison_or_probabilities: Comparison | ArrayLike, y: ArrayLike | None = None, *, num_bins: int = 15
) -> Figure:
    """Accuracy against confidence by bin, and how many examples each bin holds; calibrated is the diagonal.

    Args:
        comparison_or_probabilities: A ``Comparison``, or probabilities ``(n, C)``.
        y: ``(n,)`` labels, with probabilities.
        num_bins: Equal-width bins of confidence.

    Returns:
        A matplotlib ``Figure``.

    Raises:
        ValueError: A regression, or probabilities without labels.
    """
    if isinstance(comparison_or_probabilities, Comparison):
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
    figure = _figure(4.8, 5.0)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    for name, (probabilities, labels) in curves.items():
        counts, accuracies, confidences = reliability(probabilities, labels, num_bins=num_bins)
        held = counts > 0
        upper.plot(confidences[held], accuracies[held], marker="o", markersize=4, label=name, clip_on=False)
        lower.stairs(counts, np.linspace(0, 1, num_bins + 1))
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    lower.set(xlabel="confidence (largest probability)", ylabel="examples")
    if any(curves):
        upper.legend(frameon=False)
    return figure


def plot_agreement(comparison: Comparison) -> Figure:
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
    shown = spread_indices(comparison.num_data, _MAX_POINTS)
    figure = _figure(4.2 * len(names), 4.2)
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


def plot_trace(posterior: Posterior, model: Model, *, num_inputs: int = 4) -> PlotCollection:
    """Trace of predictions at the held-out inputs where they vary most over draws; see ``plot_rank``.

    Args:
        posterior: Draws evaluated on held-out inputs.
        model: The model that was sampled.
        num_inputs: Panels.

    Returns:
        An arviz-plots ``PlotCollection``.
    """
    import arviz_plots

    return arviz_plots.plot_trace(_prediction_tree(posterior, model, num_inputs), backend="matplotlib")


def plot_rank(posterior: Posterior, model: Model, *, num_inputs: int = 4) -> PlotCollection:
    """Rank plot of predictions at the held-out inputs where they vary most over draws.

    A chain that explores the same distribution as the others stays within the grey band.

    Args:
        posterior: Draws evaluated on held-out inputs.
        model: The model that was sampled.
        num_inputs: Panels.

    Returns:
        An arviz-plots ``PlotCollection``.
    """
    import arviz_plots

    return arviz_plots.plot_rank(_prediction_tree(posterior, model, num_inputs), backend="matplotlib")


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
    figure = _figure(3.6 * num_columns, 2.4 * num_rows)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes, (name, values) in zip(panels, series.items(), strict=False):
        steps = arrays.get("step")
        axes.plot(steps if steps is not None and steps.shape == values.shape else np.arange(values.size), values)
        axes.set(title=name, xlabel="step")
    for axes in panels[len(series) :]:
        axes.set_axis_off()
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _prediction_tree(posterior: Posterior, model: Model, num_inputs: int) -> Any:
    import arviz_base

    if num_inputs < 1:
        raise ValueError(f"num_inputs must be at least 1; got {num_inputs}")
    inputs, values = predicted_quantities(posterior, model)
    first = values[..., 0]
    chosen = np.sort(np.argsort(-first.var(axis=(0, 1)), kind="stable")[:num_inputs])
    name = "mean" if bound(model, held_out(posterior)).num_classes is None else "probability"
    return arviz_base.from_dict(
        {"posterior": {name: first[:, :, chosen]}},
        dims={name: ["input"]},
        coords={"input": inputs[chosen]},
        check_conventions=False,
    )


def _classes(targets: np.ndarray) -> np.ndarray:
    return targets.argmax(-1) if targets.ndim > 1 else targets


def _pictures(x: Any) -> np.ndarray:
    """``(n, height, width)`` or ``(n, height, width, 3)`` float images."""
    images = np.asarray(x, np.float64)
    return images[..., 0] if images.ndim == 4 and images.shape[-1] == 1 else images


def _image_grid(coreset: Pseudocoreset, split: Any, max_per_class: int, max_classes: int) -> Figure:
    labels = _classes(np.asarray(coreset.targets))
    is_class = labels.dtype.kind in "iub"
    all_rows = np.unique(labels) if is_class else np.array([0])
    rows = all_rows[:max_classes]
    groups = [np.flatnonzero(labels == row) if is_class else np.arange(len(labels)) for row in rows]
    count = min(max_per_class, max(len(group) for group in groups))
    synthetic = _pictures(coreset.preprocessing.invert(coreset.inputs))
    low, high = 0.0, 1.0
    real: list[np.ndarray] = []
    if split is not None:
        y = np.asarray(split.y)
        picked = [np.flatnonzero(y == row)[:count] if is_class else np.arange(min(count, len(y))) for row in rows]
        real = [_pictures(np.asarray(split.raw[index], np.float64) * split.preprocessing.scale) for index in picked]
        low = min(low, *(float(part.min()) for part in real if part.size), 0.0)
        high = max(high, *(float(part.max()) for part in real if part.size), 1.0)
    clipped = float(((synthetic < low) | (synthetic > high)).mean())

    gap = 0.5 if real else 0.0
    num_left = count if real else 0
    figure = _figure(max(4.0, 0.75 * (num_left + count + gap) + 1.2), 0.75 * len(rows) + 0.8)
    grid = figure.add_gridspec(
        len(rows),
        num_left + count + bool(real),
        width_ratios=[1] * num_left + [gap] * bool(real) + [1] * count,
    )
    for i, row in enumerate(rows):
        name = coreset.class_names[row] if is_class and coreset.class_names is not None else str(row)
        shown = [*((j, image) for j, image in enumerate(real[i] if real else []))]
        shown += [(num_left + bool(real) + j, synthetic[k]) for j, k in enumerate(groups[i][:count])]
        for column, image in shown:
            axes = figure.add_subplot(grid[i, column])
            axes.imshow(np.clip((image - low) / (high - low), 0, 1), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            if column == 0 and is_class:
                axes.set_ylabel(name, rotation=0, horizontalalignment="right", verticalalignment="center")
            if i == 0 and column in (0, num_left + bool(real)):
                kind = "real" if real and column == 0 else "synthetic"
                axes.set_title(kind, loc="left", fontsize="medium")
    notes = [f"{clipped:.1%} of synthetic values clipped for display"]
    if len(rows) < len(all_rows):
        notes.append(f"{len(rows)} of {len(all_rows)} classes")
    if count < max(len(group) for group in groups):
        notes.append(f"{count} of up to {max(len(group) for group in groups)} points a class")
    figure.suptitle("; ".join(notes), fontsize="small", color="0.4")
    return figure


def _point_cloud(coreset: Pseudocoreset, split: Any) -> Figure:
    from matplotlib.colors import Normalize

    figure = _figure(5.0, 4.2)
    axes = figure.subplots()
    inputs = np.asarray(coreset.inputs, np.float64).reshape(len(coreset.inputs), -1)
    targets = _classes(np.asarray(coreset.targets))
    is_line = inputs.shape[1] == 1
    everything = targets
    if split is not None:
        index = spread_indices(split.num_data, _MAX_POINTS)
        real = np.asarray(split.preprocessing.apply(split.raw[index]), np.float64).reshape(len(index), -1)
        y = np.asarray(split.y)[index]
        everything = np.concatenate([targets, y])
    limits = Normalize(float(everything.min()), float(everything.max()))
    if split is not None:
        axes.scatter(real[:, 0], y if is_line else real[:, 1], c=y, s=6, alpha=0.3, linewidths=0, norm=limits)
    weights = np.asarray(coreset.weights, np.float64)
    axes.scatter(
        inputs[:, 0],
        targets if is_line else inputs[:, 1],
        c=targets,
        s=20 + 80 * weights / weights.max(),
        edgecolors="black",
        norm=limits,
    )
    axes.set(
        xlabel="feature 0",
        ylabel="target" if is_line else "feature 1",
        title="outlined: the coreset, area by weight",
    )
    return figure
