"""Sparse variational inference: a weighted subset under the reverse KL (Campbell and Beronov 2019)."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.compute.progress import progress_bar
from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data import Dataset
from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.methods.base import Callback, Problem
from pseudocoreset.models import Model
from pseudocoreset.objectives.posteriors import Posteriors, WeightDraws, gaussian_posteriors
from pseudocoreset.rows import Rows
from pseudocoreset.subsets.base import Choice, Chosen, one_model, quota_of, ratio, subset_of
from pseudocoreset.validation import check_integer, check_positive

__all__ = ["SparseVI"]

logger = logging.getLogger(__name__)
PLANE_RIDGE = 1e-4  # relative, of the least squares in SparseVI: its two directions may be one


@dataclass(frozen=True, kw_only=True)
class SparseVI(Chosen):
    """SparseVI (Campbell and Beronov 2019): a weighted subset under the reverse KL divergence, one point at a time.

    With g_i the log-likelihood of datum i, centred over S draws of the posterior of the coreset so far, and the
    residual r = sum_i g_i - sum_j w_j g_j, a step takes in the datum of the largest correlation of g_i with r, or none
    if that of a point it has is larger (by size: a weight can shrink), and then does ``num_weight_steps`` of

        w <- max(0, w + gamma_i (a q + b w)),    q_j = <g_j, r> / |g_j|^2,    gamma_i = step_size / (1 + i),

    draws and batch new each time. <g_j, r> / S is minus the gradient of the divergence; its unit is that of the data,
    so the paper leaves the scale of steps to the user. Here (a, b) make |r - sum_j (a q_j + b w_j) g_j| the smallest:
    the best step to second order along the gradient and, of the total weight, which the gradient alone finds last. A
    weight moves by n / m times gamma_i at most, or it would run off where few draws see its datum vary.

    The coreset has the points whose weight is positive, at most as many as asked for. Its history has, one value for
    each choice, ``correlation``, and ``residual`` (standard deviation of r) and ``mass`` after it. For one model with
    a conjugate posterior or of at most 2,000 parameters.

    Attributes:
        proxy: the posterior that draws come from: ``"conjugate"``, ``"laplace"``, or None for what there is.
        num_draws: S.
        num_candidates: random data among which the next point is chosen, and the residual then estimated from.
        num_weight_steps: updates of the weights after each choice.
        batch_size: data that the residual is estimated from at each of them; None for all.
        step_size: gamma_0, in units of the best step.
    """

    name: ClassVar[str] = "sparse_vi"
    takes: ClassVar[frozenset[str]] = frozenset({"callbacks"})

    proxy: str | None = None
    num_draws: int = 100
    num_candidates: int = 1000
    num_weight_steps: int = 500
    batch_size: int | None = 256
    step_size: float = 0.5

    def check(self) -> None:
        check_integer(self.num_draws, "num_draws", minimum=2)
        check_positive(self.step_size, "step_size")
        check_integer(self.num_candidates, "num_candidates")
        check_integer(self.num_weight_steps, "num_weight_steps")
        if self.batch_size is not None:
            check_integer(self.batch_size, "batch_size")

    def choose(self, problem: Problem, callbacks: tuple[Callback, ...], progress: bool) -> Choice:
        model, data, key = one_model(problem), problem.data, problem.key
        batch_size = data.train.num_data if self.batch_size is None else self.batch_size
        groups, quota = quota_of(problem)
        capacity = quota * (int(groups.max()) + 1)
        add = _addition(self, model, quota)
        device = DeviceData.from_dataset(data)
        state = _begin(add.posteriors, device, capacity, jax.random.fold_in(key, capacity))
        reports: list[dict[str, np.ndarray]] = []
        was_stopped = False
        with progress_bar("choosing the subset", capacity, enabled=progress) as advance:
            for number in range(capacity):
                state, report = add(jax.random.fold_in(key, number), state, device, jnp.asarray(groups))
                reports.append({name: np.asarray(value) for name, value in report.items()})
                advance(1, f"residual {report['residual']:.3g}")
                info = {name: float(value) for name, value in report.items()}
                was_stopped = any([callback(number + 1, _weighted(data, state), info) for callback in callbacks])
                if was_stopped:
                    break
        history = {name: np.stack([report[name] for report in reports]) for name in reports[0]}
        skipped = int(np.sum(history.pop("skipped")))
        if skipped:
            logger.warning("%d steps of the weights were not finite and skipped", skipped)
        settings = {
            **add.posteriors.settings,
            "num_draws": self.num_draws,
            "num_candidates": self.num_candidates,
            "num_weight_steps": self.num_weight_steps,
            "batch_size": batch_size,
            "step_size": self.step_size,
        }
        return Choice(_weighted(data, state), history, settings, was_stopped)


class _State(NamedTuple):
    """SparseVI between two choices."""

    coreset: Rows  # ``capacity`` slots; those not filled have weight zero
    indices: jax.Array  # (capacity,), -1 in slots not filled
    posterior: Any  # of ``Posteriors``: the Gaussian of the full data, and the mean of that of the coreset


class _View(NamedTuple):
    """Some of the data, and what draws of the coreset posterior say of them."""

    indices: jax.Array  # (b,)
    x: jax.Array
    y: jax.Array
    rows: jax.Array  # g of these data, (S, b)
    own: jax.Array  # g of the coreset, (S, m)
    residual: jax.Array  # r (S,)


def _begin(posteriors: Posteriors, data: DeviceData, capacity: int, key: jax.Array) -> _State:
    # Slots not filled hold the first datum: a likelihood need not be finite at zeros.
    x, y = data.batch(jnp.zeros(capacity, jnp.int32))
    coreset = Rows(x, y, jnp.zeros(capacity))
    return _State(coreset, jnp.full(capacity, -1), posteriors.init(key, coreset, data))


def _weighted(data: Dataset, state: _State) -> Pseudocoreset:
    """The points of positive weight."""
    weights = np.asarray(state.coreset.weights)
    if not np.any(weights > 0):
        raise FloatingPointError(
            "no datum was given a weight: the log-likelihoods at draws of the coreset posterior are not finite, or do "
            "not vary. Bring columns to a like scale, take a narrower prior, or fit_giga"
        )
    return subset_of(data, np.asarray(state.indices)[weights > 0], weights[weights > 0])


def _correlations(rows: jax.Array, residual: jax.Array) -> jax.Array:
    """Of every column of ``rows`` (S, b) with the residual (S,); -1 for a column of zeros."""
    scale = jnp.linalg.norm(rows, axis=0) * jnp.linalg.norm(residual)
    return jnp.where(scale > 0, ratio(residual @ rows, scale), -1.0)


def _improve(state: _State, seen: _View, gamma: jax.Array, n: int) -> tuple[_State, jax.Array, jax.Array]:
    """A step of the weights; also the spread of the residual, and whether the step was skipped."""
    weights, filled = state.coreset.weights, state.indices >= 0
    downhill = seen.residual @ seen.own
    usable = filled & ((weights > 0) | (downhill > 0))
    direction = jnp.where(usable, ratio(downhill, jnp.sum(seen.own**2, axis=0)), 0.0)
    plane = jnp.stack([direction, weights], axis=1)
    columns = seen.own @ plane
    lengths = jnp.linalg.norm(columns, axis=0)
    columns = ratio(columns, lengths)
    # Normal equations of unit columns; by hand, since a call of LAPACK costs more than the rest of the step.
    inner, (one, two) = columns[:, 0] @ columns[:, 1], seen.residual @ columns
    scales = jnp.stack([(1 + PLANE_RIDGE) * one - inner * two, (1 + PLANE_RIDGE) * two - inner * one])
    move = plane @ ratio(scales / ((1 + PLANE_RIDGE) ** 2 - inner**2), lengths)
    most = n / jnp.maximum(jnp.sum(filled), 1)
    moved = jnp.maximum(weights + gamma * jnp.clip(move, -most, most), 0.0)
    finite = jnp.all(jnp.isfinite(moved))
    coreset = state.coreset._replace(weights=jnp.where(finite, moved, weights))
    return state._replace(coreset=coreset), jnp.std(seen.residual), ~finite


@functools.lru_cache(maxsize=16)
def _addition(method: SparseVI, model: Model, quota: int) -> _Addition:
    """Fits with the same settings of the same model, as an object, compile once for each shape."""
    return _Addition(method, model, gaussian_posteriors(model, method.proxy, "proxy"), quota)


@dataclass(frozen=True, eq=False)
class _Addition:
    """A choice and the weight steps after it."""

    method: SparseVI
    model: Model
    posteriors: Posteriors
    quota: int  # points of each group

    @functools.partial(jax.jit, static_argnums=0)
    def __call__(
        self, key: jax.Array, state: _State, data: DeviceData, groups: jax.Array
    ) -> tuple[_State, dict[str, jax.Array]]:
        n, steps = data.num_data, self.method.num_weight_steps
        sizes = (self.method.num_candidates, n if self.method.batch_size is None else self.method.batch_size)
        largest = max([size for size in sizes if size < n], default=1)

        # The choice is step 0 of the same loop: what makes draws is the greater part of what is compiled.
        def step(state: _State, item: tuple[jax.Array, jax.Array]) -> tuple[_State, tuple[jax.Array, jax.Array]]:
            number, step_key = item
            draw_key, batch_key = jax.random.split(step_key)
            state, draws, full = self._drawn(draw_key, state, data)
            sampled = jax.random.randint(batch_key, (largest,), 0, n)

            def of(size: int) -> _View:
                return self._view(state, draws, full, data, jnp.arange(n) if size >= n else sampled[:size])

            state, value, skipped = jax.lax.cond(
                number == 0,
                lambda: self._choose(state, of(sizes[0]), groups),
                lambda: _improve(state, of(sizes[1]), self.method.step_size / number, n),
            )
            return state, (value, skipped)

        items = (jnp.arange(steps + 1), jax.random.split(key, steps + 1))
        state, (values, skipped) = jax.lax.scan(step, state, items)
        mass = jnp.sum(state.coreset.weights)
        return state, {"correlation": values[0], "residual": values[-1], "mass": mass, "skipped": jnp.sum(skipped)}

    def _drawn(self, key: jax.Array, state: _State, data: DeviceData) -> tuple[_State, WeightDraws, WeightDraws]:
        """Draws of the posteriors of the coreset and of all data; the state with the former's, if it is finite."""
        draws, full, posterior, _ = self.posteriors.draws(
            key, state.posterior, state.coreset, data, (), self.method.num_draws
        )
        finite = jnp.all(jnp.isfinite(posterior[1]))
        posterior = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old).astype(old.dtype), posterior, state.posterior
        )
        return state._replace(posterior=posterior), draws, full

    def _view(
        self, state: _State, draws: WeightDraws, full: WeightDraws, data: DeviceData, indices: jax.Array
    ) -> _View:
        seen = self._seen(state, draws, data, indices)
        # Of few points the posterior can be so wide that likelihoods overflow: that of all data tells as much.
        is_finite = jnp.all(jnp.isfinite(seen.residual))
        return jax.lax.cond(is_finite, lambda: seen, lambda: self._seen(state, full, data, indices))

    def _seen(self, state: _State, draws: WeightDraws, data: DeviceData, indices: jax.Array) -> _View:
        def centred(x: jax.Array, y: jax.Array) -> jax.Array:
            each = jax.vmap(lambda item: self.model.log_likelihood(draws.to_params(item), x, y))(draws.items)
            return each - jnp.mean(each, axis=0)

        x, y = data.batch(indices)
        rows, own = centred(x, y), centred(state.coreset.inputs, state.coreset.targets)
        residual = (data.num_data / len(indices)) * jnp.sum(rows, axis=1) - own @ state.coreset.weights
        return _View(indices, x, y, rows, own, residual)

    def _choose(self, state: _State, seen: _View, groups: jax.Array) -> tuple[_State, jax.Array, jax.Array]:
        """The state with the datum of the largest correlation, if that of no own point is larger; that correlation."""
        (inputs, targets, weights), filled = state.coreset, state.indices >= 0
        counts = jnp.zeros(len(groups), jnp.int32).at[groups[state.indices]].add(filled)
        old = jnp.any(seen.indices[:, None] == state.indices, axis=1)
        is_free = (counts < self.quota)[groups[seen.indices]] & ~old
        of_new = jnp.where(is_free, _correlations(seen.rows, seen.residual), -2.0)
        of_own = _correlations(seen.own, seen.residual)
        of_own = jnp.max(jnp.where(filled, jnp.where(weights > 0, jnp.abs(of_own), of_own), -2.0))
        best, slot = jnp.argmax(of_new), jnp.sum(filled)
        grown = state._replace(
            coreset=Rows(inputs.at[slot].set(seen.x[best]), targets.at[slot].set(seen.y[best]), weights),
            indices=state.indices.at[slot].set(seen.indices[best]),
        )
        takes = of_new[best] > of_own
        state = jax.tree.map(lambda new, old: jnp.where(takes, new, old), grown, state)
        return state, jnp.maximum(of_new[best], of_own), jnp.zeros((), bool)
