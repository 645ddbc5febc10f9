"""Subsets of the real data chosen at random or by features: baselines that a pseudocoreset has to beat."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.arguments import checked
from pseudocoreset.batching import full_precision
from pseudocoreset.coreset import Pseudocoreset, class_weights
from pseudocoreset.data import Dataset
from pseudocoreset.fitting import FitResult
from pseudocoreset.methods.choosing import beside_random, finish, mass_of, quota_of, subset_of
from pseudocoreset.methods.scales import column_scales, is_table
from pseudocoreset.models import Model
from pseudocoreset.progress import progress_bar
from pseudocoreset.validation import check_key

__all__ = ["fit_herding", "fit_k_centres", "fit_random"]

Models = Model | Sequence[Model]
# None for the inputs themselves, (inputs (b, *feature_shape)) -> (b, d), or (n, d) for the training data in order.
Features = Callable[[jax.Array], Any] | np.ndarray | jax.Array | None
CHUNK = 4096  # data whose features are computed together
PRODUCTS_UP_TO = 20  # columns and targets of a table, all of whose products herding matches the means of


@checked
def fit_random(
    model: Models,
    data: Dataset,
    *,
    images_per_class: int | None = None,
    size: int | None = None,
    key: jax.Array,
    weights: str | None = None,
    progress: bool = True,
) -> FitResult:
    """Data chosen at random, without replacement: what ``Pseudocoreset.from_data`` chooses with the same key.

    Args:
        model: a model, or several; says only what ``weights`` are by default.
        data: the data set.
        images_per_class: points of each class.
        size: number of points in all, chosen uniformly; give this or ``images_per_class``.
        key: one typed key.
        weights: ``"data"`` (n / m each) or ``"ones"``; None takes ones for networks and n / m elsewhere.
        progress: unused, there is nothing to wait for.

    Returns:
        ``FitResult`` with an empty history.

    Raises:
        ValueError: for arguments out of range or that do not go together.
    """
    del progress
    check_key(key)
    began = time.perf_counter()
    mass = mass_of(model, data, weights)
    chosen = Pseudocoreset.from_data(data, images_per_class=images_per_class, size=size, key=key, mass=mass)
    result = finish(chosen, "random", data, images_per_class, key, {"mass": mass}, {}, began)
    if weights is not None:
        return result
    return beside_random(result, model, data, images_per_class, size, key, mass)


@checked
@full_precision()
def fit_herding(
    model: Models,
    data: Dataset,
    *,
    images_per_class: int | None = None,
    size: int | None = None,
    key: jax.Array,
    weights: str | None = None,
    features: Features = None,
    progress: bool = True,
) -> FitResult:
    """Herding (Welling 2009), in the form of the distillation papers: data whose mean feature is that of all.

    One after the other, without replacement, in each class on its own or in the whole,

        x_t = argmin_x | mu - (phi(x) + sum_{s<t} phi(x_s)) / t |,    mu the mean of phi.

    Args:
        model: a model, or several; says only what ``weights`` are by default.
        data: the data set.
        images_per_class: points of each class, which match the mean of their class.
        size: number of points in all, which match the overall mean; give this or ``images_per_class``.
        key: one typed key, of the random points that the choice is held against; nothing else here is random.
        weights: ``"data"`` (n / m each) or ``"ones"``; None takes ones for networks, and n / m elsewhere, where a
            warning says if the random points are nearer to the posterior of all data.
        features: phi: None for the flattened model inputs, of tables for columns and targets in standard units and the
            products of any two (beyond 20 columns their squares): data that match the means of columns alone are all
            near the mean, and say next to nothing. Or a function of inputs (b, *feature_shape) that returns (b, d),
            row by row, or an array (n, d) for the training data in their order.
        progress: show a progress bar.

    Returns:
        ``FitResult``; its history has ``distance_to_mean``, one value a point.

    Raises:
        ValueError: for arguments out of range or that do not go together, or features of another shape.
    """
    has_moments = features is None and is_table(data)
    return _by_features(
        "herding", _herd, "distance_to_mean", model, data, images_per_class, size, key, weights,
        _moments(data) if has_moments else features, "moments" if has_moments else _kind(features), progress,
    )  # fmt: skip


@checked
@full_precision()
def fit_k_centres(
    model: Models,
    data: Dataset,
    *,
    images_per_class: int | None = None,
    size: int | None = None,
    key: jax.Array,
    weights: str | None = None,
    features: Features = None,
    progress: bool = True,
) -> FitResult:
    """Greedy k-centres (Sener and Savarese 2018): the next point is the datum farthest from all that are chosen.

    The first is the datum nearest the mean. The radius, the largest distance of a datum to its nearest centre, is at
    most twice the smallest that there is with as many centres (Gonzalez 1985).

    Args:
        model: a model, or several; says only what ``weights`` are by default.
        data: the data set.
        images_per_class: points of each class, which cover their class.
        size: number of points in all, which cover all data; give this or ``images_per_class``.
        key: one typed key, of the random points that the choice is held against; nothing else here is random.
        weights: ``"data"`` (n / m each) or ``"ones"``; None takes ones for networks, and n / m elsewhere, where a
            warning says if the random points are nearer to the posterior of all data.
        features: where distances are taken: None for the flattened model inputs (tables: columns over their standard
            deviation), a function of inputs (b, *feature_shape) that returns (b, d), row by row, or an array (n, d) for
            the training data in order.
        progress: show a progress bar.

    Returns:
        ``FitResult``; its history has ``radius``, one value a point.

    Raises:
        ValueError: for arguments out of range or that do not go together, or features of another shape.
    """
    return _by_features(
        "k_centres", _farthest_first, "radius", model, data, images_per_class, size, key, weights,
        features, _kind(features), progress,
    )  # fmt: skip


def _kind(features: Features) -> str:
    """What the record of a fit says of its features."""
    return "inputs" if features is None else "function" if callable(features) else "array"


def _by_features(
    name: str,
    choose: Callable[[jax.Array, int], tuple[jax.Array, jax.Array]],
    measure: str,
    model: Models,
    data: Dataset,
    images_per_class: int | None,
    size: int | None,
    key: jax.Array,
    weights: str | None,
    features: Features,
    kind: str,
    progress: bool,
) -> FitResult:
    check_key(key)
    mass = mass_of(model, data, weights)
    groups, quota = quota_of(data, images_per_class, size)
    if features is not None and not callable(features):
        features = _checked_features(features, data.train.num_data)
    began = time.perf_counter()
    indices, measures = [], []
    parts = int(groups.max()) + 1
    with progress_bar("choosing the subset", parts, enabled=progress) as advance:
        for group in range(parts):
            members = np.flatnonzero(groups == group)
            picks, values = choose(jnp.asarray(_features(data, features, members)), quota)
            indices.append(members[np.asarray(picks)])
            measures.append(np.asarray(values))
            advance(1)
    chosen = np.concatenate(indices)
    points = np.ones(parts * quota, np.float32) if images_per_class is None else class_weights(data, chosen)
    coreset = subset_of(data, chosen, points).with_mass(mass)
    settings = {"mass": mass, "features": kind}
    result = finish(coreset, name, data, images_per_class, key, settings, {measure: np.concatenate(measures)}, began)
    return result if weights is not None else beside_random(result, model, data, images_per_class, size, key, mass)


def _checked_features(features: Any, rows: int) -> np.ndarray:
    array = np.asarray(features)
    if array.ndim != 2 or len(array) != rows:
        raise ValueError(f"features must have shape ({rows}, d), one row a datum; got {array.shape}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"features has {int(np.sum(~np.isfinite(array)))} values that are not finite")
    return array


def _features(data: Dataset, features: Features, members: np.ndarray) -> np.ndarray:
    """(len(members), d), of these data alone: those of a large data set need not fit in memory together."""
    if features is not None and not callable(features):
        return np.asarray(features)[members]
    chunks = []
    scales = column_scales(data) if features is None and is_table(data) else None
    for start in range(0, len(members), CHUNK):
        x = data.preprocessing.apply(data.train.raw[members[start : start + CHUNK]])
        if scales is not None:
            x = x / np.where(scales > 0, scales, 1.0)  # no column counts for more because of its unit
        chunks.append(_checked_features(x.reshape(len(x), -1) if features is None else features(x), len(x)))
    return np.concatenate(chunks)


def _moments(data: Dataset) -> np.ndarray:
    """Columns and targets of a table in standard units, and the products of any two, (n, d); beyond 20 the squares."""
    y = np.asarray(data.train.y)
    targets = y.reshape(len(y), -1) if data.num_classes is None or y.ndim > 1 else np.eye(data.num_classes)[y][:, 1:]
    columns = np.concatenate([data.train.packed, targets], axis=1, dtype=np.float64)
    deviations = np.std(columns, axis=0)
    columns = (columns - np.mean(columns, axis=0)) / np.where(deviations > 0, deviations, 1.0)
    first, second = np.triu_indices(columns.shape[1])
    if columns.shape[1] > PRODUCTS_UP_TO:
        first = second = np.arange(columns.shape[1])
    return np.concatenate([columns, columns[:, first] * columns[:, second]], axis=1).astype(np.float32)


@functools.partial(jax.jit, static_argnums=1)
def _herd(features: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Indices (count,) in the order of choice, and the distance of their mean to that of all after each."""
    centred = features - jnp.mean(features, axis=0)  # so that the means to match are zero, and sums stay small

    def pick(carry: tuple[jax.Array, jax.Array], number: jax.Array) -> Any:
        total, free = carry
        distances = jnp.sum((total + centred) ** 2, axis=1)
        best = jnp.argmin(jnp.where(free, distances, jnp.inf))
        return (total + centred[best], free.at[best].set(False)), (best, jnp.sqrt(distances[best]) / number)

    begin = (jnp.zeros_like(centred[0]), jnp.ones(len(centred), bool))
    return jax.lax.scan(pick, begin, jnp.arange(1, count + 1))[1]


@functools.partial(jax.jit, static_argnums=1)
def _farthest_first(features: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Indices (count,) in the order of choice, and the radius after each."""

    def pick(carry: tuple[jax.Array, jax.Array], _: None) -> Any:
        centre, nearest = carry
        nearest = jnp.minimum(nearest, jnp.sum((features - features[centre]) ** 2, axis=1))
        nearest = nearest.at[centre].set(-1.0)  # below that of a copy of it, which may be chosen, once each
        following = jnp.argmax(nearest)
        return (following, nearest), (centre, jnp.sqrt(jnp.maximum(nearest[following], 0.0)))

    first = jnp.argmin(jnp.sum((features - jnp.mean(features, axis=0)) ** 2, axis=1))
    begin = (first, jnp.full(len(features), jnp.inf, features.dtype))
    return jax.lax.scan(pick, begin, None, length=count)[1]
