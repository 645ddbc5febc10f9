"""``sample``: chains of one kernel on a model's posterior, run together in compiled blocks of draws."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.augment import Augmentation
from pseudocoreset.inference.chains import (
    HeldOut,
    Plan,
    adapt_chains,
    initial_positions,
    run_block,
    start_chains,
    summarise,
)
from pseudocoreset.inference.data import Minibatch, default_chunk_size
from pseudocoreset.inference.guards import check_finite, warn_of_divergences, warn_of_heat
from pseudocoreset.inference.kernels import Tuning
from pseudocoreset.inference.posterior import Posterior, library_versions
from pseudocoreset.inference.tuning import default_step_size, initial_tuning, reported_options
from pseudocoreset.inference.validation import (
    check_kernel_options,
    check_step_size_and_metric,
    check_targets,
    input_struct,
    resolve_augment,
    resolve_batch_size,
    resolve_data,
    resolve_init_params,
    resolve_keep,
    resolve_predict_on,
    stored_inputs,
)
from pseudocoreset.models import Model, Params
from pseudocoreset.progress import progress_bar
from pseudocoreset.validation import check_integer, check_key, check_positive

__all__ = ["sample"]

KEEP_LIMIT_BYTES = 4 * 2**30
BLOCK_BYTES = 64 * 2**20
NUM_BLOCKS = 20
STATIC_OPTIONS = (
    "target_acceptance_rate",
    "is_mass_matrix_diagonal",
    "num_integration_steps",
    "max_num_doublings",
)


def sample(
    model: Model,
    data: Any,
    *,
    kernel: str = "sghmc",
    num_chains: int = 4,
    num_warmup: int = 500,
    num_samples: int = 500,
    thinning: int = 1,
    temperature: float = 1.0,
    key: jax.Array,
    batch_size: int | None = None,
    augment: Augmentation | str | None = None,
    step_size: float | None = None,
    init_params: Params | None = None,
    predict_on: Any = None,
    keep: str = "auto",
    chunk_size: int | None = None,
    progress: bool = True,
    **kernel_options: Any,
) -> Posterior:
    """Sample the posterior of a model given data, a coreset, or arrays.

    The target at temperature T is

        pi_T(theta)  proportional to  exp{ (log_prior(theta) + sum_i w_i log p(y_i | x_i, theta)) / T },

    in the unconstrained parameterisation for T = 1; other temperatures flatten or sharpen that same density.
    Chains run together; draws leave the device in blocks, and their function values and log-likelihoods on
    held-out data are computed where they are made.

    Args:
        model: the model; bound to the shape of the data if it is not yet.
        data: ``Dataset`` (its train split), ``Pseudocoreset``, ``(x, y)`` or ``(x, y, weights)``.
        kernel: ``"nuts"``, ``"hmc"``, ``"sghmc"``, ``"sgld"``, or, for comparison only because its variance
            is wrong, ``"blackjax_sghmc"``.
        num_chains: independent chains, at least 1.
        num_warmup: steps a chain before the first draw, 0 or more. NUTS and HMC adapt in them.
        num_samples: draws a chain to keep, at least 1.
        thinning: steps from one draw to the next, at least 1.
        temperature: T, positive.
        key: one typed key, ``jax.random.key(seed)``. The same key on the same machine gives the same draws.
        batch_size: data in a minibatch, 1 to n; for the stochastic gradient kernels only. By default all data
            up to 2,000 of them, and 128 beyond.
        augment: ``"auto"``, a strategy or an ``Augmentation`` (``pseudocoreset.augment``): every gradient sees the
            images through a new one, so that the chain samples the posterior whose log-likelihood is the mean over
            augmentations, as the coreset papers evaluate; for the stochastic gradient kernels only. None by default.
        step_size: of the integrator, positive. By default NUTS and HMC adapt it. With W the sum of all
            weights, SGHMC takes 0.1 / sqrt(max(W, 1)) and SGLD 0.01 / max(W, 1): the curvature of a
            log-likelihood grows like W, so that step times curvature does not depend on how many data there
            are (SGHMC's step squared is what optimisers call learning rate on the summed loss; W times it is
            0.01, as customary for networks). Where the prior of a network is narrower than the data call for,
            the steps are cut so that curvature times the step (squared) is at most 1 for SGHMC and 0.1 for
            SGLD.
        init_params: unconstrained starting point, ``{site: array}``, one or stacked over chains; by default
            ``model.init`` with a key a chain.
        predict_on: ``Split`` or ``(x, y)`` to evaluate on; by default the test split of a ``Dataset``.
        keep: ``"weights"``, ``"functions"`` (function values on ``predict_on``, and sites of at most 64
            elements), or ``"auto"``: functions for a network with something to predict on, weights otherwise.
        chunk_size: rows of data evaluated at once, which bounds memory; chosen by the size of an input.
        progress: whether to show a bar.
        **kernel_options: for NUTS and HMC ``target_acceptance_rate`` (0.8), ``inverse_mass_matrix`` (adapted
            if not given, unless ``step_size`` is: then ones) and ``is_mass_matrix_diagonal`` (True). NUTS:
            ``max_num_doublings`` (10). HMC: ``num_integration_steps`` (10; on a nearly Gaussian posterior
            a trajectory, step size times this, close to a multiple of pi mixes slowly, which NUTS avoids).
            SGHMC: ``friction`` (-log(0.9) / step_size, so that the momentum keeps a factor 0.9 a step).
            ``"blackjax_sghmc"``: ``friction`` and ``num_integration_steps``.

    Returns:
        ``Posterior``. Its ``sample_stats`` hold ``lp``, the log density at temperature one, or
        ``lp_estimate`` where gradients come from minibatches; with thinning, ``diverging`` tells of any and
        ``n_steps`` counts all steps since the draw before.

    Raises:
        TypeError, ValueError: for arguments that do not fit, before anything is compiled.
        FloatingPointError: when a chain leaves the finite numbers.
    """
    started = time.perf_counter()
    check_key(key)
    options = check_kernel_options(kernel, kernel_options)
    num_chains = check_integer(num_chains, "num_chains")
    num_warmup = check_integer(num_warmup, "num_warmup", 0)
    num_samples = check_integer(num_samples, "num_samples")
    thinning = check_integer(thinning, "thinning")
    temperature = check_positive(temperature, "temperature")
    chunk_size = None if chunk_size is None else check_integer(chunk_size, "chunk_size")

    source = resolve_data(data)
    struct = input_struct(source.inputs, source.preprocessing)
    model = model.bind(struct, source.hard_targets)
    targets = check_targets(model, struct, source.targets, "data")
    split = resolve_predict_on(predict_on, data)
    held_out: tuple[np.ndarray, np.ndarray] | None = None
    held_out_preprocessing = None
    if split is not None:
        inputs, held_out_preprocessing = stored_inputs(split)
        held_out_struct = input_struct(inputs, held_out_preprocessing)
        held_out = inputs, check_targets(model, held_out_struct, np.asarray(split.y), "predict_on")
    step_size, metric = check_step_size_and_metric(kernel, step_size, options, model.num_params, num_warmup)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    given = resolve_init_params(init_params, shapes, num_chains)

    rows_at_once = chunk_size or default_chunk_size(model, source.inputs.shape[1:])
    plan = Plan(
        model=model,
        kernel=kernel,
        options=tuple((name, options[name]) for name in STATIC_OPTIONS if name in options),
        num_data=len(source.inputs),
        batch_size=resolve_batch_size(batch_size, len(source.inputs), kernel),
        preprocessing=source.preprocessing,
        chunk_size=rows_at_once,
        held_out_preprocessing=held_out_preprocessing,
        held_out_chunk_size=rows_at_once,
        keep_weights=resolve_keep(keep, model, split is not None),
        has_metric=metric is not None,
        augment=resolve_augment(augment, kernel, source),
    )
    kept = jax.eval_shape(lambda params, rows: summarise(plan, params, {}, rows), shapes, held_out)
    bytes_per_draw = num_chains * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    _check_size(bytes_per_draw * num_samples)

    rows = Minibatch(
        jnp.asarray(source.inputs), jnp.asarray(targets), jnp.asarray(source.weights, jnp.result_type(float))
    )
    held_out_rows = None if held_out is None else (jnp.asarray(held_out[0]), jnp.asarray(held_out[1]))
    init_key, start_key, warmup_key, draw_key = jax.random.split(key, 4)
    positions = initial_positions(model, jax.random.split(init_key, num_chains)) if given is None else given
    total_weight = float(np.sum(source.weights, dtype=np.float64))
    if step_size is None and plan.spec.uses_minibatches:
        step_size = default_step_size(plan, positions, total_weight)
    tuning = initial_tuning(plan, positions, temperature, step_size, options.get("friction"), metric)
    states, positions = start_chains(plan, start_key, positions, given is not None, tuning, rows)

    # Short enough to show progress and bound memory, long enough that the host costs nothing.
    block = max(1, min(math.ceil(num_samples / NUM_BLOCKS), BLOCK_BYTES // max(1, bytes_per_draw)))
    mark = time.perf_counter()
    warmup_keys = jax.random.split(warmup_key, num_chains)
    if "step_size" in tuning:
        states = _warm_up(plan, block, states, tuning, warmup_keys, num_warmup, rows, held_out_rows, progress)
    else:
        states, tuning = _adapt(plan, num_warmup, warmup_keys, positions, tuning, rows, progress)
    warmed_up = time.perf_counter()
    draw_keys = jax.random.split(draw_key, num_chains)
    draws = _draw(plan, states, tuning, draw_keys, num_samples, thinning, block, rows, held_out_rows, progress)
    finished = time.perf_counter()
    warn_of_divergences(draws["sample_stats"], kernel)
    warn_of_heat(draws["sample_stats"], plan, tuning, thinning)

    seconds = {"warmup": warmed_up - mark, "sampling": finished - warmed_up, "total": finished - started}
    metadata = {
        "model": model.name,
        "kernel": kernel,
        "temperature": temperature,
        "num_chains": num_chains,
        "num_warmup": num_warmup,
        "num_samples": num_samples,
        "thinning": thinning,
        "num_data": plan.num_data,
        "total_weight": total_weight,
        "batch_size": plan.batch_size,
        "augment": None if plan.augment is None else plan.augment.strategy,
        "step_size": np.asarray(tuning["step_size"]).tolist(),
        "options": reported_options(options, tuning),
        "keep": "weights" if plan.keep_weights else "functions",
        "key": {
            "implementation": str(jax.random.key_impl(key)),
            "data": np.asarray(jax.random.key_data(key)).tolist(),
        },
        "backend": jax.default_backend(),
        "versions": library_versions(),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }
    return Posterior(predict_on=split, metadata=metadata, **draws)


def _check_size(num_bytes: int) -> None:
    if num_bytes > KEEP_LIMIT_BYTES:
        raise ValueError(
            f"the draws to keep would take {num_bytes / 2**30:.1f} GiB, more than the limit of "
            f"{KEEP_LIMIT_BYTES / 2**30:.0f}; take keep='functions', a smaller predict_on, or fewer draws "
            "(num_samples) further apart (thinning)"
        )


def _blocks(total: int, size: int) -> Iterator[tuple[int, int]]:
    for first in range(0, total, max(1, size)):
        yield first, min(first + size, total)


def _adapt(
    plan: Plan,
    num_warmup: int,
    keys: jax.Array,
    positions: Params,
    tuning: Tuning,
    rows: Minibatch,
    progress: bool,
) -> tuple[Any, Tuning]:
    """Warmup that adapts, in one computation."""
    with progress_bar(f"{plan.kernel} warmup", num_warmup, enabled=progress) as advance:
        states, tuning = adapt_chains(plan, num_warmup, keys, positions, tuning, rows)
        found = np.asarray(tuning["step_size"])
        if not np.all(np.isfinite(found) & (found > 0)):
            raise FloatingPointError(
                f"kernel {plan.kernel!r} adapted to the step sizes {found.tolist()}; give step_size and "
                "init_params, or a longer num_warmup"
            )
        advance(num_warmup)
    return states, tuning


def _warm_up(
    plan: Plan,
    block: int,
    states: Any,
    tuning: Tuning,
    keys: jax.Array,
    num_warmup: int,
    rows: Minibatch,
    held_out: HeldOut,
    progress: bool,
) -> Any:
    """Warmup that only moves."""
    with progress_bar(f"{plan.kernel} warmup", num_warmup, enabled=progress and num_warmup > 0) as advance:
        for first, last in _blocks(num_warmup, math.ceil(num_warmup / NUM_BLOCKS)):
            states, _, finite = run_block(plan, block, False, 1, states, tuning, keys, first, last, rows, held_out)
            check_finite(finite, plan, tuning, f"warmup steps {first} to {last}")
            advance(last - first)
    return states


def _draw(
    plan: Plan,
    states: Any,
    tuning: Tuning,
    keys: jax.Array,
    num_samples: int,
    thinning: int,
    block: int,
    rows: Minibatch,
    held_out: HeldOut,
    progress: bool,
) -> dict[str, Any]:
    """All draws on the host, block by block; leaves have leading axes (chain, draw)."""
    num_chains = keys.shape[0]
    kept: dict[str, Any] = {}
    with progress_bar(f"{plan.kernel} sampling", num_samples, enabled=progress) as advance:
        for first, last in _blocks(num_samples, block):
            states, draws, finite = run_block(
                plan, block, True, thinning, states, tuning, keys, first, last, rows, held_out
            )
            check_finite(finite, plan, tuning, f"draws {first} to {last}")
            if not kept:
                kept = jax.tree.map(lambda b: np.empty((num_chains, num_samples, *b.shape[2:]), b.dtype), draws)
            jax.tree.map(functools.partial(_copy_block, first=first, last=last), kept, draws)
            advance(last - first)
    return kept


def _copy_block(kept: np.ndarray, block: jax.Array, *, first: int, last: int) -> None:
    kept[:, first:last] = np.asarray(block)[:, : last - first]
