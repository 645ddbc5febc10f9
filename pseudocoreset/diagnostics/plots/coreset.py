"""The coreset beside real data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pseudocoreset.arguments import checked
from pseudocoreset.diagnostics.plots.figures import MAX_POINTS, new_figure
from pseudocoreset.rows import spread_indices
from pseudocoreset.validation import check_integer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pseudocoreset.coreset import Pseudocoreset
    from pseudocoreset.data import Dataset, Split

__all__ = ["plot_coreset"]

LONGEST_NAME = 24  # of a class, in letters


@checked
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
    check_integer(max_per_class, "max_per_class")
    check_integer(max_classes, "max_classes")
    split = getattr(data, "train", data)
    shape = coreset.packed.shape[1:]
    is_image = len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 3))
    return _image_grid(coreset, split, max_per_class, max_classes) if is_image else _point_cloud(coreset, split)


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
    known = coreset.class_names if is_class else None
    names = [str(row) if known is None else _short(known[row]) for row in rows]
    # Names stand on the left of images, which are left too little room unless the figure is wider by the longest.
    left = 1.2 + 0.09 * max(map(len, names))
    figure = new_figure(max(4.0, 0.75 * (num_left + count + gap) + left), 0.75 * len(rows) + 0.8)
    grid = figure.add_gridspec(
        len(rows),
        num_left + count + bool(real),
        width_ratios=[1] * num_left + [gap] * bool(real) + [1] * count,
    )
    for i in range(len(rows)):
        shown = [*((j, image) for j, image in enumerate(real[i] if real else []))]
        shown += [(num_left + bool(real) + j, synthetic[k]) for j, k in enumerate(groups[i][:count])]
        for column, image in shown:
            axes = figure.add_subplot(grid[i, column])
            axes.imshow(np.clip((image - low) / (high - low), 0, 1), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            if column == 0 and is_class:
                axes.set_ylabel(names[i], rotation=0, horizontalalignment="right", verticalalignment="center")
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


def _short(name: str) -> str:
    """The first of the synonyms that the name of a class may list, cut where it is long."""
    first = name.split(",")[0]
    return first if len(first) <= LONGEST_NAME else f"{first[: LONGEST_NAME - 1]}…"


def _point_cloud(coreset: Pseudocoreset, split: Any) -> Figure:
    from matplotlib.colors import Normalize

    figure = new_figure(5.0, 4.2)
    axes = figure.subplots()
    inputs = np.asarray(coreset.packed, np.float64).reshape(coreset.size, -1)
    targets = _classes(np.asarray(coreset.targets))
    is_line = inputs.shape[1] == 1
    everything = targets
    if split is not None:
        index = spread_indices(split.num_data, MAX_POINTS)
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
