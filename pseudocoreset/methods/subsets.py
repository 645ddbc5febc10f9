"""Coresets that are subsets of the real data: the baselines that a pseudocoreset has to beat.

``fit_random``, ``fit_herding`` and ``fit_k_centres`` look at the data alone, ``fit_sparse_vi`` and ``fit_giga`` at
the log-likelihoods under a model and weigh the points that they choose.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.batching import map_stack
from pseudocoreset.coreset import MASSES, Pseudocoreset
from pseudocoreset.data import Dataset
from pseudocoreset.device import DeviceData
from pseudocoreset.experts import fingerprint
from pseudocoreset.fitting import FitResult, Outcome
from pseudocoreset.models import Gaussian, Model
from pseudocoreset.objectives import CoresetArrays, InnerTraining
from pseudocoreset.objectives.posteriors import Posteriors, bind_posteriors
from pseudocoreset.progress import progress_bar
from pseudocoreset.proxies.laplace import DENSE_LIMIT
from pseudocoreset.validation import check_choice, check_integer, check_key, check_positive

__all__ = ["fit_giga", "fit_herding", "fit_k_centres", "fit_random", "fit_sparse_vi"]

logger = logging.getLogger(__name__)
Models = Model | Sequence[Model]
# None for the inputs themselves, (inputs (b, *feature_shape)) -> (b, d), or (n, d) for the training data in order.
Features = Callable[[jax.Array], Any] | np.ndarray | jax.Array | None
CHUNK = 4096  # data whose features or log-likelihoods are computed together
SMALLEST_SINE = 1e-3  # of the angle to the coreset, below which a direction in float32 is noise


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
    mass = _mass(model, weights)
    chosen = Pseudocoreset.from_data(data, images_per_class=images_per_class, size=size, key=key, mass=mass)
    return _result(chosen, "random", data, images_per_class, key, {"mass": mass}, {}, began)


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
        key: one typed key; unused, nothing here is random.
        weights: ``"data"`` (n / m each) or ``"ones"``; None takes ones for networks and n / m elsewhere.
        features: phi: None for the flattened model inputs, a function of inputs (b, *feature_shape) that returns
            (b, d), row by row, or an array (n, d) for the training data in their order.
        progress: show a progress bar.

    Returns:
        ``FitResult``; its history has ``distance_to_mean``, one value a point.

    Raises:
        ValueError: for arguments out of range or that do not go together, or features of another shape.
    """
    return _by_features(
        "herding", _herd, "distance_to_mean", model, data, images_per_class, size, key, weights, features, progress
    )


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
        key: one typed key; unused, nothing here is random.
        weights: ``"data"`` (n / m each) or ``"ones"``; None takes ones for networks and n / m elsewhere.
        features: where distances are taken: None for the flattened model inputs, a function of inputs
            (b, *feature_shape) that returns (b, d), row by row, or an array (n, d) for the training data in order.
        progress: show a progress bar.

    Returns:
        ``FitResult``; its history has ``radius``, one value a point.

    Raises:
        ValueError: for arguments out of range or that do not go together, or features of another shape.
    """
    return _by_features(
        "k_centres", _farthest_first, "radius", model, data, images_per_class, size, key, weights, features, progress
    )


def fit_sparse_vi(
    model: Model,
    data: Dataset,
    *,
    images_per_class: int | None = None,
    size: int | None = None,
    key: jax.Array,
    proxy: str | None = None,
    num_draws: int = 100,
    num_candidates: int = 1000,
    num_weight_steps: int = 500,
    batch_size: int | None = 256,
    step_size: float = 0.5,
    progress: bool = True,
) -> FitResult:
    """SparseVI (Campbell and Beronov 2019): a weighted subset under the reverse KL divergence, one point at a time.

    With g_i the log-likelihood of datum i, centred over S draws of the posterior of the coreset so far, and the
    residual r = sum_i g_i - sum_j w_j g_j, a step takes in the datum of the largest correlation of g_i with r, or none
    if that of a point it has is larger (by size: a weight can shrink), and then does ``num_weight_steps`` of

        w <- max(0, w + gamma_i a q),    q_j = <g_j, r> / |g_j|^2,    gamma_i = step_size / (1 + i),

    draws and batch new each time. <g_j, r> / S is minus the gradient of the divergence; its unit is that of the data,
    so the paper leaves the scale to the user. Here a = <q, (<g_j, r>)_j> / |sum_j q_j g_j|^2, the best step along q to
    second order, and a weight moves by n / m times gamma_i at most, which keeps weights from running off where few
    draws see a datum vary.

    Args:
        model: one model, with a conjugate posterior or of at most 2,000 parameters.
        data: the data set.
        images_per_class: at most so many points of each class.
        size: at most so many points in all; give this or ``images_per_class``.
        key: one typed key.
        proxy: the posterior that draws come from: ``"conjugate"``, ``"laplace"``, or None for what there is.
        num_draws: S.
        num_candidates: random data among which the next point is chosen, and the residual then estimated from.
        num_weight_steps: updates of the weights after each choice.
        batch_size: data that the residual is estimated from at each of them; None for all.
        step_size: of the first of them, in units of the best step.
        progress: show a progress bar.

    Returns:
        ``FitResult`` with the points whose weight is positive, at most as many as asked for. Its history has, one
        value a choice, ``correlation``, and ``residual`` (standard deviation of r) and ``mass`` after it.

    Raises:
        TypeError: if ``model`` is not one model.
        ValueError: for arguments out of range, or a model without such a posterior.
    """
    bound = _one_model(model, data)
    check_key(key)
    check_integer(num_draws, "num_draws", minimum=2)
    check_positive(step_size, "step_size")
    check_integer(num_candidates, "num_candidates")
    check_integer(num_weight_steps, "num_weight_steps")
    batch_size = data.train.num_data if batch_size is None else check_integer(batch_size, "batch_size")
    groups, quota = _quota(data, images_per_class, size)
    capacity = quota * (int(groups.max()) + 1)
    posteriors = _gaussian_posteriors(bound, proxy, "proxy")
    began = time.perf_counter()
    device = DeviceData.from_dataset(data)
    state = _begin(posteriors, device, capacity, jax.random.fold_in(key, capacity))
    add = _compile_addition(
        bound, posteriors, quota, num_draws, num_candidates, num_weight_steps, batch_size, step_size
    )
    reports = []
    with progress_bar("choosing the subset", capacity, enabled=progress) as advance:
        for step in range(capacity):
            state, report = add(jax.random.fold_in(key, step), state, device, jnp.asarray(groups))
            reports.append({name: np.asarray(value) for name, value in report.items()})
            advance(1, f"residual {reports[-1]['residual']:.3g}")
    history = {name: np.stack([report[name] for report in reports]) for name in reports[0]}
    skipped = int(np.sum(history.pop("skipped")))
    if skipped:
        logger.warning(
            "%d of %d steps of the weights were not finite and skipped", skipped, capacity * num_weight_steps
        )
    settings = {
        **posteriors.settings,
        "num_draws": num_draws,
        "num_candidates": num_candidates,
        "num_weight_steps": num_weight_steps,
        "batch_size": batch_size,
        "step_size": step_size,
    }
    keep = np.asarray(state.coreset.weights) > 0
    coreset = _subset(data, np.asarray(state.indices)[keep], np.asarray(state.coreset.weights)[keep])
    return _result(coreset, "sparse_vi", data, images_per_class, key, settings, history, began)


def fit_giga(
    model: Model,
    data: Dataset,
    *,
    images_per_class: int | None = None,
    size: int | None = None,
    key: jax.Array,
    posterior: Gaussian | str | None = None,
    num_draws: int = 100,
    progress: bool = True,
) -> FitResult:
    """Hilbert coreset by greedy iterative geodesic ascent (Campbell and Broderick 2018).

    The log-likelihoods of datum i at S draws of a Gaussian, centred, are a vector L_i: a random projection of the
    log-likelihood function. On the unit sphere the coreset starts at the datum nearest the direction of
    L = sum_i L_i, and each step goes along the geodesic to the datum that leads there most directly, to the nearest
    point on it; at the end the weights are scaled to the smallest |sum_j w_j L_j - L|.

    Args:
        model: one model.
        data: the data set.
        images_per_class: at most so many points of each class.
        size: at most so many points in all, the number of steps; give this or ``images_per_class``.
        key: one typed key.
        posterior: where the draws come from: a ``Gaussian`` over ``model.flatten`` of the parameters, or that of the
            full data, ``"conjugate"``, ``"laplace"`` or None for what there is (the optimally tuned projector).
        num_draws: S, the dimension of the projection.
        progress: unused, there is one compiled call.

    Returns:
        ``FitResult`` with the points whose weight is positive, at most as many as asked for. Its history has
        ``error``, |sum_j w_j L_j - L| / |L| after each step.

    Raises:
        TypeError: if ``model`` is not one model.
        ValueError: for arguments out of range, or a model without such a posterior.
    """
    del progress
    bound = _one_model(model, data)
    check_key(key)
    check_integer(num_draws, "num_draws", minimum=2)
    groups, quota = _quota(data, images_per_class, size)
    began = time.perf_counter()
    device = DeviceData.from_dataset(data)
    init_key, draw_key = jax.random.split(key)
    if isinstance(posterior, Gaussian):
        if posterior.mean.shape != (bound.num_params,):
            raise ValueError(
                f"posterior must be a Gaussian over the {bound.num_params} parameters of {bound.name!r}; got a mean of "
                f"shape {posterior.mean.shape}"
            )
        gaussian, settings = posterior, {"proxy": "given"}
    else:
        posteriors = _gaussian_posteriors(bound, posterior, "posterior")
        gaussian = _begin(posteriors, device, 1, init_key).posterior[0]
        settings = posteriors.settings
    vectors = _project(bound, jax.vmap(gaussian.sample)(jax.random.split(draw_key, num_draws)), device)
    steps = quota * (int(groups.max()) + 1)
    total = float(jnp.linalg.norm(jnp.sum(vectors, axis=0)))
    if not 0 < total < math.inf:
        raise ValueError(f"posterior: the log-likelihood of the data must vary over its draws; its norm is {total}")
    found, errors = _geodesic_ascent(vectors, jnp.asarray(groups), quota, steps)
    weights = np.asarray(found)
    indices = np.flatnonzero(weights > 0)
    coreset = _subset(data, indices, weights[indices])
    settings = {**settings, "num_draws": num_draws}
    history = {"error": np.asarray(errors)}
    return _result(coreset, "giga", data, images_per_class, key, settings, history, began)


def _mass(model: Models, weights: str | None) -> str:
    """``weights``, or what suits the models."""
    models = (model,) if isinstance(model, Model) else tuple(model)
    if not models or not all(isinstance(m, Model) for m in models):
        raise TypeError(f"model must be a Model or a sequence of them; got {model!r}")
    if weights is None:
        return "ones" if all(m.is_network for m in models) else "data"
    return check_choice(weights, "weights", MASSES)


def _one_model(model: Model, data: Dataset) -> Model:
    if not isinstance(model, Model):
        raise TypeError(f"model must be one Model, whose log-likelihoods choose the points; got {model!r}")
    return model.bind(data.train.raw, data.train.y)


def _gaussian_posteriors(model: Model, proxy: str | None, argument: str) -> Posteriors:
    if proxy is not None:
        check_choice(proxy, argument, ("conjugate", "laplace"))
    posteriors = bind_posteriors(model, proxy, InnerTraining(), wants_data=False)
    if posteriors.gaussians is None:
        raise ValueError(
            f"{argument} must be a conjugate posterior or a dense Laplace approximation, for models of at most "
            f"{DENSE_LIMIT} parameters; {model.name!r} has {model.num_params}, and networks have none unless asked for"
        )
    return posteriors


def _quota(data: Dataset, images_per_class: int | None, size: int | None) -> tuple[np.ndarray, int]:
    """Group (n,) of every datum, its class or 0, and how many points there may be of each."""
    if (images_per_class is None) == (size is None):
        raise ValueError(f"give one of images_per_class and size; got {images_per_class} and {size}")
    if size is not None:
        if check_integer(size, "size") > data.train.num_data:
            raise ValueError(f"size={size} is more than the {data.train.num_data} training data")
        return np.zeros(data.train.num_data, np.int32), size
    count = check_integer(images_per_class, "images_per_class")
    if data.num_classes is None:
        raise ValueError("images_per_class needs classes; these targets are real numbers, give size instead")
    members = np.bincount(data.train.y, minlength=data.num_classes)
    if members.min() < count:
        label = int(members.argmin())
        raise ValueError(f"images_per_class={count}, but class {label} has {members[label]} training data")
    return data.train.y, count


def _subset(data: Dataset, indices: np.ndarray, weights: np.ndarray) -> Pseudocoreset:
    return Pseudocoreset(
        inputs=np.asarray(data.preprocessing.apply(data.train.raw[indices]), np.float32),
        targets=np.asarray(data.train.y[indices]),
        weights=np.asarray(weights, np.float32),
        preprocessing=data.preprocessing,
        num_data=data.train.num_data,
        class_names=data.class_names,
        metadata={"indices": indices.tolist()},
    )


def _result(
    coreset: Pseudocoreset,
    name: str,
    data: Dataset,
    images_per_class: int | None,
    key: jax.Array,
    settings: dict[str, Any],
    history: dict[str, np.ndarray],
    began: float,
) -> FitResult:
    record = {
        "objective": name,
        "settings": settings,
        "data": data.name,
        "data_fingerprint": fingerprint(data),
        "images_per_class": images_per_class,
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "outcome": Outcome.COMPLETED.name,
        "versions": {library: importlib.metadata.version(library) for library in ("jax", "numpyro")},
    }
    coreset = replace(coreset, metadata=coreset.metadata | record)
    return FitResult(coreset, history, Outcome.COMPLETED, None, time.perf_counter() - began)


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
    progress: bool,
) -> FitResult:
    check_key(key)
    mass = _mass(model, weights)
    groups, quota = _quota(data, images_per_class, size)
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
    coreset = _subset(data, np.concatenate(indices), np.ones(parts * quota, np.float32)).with_mass(mass)
    kind = "inputs" if features is None else "function" if callable(features) else "array"
    settings = {"mass": mass, "features": kind}
    return _result(coreset, name, data, images_per_class, key, settings, {measure: np.concatenate(measures)}, began)


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
    for start in range(0, len(members), CHUNK):
        x = data.preprocessing.apply(data.train.raw[members[start : start + CHUNK]])
        chunks.append(_checked_features(x.reshape(len(x), -1) if features is None else features(x), len(x)))
    return np.concatenate(chunks)


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


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """A quotient that is zero where the denominator is not positive."""
    return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1.0), 0.0)


@functools.partial(jax.jit, static_argnums=0)
def _project(model: Model, draws: jax.Array, data: DeviceData) -> jax.Array:
    """L (n, S): log-likelihoods at draws (S, p), centred over them, over sqrt(S)."""
    size = min(CHUNK, data.num_data)

    def of_chunk(start: jax.Array) -> jax.Array:
        x, y = data.batch(jnp.minimum(start + jnp.arange(size), data.num_data - 1))
        return map_stack(lambda draw: model.log_likelihood(model.unflatten(draw), x, y), draws).T

    starts = jnp.arange(math.ceil(data.num_data / size)) * size
    rows = jax.lax.map(of_chunk, starts).reshape(-1, len(draws))[: data.num_data]
    return (rows - jnp.mean(rows, axis=1, keepdims=True)) / jnp.sqrt(jnp.asarray(len(draws), rows.dtype))


class _Ascent(NamedTuple):
    weights: jax.Array  # (n,), of the unit vectors
    direction: jax.Array  # (S,), their weighted sum: a unit vector, zero at the start
    error: jax.Array  # distance of the target to the line along ``direction``


@functools.partial(jax.jit, static_argnums=(2, 3))
def _geodesic_ascent(vectors: jax.Array, groups: jax.Array, quota: int, steps: int) -> tuple[jax.Array, jax.Array]:
    """Weights (n,) and the relative error after each step, with at most ``quota`` points of each group (n,)."""
    total = jnp.sum(vectors, axis=0)
    target = total / jnp.linalg.norm(total)
    norms = jnp.linalg.norm(vectors, axis=1)
    units = _ratio(vectors, norms[:, None])

    def off(vector: jax.Array, direction: jax.Array) -> jax.Array:
        """The part of a vector at right angles to a unit vector; as a difference of vectors, which keeps digits."""
        return vector - (vector @ direction) * direction

    def step(state: _Ascent, _: None) -> tuple[_Ascent, jax.Array]:
        tangent = off(target, state.direction)
        cosines = units @ state.direction
        sines = jnp.sqrt(jnp.maximum(1.0 - cosines**2, 0.0))
        taken = state.weights > 0
        full = jnp.zeros(len(groups), jnp.int32).at[groups].add(taken) >= quota
        usable = (norms > 0) & (sines > SMALLEST_SINE) & (taken | ~full[groups])
        best = jnp.argmax(jnp.where(usable, (units @ tangent) / jnp.maximum(sines, SMALLEST_SINE), -jnp.inf))
        towards = tangent @ units[best]
        back = off(target, units[best]) @ state.direction
        share = towards / (towards + back)
        moved = (1.0 - share) * state.direction + share * units[best]
        length = jnp.linalg.norm(moved)
        weights = ((1.0 - share) * state.weights).at[best].add(share) / length
        error = jnp.linalg.norm(off(target, moved / length))
        # Where rounding is all that is left a step does harm.
        better = usable[best] & (towards > 0) & (back >= 0) & (error < state.error)
        proposal = _Ascent(weights, moved / length, error)
        state = jax.tree.map(lambda new, old: jnp.where(better, new, old), proposal, state)
        return state, state.error

    begin = _Ascent(jnp.zeros_like(norms), jnp.zeros_like(target), jnp.full_like(norms[0], jnp.inf))
    state, errors = jax.lax.scan(step, begin, None, length=steps)
    weights = _ratio(state.weights, norms)
    reached = weights @ vectors
    return weights * (reached @ total) / (reached @ reached), errors


class _State(NamedTuple):
    """SparseVI between two choices."""

    coreset: CoresetArrays  # ``capacity`` slots; those not filled have weight zero
    indices: jax.Array  # (capacity,), -1 in slots not filled
    posterior: Any


def _begin(posteriors: Posteriors, data: DeviceData, capacity: int, key: jax.Array) -> _State:
    # Slots not filled hold the first datum: a likelihood need not be finite at zeros.
    x, y = data.batch(jnp.zeros(capacity, jnp.int32))
    coreset = CoresetArrays(x, y, jnp.zeros(capacity, x.dtype))
    return _State(coreset, jnp.full(capacity, -1), posteriors.init(key, coreset, data))


def _compile_addition(
    model: Model,
    posteriors: Posteriors,
    quota: int,
    num_draws: int,
    num_candidates: int,
    num_weight_steps: int,
    batch_size: int,
    step_size: float,
) -> Callable[..., tuple[_State, dict[str, jax.Array]]]:
    """``(key, state, data, groups) -> (state, report)``: one choice and the weight steps after it."""

    def sample(key: jax.Array, size: int, data: DeviceData) -> jax.Array:
        n = data.num_data
        return jnp.arange(n) if size >= n else jax.random.randint(key, (size,), 0, n)

    def look(key: jax.Array, state: _State, data: DeviceData, size: int) -> Any:
        """Posterior state, indices (b,), their g (S, b), that of the coreset (S, m) and r (S,)."""
        draw_key, batch_key = jax.random.split(key)
        draws, _, posterior, _ = posteriors.draws(draw_key, state.posterior, state.coreset, data, (), num_draws)

        def centred(x: jax.Array, y: jax.Array) -> jax.Array:
            each = jax.vmap(lambda item: model.log_likelihood(draws.to_params(item), x, y))(draws.items)
            return each - jnp.mean(each, axis=0)

        indices = sample(batch_key, size, data)
        rows, own = centred(*data.batch(indices)), centred(state.coreset.inputs, state.coreset.targets)
        residual = (data.num_data / len(indices)) * jnp.sum(rows, axis=1) - own @ state.coreset.weights
        return posterior, indices, rows, own, residual

    def correlations(rows: jax.Array, residual: jax.Array) -> jax.Array:
        scale = jnp.linalg.norm(rows, axis=0) * jnp.linalg.norm(residual)
        return jnp.where(scale > 0, _ratio(residual @ rows, scale), -1.0)

    def choose(key: jax.Array, state: _State, data: DeviceData, groups: jax.Array) -> tuple[_State, jax.Array]:
        posterior, indices, rows, own, residual = look(key, state, data, num_candidates)
        filled, weights = state.indices >= 0, state.coreset.weights
        counts = jnp.zeros(len(groups), jnp.int32).at[groups[state.indices]].add(filled)
        new = (counts < quota)[groups[indices]] & ~jnp.any(indices[:, None] == state.indices, axis=1)
        of_new = jnp.where(new, correlations(rows, residual), -jnp.inf)
        of_own = correlations(own, residual)
        of_own = jnp.max(jnp.where(filled, jnp.where(weights > 0, jnp.abs(of_own), of_own), -jnp.inf))
        best = jnp.argmax(of_new)
        slot = jnp.sum(filled)
        x, y = data.batch(indices[best][None])
        grown = _State(
            CoresetArrays(state.coreset.inputs.at[slot].set(x[0]), state.coreset.targets.at[slot].set(y[0]), weights),
            state.indices.at[slot].set(indices[best]),
            posterior,
        )
        takes = of_new[best] > of_own
        state = jax.tree.map(lambda a, b: jnp.where(takes, a, b), grown, state._replace(posterior=posterior))
        return state, jnp.maximum(of_new[best], of_own)

    def improve(state: _State, item: Any, data: DeviceData) -> tuple[_State, tuple[jax.Array, jax.Array]]:
        number, key = item
        posterior, _, _, own, residual = look(key, state, data, batch_size)
        weights = state.coreset.weights
        filled = state.indices >= 0
        downhill = residual @ own
        curvature = jnp.sum(own**2, axis=0)
        usable = filled & ((weights > 0) | (downhill > 0))
        direction = jnp.where(usable, _ratio(downhill, curvature), 0.0)
        move = _ratio(direction @ downhill, jnp.sum((own @ direction) ** 2)) * direction
        most = data.num_data / jnp.maximum(jnp.sum(filled), 1)
        moved = jnp.maximum(weights + step_size / (1.0 + number) * jnp.clip(move, -most, most), 0.0)
        proposal = state._replace(coreset=state.coreset._replace(weights=moved), posterior=posterior)
        finite = jnp.all(jnp.isfinite(moved)) & jnp.all(jnp.isfinite(residual))
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), proposal, state)
        return state, (jnp.std(residual), ~finite)

    @jax.jit
    def add(key: jax.Array, state: _State, data: DeviceData, groups: jax.Array) -> tuple[_State, dict[str, jax.Array]]:
        choice_key, weight_key = jax.random.split(key)
        state, correlation = choose(choice_key, state, data, groups)
        items = (jnp.arange(num_weight_steps), jax.random.split(weight_key, num_weight_steps))
        state, (residuals, skipped) = jax.lax.scan(lambda s, item: improve(s, item, data), state, items)
        report = {
            "correlation": correlation,
            "residual": residuals[-1],
            "mass": jnp.sum(state.coreset.weights),
            "skipped": jnp.sum(skipped),
        }
        return state, report

    return add
