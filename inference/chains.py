"""The compiled parts of ``sample``: starting points, warmup, and blocks of draws, for all chains at once.

Each function is compiled once for a ``Plan`` and array shapes; numbers of steps, step sizes and temperatures
are arrays, so changing them compiles nothing. The key of a step depends on its place in the chain alone,
never on how the run is cut into blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pseudocoreset.augment import Augmentation
from pseudocoreset.batching import map_stack
from pseudocoreset.inference.data import (
    Minibatch,
    draw_indices,
    draw_minibatch,
    function_summary,
    gradient_estimator,
    log_density_estimator,
    log_density_terms,
)
from pseudocoreset.inference.kernels import KERNELS, Density, KernelSpec, Stats, Tuning
from pseudocoreset.inference.schedules import scheduled, steps_of_draw
from pseudocoreset.meshes import has_data_axis, spread, to_host
from pseudocoreset.models import Model, Params

__all__ = [
    "SMALL_SITE_ELEMENTS",
    "HeldOut",
    "Plan",
    "adapt_chains",
    "all_finite",
    "initial_positions",
    "keys_of_draw",
    "one_step",
    "over_chains",
    "prior_curvature",
    "prior_variance",
    "run_block",
    "start_chains",
    "summarise",
    "summary_of_state",
]

SMALL_SITE_ELEMENTS = 64
INIT_ATTEMPTS = 20
HeldOut = tuple[jax.Array, jax.Array] | None


@dataclass(frozen=True)
class Plan:
    """What a compiled block depends on besides arrays; equal plans share one compilation.

    Attributes:
        model: a bound model.
        kernel: name in ``KERNELS``.
        options: static kernel options.
        num_data: number of training data n.
        batch_size: rows of a minibatch, None for all data.
        preprocessing: applied to the stored inputs, None where that is done.
        chunk_size: rows of training data evaluated at once; None for all.
        held_out_preprocessing: as ``preprocessing``, for the held-out inputs.
        held_out_chunk_size: rows of held-out data evaluated at once.
        keep_weights: whether draws hold all sites, or the small ones only.
        has_metric: whether the mass matrix is given.
        augment: a new augmentation of the inputs for each gradient, None for the inputs as they are.
        mesh: devices that share the chains, None for one.
    """

    model: Model
    kernel: str
    options: tuple[tuple[str, Any], ...]
    num_data: int
    batch_size: int | None
    preprocessing: Any
    chunk_size: int | None
    held_out_preprocessing: Any
    held_out_chunk_size: int
    keep_weights: bool
    has_metric: bool
    augment: Augmentation | None = None
    mesh: Mesh | None = None

    @property
    def splits_data(self) -> bool:
        """Whether devices share the rows of the data too: where a gradient is a sum over all of them, and no other."""
        takes_all = self.batch_size is None and self.augment is None
        depends = self.model.is_network and not self.model.is_separable
        return takes_all and not depends and has_data_axis(self.mesh)

    @property
    def spec(self) -> KernelSpec:
        """The kernel's functions."""
        return KERNELS[self.kernel]

    def density(self, data: Minibatch, drawn: Minibatch | None = None) -> Density:
        """The target given its data; every minibatch is ``drawn``, if that was done beforehand (``batch_indices``)."""
        augment, size = self.augment, self.batch_size
        form: dict[str, Any] = {
            # What is augmented is preprocessed first, where the minibatch is made.
            "preprocessing": self.preprocessing if augment is None else None,
            "chunk_size": self.chunk_size,
            "splits_data": self.splits_data,
        }

        def minibatch(key: jax.Array) -> Minibatch:
            batch_key, view_key = self._batch_and_view(key)
            rows = drawn
            if rows is None:
                rows = data if size is None else draw_minibatch(batch_key, data, size)
            if augment is None:
                return rows
            inputs = rows.inputs if self.preprocessing is None else self.preprocessing.apply(rows.inputs)
            return rows._replace(inputs=augment(view_key, inputs))

        return Density(
            log_density=log_density_estimator(self.model, self.num_data, **form),
            gradient=gradient_estimator(self.model, self.num_data, **form),
            minibatch=minibatch,
            data=data,
            terms=log_density_terms(self.model, num_data=self.num_data, **form),
        )

    def batch_indices(self, key: jax.Array) -> jax.Array:
        """The data that ``density(data).minibatch(key)`` draws, (batch_size,)."""
        assert self.batch_size is not None
        return draw_indices(self._batch_and_view(key)[0], self.num_data, self.batch_size)

    def _batch_and_view(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys of the rows of a minibatch and of their augmentation."""
        if self.augment is None:
            return key, key
        batch_key, view_key = jax.random.split(key)
        return batch_key, view_key


def over_chains(plan: Plan, fn: Callable[..., Any], stack: Any, data: Minibatch | None, *shared: Any) -> Any:
    """``fn(item, density, *shared)`` of every chain, the density that of ``data``.

    Networks go by the way that suits the backend, other models at once; each device of a mesh takes its part so.

    Args:
        plan: says what the density is, and the mesh.
        fn: function of one item of the stack that closes over no traced array.
        stack: pytree of arrays with a leading axis over chains.
        data: all data; None where the density is not asked for.
        *shared: arguments passed whole to every call.
    """

    def of_part(part: Any, rows: Minibatch, *whole: Any) -> Any:
        density = plan.density(rows)

        def chain(item: Any) -> Any:
            return fn(item, density, *whole)

        return map_stack(chain, part) if plan.model.is_network else jax.vmap(chain)(part)

    return spread(of_part, plan.mesh, stack, data, *shared, splits_data=plan.splits_data)


@functools.partial(jax.jit, static_argnames="plan")
def initial_positions(plan: Plan, keys: jax.Array) -> Params:
    """``model.init`` of every key."""
    return over_chains(plan, lambda key, _: plan.model.init(key), keys, None)


@functools.partial(jax.jit, static_argnames="plan")
def prior_curvature(plan: Plan, positions: Params) -> jax.Array:
    """Largest precision of a network's prior: max |H 1|, H its Hessian, diagonal for independent weights."""

    def chain(position: Params, _: Density) -> jax.Array:
        precisions = _prior_precisions(plan.model, position)
        return jnp.max(jnp.stack([jnp.max(leaf) for leaf in jax.tree.leaves(precisions)]))

    return jnp.max(over_chains(plan, chain, positions, None))


@functools.partial(jax.jit, static_argnames="plan")
def prior_variance(plan: Plan, positions: Params, scale: Params) -> jax.Array:
    """Mean over parameters of the variance of a prior of independent Gaussians, parameters in units of ``scale``."""

    def chain(position: Params, _: Density, unit: Params) -> jax.Array:
        precisions = _prior_precisions(plan.model, position)
        sums = jax.tree.map(lambda h, s: jnp.sum(1 / (h * s**2)), precisions, unit)
        return jax.tree.reduce(jnp.add, sums) / plan.model.num_params

    return jnp.mean(over_chains(plan, chain, positions, None, scale))


def _prior_precisions(model: Model, position: Params) -> Params:
    ones = jax.tree.map(jnp.ones_like, position)
    _, product = jax.jvp(jax.grad(model.log_prior), (position,), (ones,))
    return jax.tree.map(jnp.abs, product)


@functools.partial(jax.jit, static_argnames="plan")
def _start(plan: Plan, keys: jax.Array, positions: Params, tuning: Tuning, data: Minibatch) -> tuple[Any, jax.Array]:
    def chain(item: Any, density: Density) -> tuple[Any, jax.Array]:
        key, position, tuned = item
        state_key, batch_key = jax.random.split(key)
        value = density.log_density(position, density.minibatch(batch_key))
        return plan.spec.init(state_key, position, tuned, density), jnp.isfinite(value)

    return over_chains(plan, chain, (keys, positions, tuning), data)


def start_chains(
    plan: Plan, key: jax.Array, positions: Params, are_given: bool, tuning: Tuning, data: Minibatch
) -> tuple[Any, Params]:
    """Kernel states and positions of finite log density; where it is not, ``model.init`` is asked again.

    Raises:
        ValueError: if a given position has none, or twenty draws of the initialiser found none for a chain.
    """
    start_key, init_key = jax.random.split(key)
    num_chains = jax.tree.leaves(positions)[0].shape[0]
    for attempt in range(INIT_ATTEMPTS):
        states, finite = _start(plan, jax.random.split(start_key, num_chains), positions, tuning, data)
        found = to_host(finite)
        if found.all():
            return states, positions
        if are_given:
            lost = np.flatnonzero(~found).tolist()
            raise ValueError(f"init_params: the log density is not finite for chains {lost}")
        keys = jax.random.split(jax.random.fold_in(init_key, attempt), num_chains)
        # Nearer to zero each time: with columns on raw scales a start of order one can overflow.
        nearer = jax.tree.map(lambda leaf, by=0.8**attempt: by * leaf, initial_positions(plan, keys))
        positions = _where(found, positions, nearer)
    raise ValueError(
        f"no starting point with a finite log density in {INIT_ATTEMPTS} attempts for chains "
        f"{np.flatnonzero(~found).tolist()}; check that the data lie in the support of the likelihood, "
        "or give init_params"
    )


def _where(keep: np.ndarray, old: Params, new: Params) -> Params:
    """Chains of ``old`` where ``keep``, of ``new`` elsewhere."""

    def chosen(first: jax.Array, second: jax.Array) -> jax.Array:
        return jnp.where(keep.reshape(-1, *[1] * (first.ndim - 1)), first, second)

    return jax.tree.map(chosen, old, new)


@functools.partial(jax.jit, static_argnames=("plan", "num_steps"))
def adapt_chains(
    plan: Plan, num_steps: int, keys: jax.Array, positions: Params, tuning: Tuning, data: Minibatch
) -> tuple[Any, Tuning]:
    """Kernel states after ``num_steps`` of adaptation, and the tuning found, a chain each."""
    adapt = plan.spec.adapt
    assert adapt is not None

    def chain(item: Any, density: Density) -> tuple[Any, Tuning]:
        return adapt(*item, density, dict(plan.options), num_steps, plan.has_metric)

    return over_chains(plan, chain, (keys, positions, tuning), data)


@functools.partial(jax.jit, static_argnames=("plan", "block"))
def run_block(
    plan: Plan,
    block: int,
    is_recording: bool,
    thinning: int,
    states: Any,
    tuning: Tuning,
    keys: jax.Array,
    first: int,
    last: int,
    data: Minibatch,
    held_out: HeldOut,
) -> tuple[Any, Any, jax.Array]:
    """Draws ``first`` to ``last`` of every chain, ``thinning`` steps each.

    Returns:
        States; what ``summarise`` keeps of each draw, with leading axes (chain, block), of which the first
        ``last - first`` are filled if ``is_recording``, zeros otherwise; whether the position and log
        density of each chain are finite. One compilation serves warmup and sampling.
    """

    def chain(item: Any, density: Density, numbers: tuple[Any, ...], held_out: HeldOut) -> tuple[Any, Any, jax.Array]:
        state, tuned, key = item
        is_recording, thinning, first, last = numbers

        def summary_of(key: jax.Array, state: Any, stats: Stats) -> dict[str, Any]:
            return summary_of_state(plan, key, state, stats, density, held_out)

        def steps_to(index: Any, key: jax.Array, state: Any) -> tuple[Any, Stats]:
            return _several_steps(plan, key, state, tuned, density, index, thinning, is_recording)

        def body(index: jax.Array, carry: Any) -> Any:
            state, buffers = carry
            steps_key, summary_key = keys_of_draw(key, index)
            state, stats = steps_to(index, steps_key, state)

            def record(buffers: Any) -> Any:
                summary = summary_of(summary_key, state, stats)
                return jax.tree.map(
                    lambda b, s: jax.lax.dynamic_update_index_in_dim(b, s, index - first, 0), buffers, summary
                )

            return state, jax.lax.cond(is_recording, record, lambda buffers: buffers, buffers)

        def one_draw(key: jax.Array, state: Any) -> dict[str, Any]:
            state, stats = steps_to(first, key, state)
            return summary_of(key, state, stats)

        shapes = jax.eval_shape(one_draw, key, state)
        buffers = jax.tree.map(lambda s: jnp.zeros((block, *s.shape), s.dtype), shapes)
        state, buffers = jax.lax.fori_loop(first, last, body, (state, buffers))
        stats = buffers["sample_stats"]
        density_values = stats["lp"] if "lp" in stats else stats["lp_estimate"]
        finite = all_finite(plan.spec.position(state)) & jnp.all(jnp.isfinite(density_values))
        return state, buffers, finite

    numbers = is_recording, thinning, first, last
    return over_chains(plan, chain, (states, tuning, keys), data, numbers, held_out)


def keys_of_draw(key: jax.Array, draw: Any) -> jax.Array:
    """Of the steps that lead to a draw, and of the minibatch on which it is evaluated, (2,)."""
    return jax.random.split(jax.random.fold_in(key, draw))


def one_step(
    plan: Plan,
    key: jax.Array,
    index: Any,
    first: Any,
    state: Any,
    tuning: Tuning,
    density: Density,
    is_recording: jax.Array,
) -> tuple[Any, Stats]:
    """Step ``index`` of a draw whose key is ``key``; its schedule counts from ``first``."""
    now = {**tuning, "is_warmup": ~is_recording}
    schedule = tuning.get("schedule")
    if schedule is not None:
        of_step = scheduled(schedule, first + index, tuning)
        now |= {name: jnp.where(is_recording, value, tuning[name]) for name, value in of_step.items()}
    return plan.spec.step(jax.random.fold_in(key, index), state, now, density, dict(plan.options))


def summary_of_state(
    plan: Plan, key: jax.Array, state: Any, stats: Stats, density: Density, held_out: HeldOut
) -> dict[str, Any]:
    """What ``summarise`` keeps of a draw, with its log density, or that of a minibatch or of augmented views."""
    params = plan.spec.position(state)
    if "lp" not in stats:
        name = "lp" if plan.batch_size is None and plan.augment is None else "lp_estimate"
        stats = {name: density.log_density(params, density.minibatch(key)), **stats}
    return summarise(plan, params, stats, held_out)


def _several_steps(
    plan: Plan,
    key: jax.Array,
    state: Any,
    tuning: Tuning,
    density: Density,
    draw: Any,
    thinning: Any,
    is_recording: Any,
) -> tuple[Any, Stats]:
    """Steps from draw to draw; divergences are joined, integration steps added, the rest is the last's."""
    schedule = tuning.get("schedule")
    is_recording = jnp.asarray(is_recording)
    first, num_steps = jnp.zeros((), jnp.int32), thinning
    if schedule is not None:
        of_draw = steps_of_draw(schedule, draw, thinning)
        first, num_steps = (jnp.where(is_recording, a, b) for a, b in zip(of_draw, (0, thinning), strict=True))

    def step(index: jax.Array, state: Any) -> tuple[Any, Stats]:
        return one_step(plan, key, index, first, state, tuning, density, is_recording)

    def body(index: jax.Array, carry: Any) -> Any:
        state, before = carry
        state, stats = step(index, state)
        if "diverging" in stats:
            stats["diverging"] = stats["diverging"] | before["diverging"]
        if "n_steps" in stats:
            stats["n_steps"] = stats["n_steps"] + before["n_steps"]
        return state, stats

    _, shapes = jax.eval_shape(step, jnp.zeros((), jnp.int32), state)
    stats = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.fori_loop(0, num_steps, body, (state, stats))


def summarise(plan: Plan, params: Params, stats: Stats, held_out: HeldOut) -> dict[str, Any]:
    """What is kept of one draw; None for what is not."""
    values = plan.model.constrain(params)
    if not plan.keep_weights:
        values = {name: value for name, value in values.items() if value.size <= SMALL_SITE_ELEMENTS}
    function_values = log_likelihood = None
    if held_out is not None:
        function_values, log_likelihood = function_summary(
            plan.model,
            params,
            *held_out,
            preprocessing=plan.held_out_preprocessing,
            chunk_size=plan.held_out_chunk_size,
        )
        function_values = None if function_values is None else function_values.astype(jnp.float32)
    return {
        "draws": values,
        "unconstrained": params if plan.keep_weights else None,
        "function_values": function_values,
        "log_likelihood": log_likelihood,
        "sample_stats": stats,
    }


def all_finite(tree: Any) -> jax.Array:
    """Whether every number of a tree is."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
