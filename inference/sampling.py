"""``sample``: chains of one kernel on a model's posterior, run together in compiled blocks of draws."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from pseudocoreset.arguments import checked
from pseudocoreset.augment import Augmentation
from pseudocoreset.batching import full_precision
from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data.doors import check_preprocessing, check_targets
from pseudocoreset.data.records import Inputs, StoredImages
from pseudocoreset.inference.chains import summarise
from pseudocoreset.inference.data import Minibatch
from pseudocoreset.inference.guards import (
    warn_of_augmentation,
    warn_of_divergences,
    warn_of_heat,
    warn_of_large_steps,
    warn_of_no_mode,
)
from pseudocoreset.inference.posterior import (
    Posterior,
    library_versions,
    split_arrays,
)
from pseudocoreset.inference.posterior.draw_files import DrawFiles, digest_of
from pseudocoreset.inference.running import NUM_BLOCKS, Run
from pseudocoreset.inference.setup import set_up
from pseudocoreset.inference.streaming import StoredRows
from pseudocoreset.inference.tuning import reported_options
from pseudocoreset.inference.validation import (
    input_struct,
    resolve_data,
    resolve_keep,
    resolve_predict_on,
    stored_inputs,
)
from pseudocoreset.meshes import check_mesh, replicate, split_rows
from pseudocoreset.models import Model
from pseudocoreset.validation import check_integer, check_key, key_record

__all__ = ["sample"]

KEEP_LIMIT_BYTES = 4 * 2**30
BLOCK_BYTES = 64 * 2**20
REPLACE_PREPROCESSING = (
    "; if the inputs of the coreset are right, give it their preprocessing "
    "(dataclasses.replace(coreset, preprocessing=data.preprocessing))"
)


@checked
@full_precision()
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
    init_params: Mapping[str, ArrayLike] | None = None,
    predict_on: Any = None,
    keep: str = "auto",
    deterministic: bool = False,
    chunk_size: int | None = None,
    directory: str | os.PathLike[str] | None = None,
    progress: bool = True,
    mesh: Mesh | None = None,
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
        data: ``Dataset`` (its train split), ``Pseudocoreset``, ``(x, y)`` or ``(x, y, weights)``. Training images on
            disk (``load_dataset(..., stream=True)``) are read ahead of their use, minibatch by minibatch, by SGHMC and
            SGLD, with the draws that they have in memory, up to rounding.
        kernel: ``"nuts"``, ``"hmc"``, ``"network_hmc"``, ``"adjusted_mclmc"``, whose draws are exact; ``"mclmc"``,
            ``"sghmc"``, ``"sgld"``, whose draws have a bias that the step size controls; or, for comparison only
            because its variance is wrong, ``"blackjax_sghmc"``.
        num_chains: independent chains, at least 1.
        num_warmup: steps a chain before the first draw, 0 or more. Kernels other than SGHMC and SGLD adapt in them.
        num_samples: draws a chain to keep, at least 1.
        thinning: steps from one draw to the next, at least 1.
        temperature: T, positive.
        key: one typed key, ``jax.random.key(seed)``. The same key on the same machine gives the same draws.
        batch_size: data in a minibatch, 1 to n; for the stochastic gradient kernels only. By default all data
            up to 2,000 of them, and 128 beyond.
        augment: ``"auto"``, a strategy or an ``Augmentation`` (``pseudocoreset.augment``): every gradient sees the
            images through a new one, so that the chain samples the posterior whose log-likelihood is the mean over
            augmentations, as the coreset papers evaluate, and not that of the model, which a warning says; for the
            stochastic gradient kernels only. None by default.
        step_size: of the integrator, positive. By default all kernels but SGHMC and SGLD adapt it. For a model of at
            most 300 parameters that is no network these two take it, and a preconditioner, from the curvature of the
            posterior at its mode and the noise of minibatches: right whatever the units of the columns are. Otherwise,
            with W the sum of all weights, SGHMC takes 0.1 / sqrt(max(W, 1)) and SGLD 0.01 / max(W, 1): the curvature of
            a log-likelihood grows like W, so that step times curvature does not depend on how many data there
            are (SGHMC's step squared is what optimisers call learning rate on the summed loss; W times it is
            0.01, as customary for networks). Where the prior of a network is narrower than the data call for,
            the steps are cut so that curvature times the step (squared) is at most 1 for SGHMC and 0.1 for
            SGLD.
        init_params: unconstrained starting point, ``{site: array}``, one or stacked over chains; by default
            ``model.init`` with a key per chain. SGHMC and SGLD with the preconditioner ``"curvature"``, their default
            for few parameters, look for the mode from here, and start at the mode; likewise at the centre that
            ``control_variate=True`` finds. With ``num_warmup=0`` they start here.
        predict_on: ``Split`` or ``(x, y)`` to evaluate on; by default the test split of a ``Dataset``.
        keep: ``"weights"``, ``"functions"`` (function values on ``predict_on``, and sites of at most 64
            elements), or ``"auto"``: functions for a network with something to predict on, weights otherwise.
        deterministic: also keep deterministic sites that all data share, such as a transform of a parameter, among the
            draws; those with an entry per datum, or that depend on the rows otherwise (a mean over them), are not kept.
        chunk_size: rows of data evaluated at once, which bounds memory; chosen by the size of an input. With batch
            norm, where it changes the posterior, all rows of a gradient are by default.
        directory: where to keep the run while it goes on: draws are written there as they are made, so that their
            size is bounded by the disk (the arrays of the posterior are then memory maps), and the same call goes on
            where one that was stopped had come to, with the same bits, or reads what is finished.
        progress: whether to show a bar.
        mesh: devices that share the chains, ``jax.make_mesh((4,), ("chains",))``. Each chain is the one it is
            without, up to rounding. An axis named ``"data"``, as in ``jax.make_mesh((2, 4), ("chains", "data"))``,
            shares the rows of the data instead, for kernels that take all of them in every gradient; others, and
            networks with batch norm, have chains on it too. A run in a directory may go on with another mesh, or
            without.
        **kernel_options: for NUTS and HMC ``target_acceptance_rate`` (0.8), ``inverse_mass_matrix`` (adapted
            if not given, unless ``step_size`` is: then ones) and ``is_mass_matrix_diagonal`` (True). NUTS:
            ``max_num_doublings`` (10). HMC: ``num_integration_steps`` (10; on a nearly Gaussian posterior
            a trajectory, step size times this, close to a multiple of pi mixes slowly, which NUTS avoids).
            Network HMC: ``trajectory_length`` (for networks pi / 2 times the root mean square scale of the prior and
            the root of T), in as many steps as it takes, at most ``max_num_steps`` (1000), each length multiplied by a
            number within ``trajectory_jitter`` (0.2) of one; ``target_acceptance_rate`` (0.8), ``inverse_mass_matrix``
            (a diagonal; ones). MCLMC: ``energy_variance`` (5e-4), the variance of the change of energy of a step, per
            parameter, that the tuning aims at; ``decoherence_length`` (tuned, or given with ``step_size``);
            ``inverse_mass_matrix``, and ``diagonal_preconditioning`` (True), whether to adapt it. Adjusted MCLMC: those
            two, ``target_acceptance_rate`` (0.9), and ``mean_integration_steps`` (2) of a proposal.
            SGHMC: ``friction`` (-log(0.9) / step_size, so that the momentum keeps a factor 0.9 a step).
            SGHMC and SGLD: ``schedule``, how the step size changes: ``"constant"``, ``"polynomial"``, ``"cyclical"`` or
            one of ``pseudocoreset.inference.schedules``; draws of a decreasing step size are to be weighted by it.
            ``preconditioner``: ``"curvature"``, the inverse of the negative Hessian of the log density at the mode that
            Newton's method finds from where the chain starts (at most 300 parameters; the chain starts there);
            ``"rmsprop"``, for each site the least root mean square gradient of any site divided by its own, estimated
            during the warmup and then frozen; a diagonal inverse mass, positive arrays by site or one vector, given
            with ``step_size``; None; or ``"auto"``, the default: curvature where ``step_size`` has its default, the
            model is no network of more, and nothing is augmented or on disk, else None. ``control_variate``: True, or a
            point ``{site: array}``: gradients of minibatches are corrected by those at a centre, which for True L-BFGS
            finds from where the chain starts, or the mode of the curvature; chains then start at the centre. By default
            with that curvature alone.
            ``"blackjax_sghmc"``: ``friction`` and ``num_integration_steps``.

    Returns:
        ``Posterior``. Its ``sample_stats`` hold ``lp``, the log density at temperature one, or
        ``lp_estimate`` where gradients come from minibatches or augmented images; with thinning, ``diverging`` tells
        of any and ``n_steps`` counts all steps since the draw before.

    Raises:
        TypeError, ValueError: for arguments that do not fit, before anything is compiled; or if ``directory`` holds
            another run.
        OSError: if the disk of ``directory`` has no room for the draws; BlockingIOError if another process is at it.
        FloatingPointError: when a chain leaves the finite numbers.
    """
    started = time.perf_counter()
    check_key(key)
    mesh = check_mesh(mesh)
    num_chains = check_integer(num_chains, "num_chains")
    num_samples = check_integer(num_samples, "num_samples")

    source = resolve_data(data, takes_bytes=not model.is_network)
    model, targets = source.bind(model)
    split = resolve_predict_on(predict_on, data)
    held_out: tuple[np.ndarray, np.ndarray] | None = None
    held_out_preprocessing = None
    if split is not None:
        inputs, held_out_preprocessing = stored_inputs(split)
        held_out_struct = input_struct(inputs, held_out_preprocessing)
        held_out = inputs[:], check_targets(model, held_out_struct, split.y, "predict_on", takes_soft=False)
        check_preprocessing(
            source.summary,
            split.preprocessing.summary,
            "data",
            "predict_on",
            "Load both alike, or give predict_on=(x, y) with x as the model is to see them"
            + (REPLACE_PREPROCESSING if isinstance(data, Pseudocoreset) else ""),
        )
    setup = set_up(
        model,
        kernel,
        kernel_options,
        num_data=len(source.inputs),
        feature_shape=source.inputs.shape[1:],
        mesh=mesh,
        num_chains=num_chains,
        num_warmup=num_warmup,
        num_samples=num_samples,
        thinning=thinning,
        temperature=temperature,
        batch_size=batch_size,
        step_size=step_size,
        init_params=init_params,
        chunk_size=chunk_size,
        preprocessing=source.preprocessing,
        held_out_preprocessing=held_out_preprocessing,
        keep_weights=resolve_keep(keep, model, split is not None),
        augment=augment,
        data_name=source.name,
        is_on_disk=isinstance(source.inputs, StoredImages),
    )
    plan, shapes = setup.plan, setup.shapes
    if deterministic and not plan.keep_weights:
        raise ValueError("deterministic=True needs the draws of all sites; take keep='weights'")

    def completed(posterior: Posterior) -> Posterior:
        posterior = posterior.with_model(model)
        return posterior.with_deterministic() if deterministic else posterior

    num_warmup, thinning, temperature = setup.num_warmup, setup.thinning, setup.temperature
    warn_of_augmentation(plan)
    kept = jax.eval_shape(lambda params, rows: summarise(plan, params, {}, rows), shapes, held_out)
    bytes_per_draw = num_chains * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    if directory is None:
        _check_size(bytes_per_draw * num_samples)

    weights = np.asarray(source.weights, jnp.result_type(float))
    rows: Minibatch | StoredRows
    if isinstance(source.inputs, StoredImages):
        setup.check_reads_from_disk()
        rows = StoredRows(source.inputs, targets, weights)
    else:
        stored = source.inputs, targets, weights
        rows = Minibatch(*(split_rows(stored, mesh) if plan.splits_data else replicate(stored, mesh)))
    init_key, run_key = jax.random.split(key)
    total_weight = float(np.sum(source.weights, dtype=np.float64))
    positions, tuning, step_size = setup.start(init_key, total_weight)
    if isinstance(rows, Minibatch):
        positions, tuning = setup.centred(positions, tuning, rows)
    run = Run(
        plan=plan,
        key=run_key,
        num_warmup=num_warmup,
        num_samples=num_samples,
        thinning=thinning,
        # Short enough to show progress and bound memory, long enough that the host costs nothing.
        block=max(1, min(math.ceil(num_samples / NUM_BLOCKS), BLOCK_BYTES // max(1, bytes_per_draw))),
        rows=rows,
        held_out=None if held_out is None else replicate(held_out, mesh),
        progress=progress,
    )
    identity = {
        "model": model.name,
        "sites": {name: list(leaf.shape) for name, leaf in shapes.items()},
        "data": digest_of(_identified_inputs(source.inputs), targets, source.weights),
        "predict_on": None if split is None else digest_of(*split_arrays(split).values()),
        "kernel": kernel,
        "options": {name: _identified(value) for name, value in setup.options.items()},
        "step_size": step_size,
        "temperature": temperature,
        "num_chains": num_chains,
        "num_warmup": num_warmup,
        "num_samples": num_samples,
        "thinning": thinning,
        "batch_size": plan.batch_size,
        "augment": repr(plan.augment),
        "init_params": digest_of(*(init_params or {}).values()),
        "keep": "weights" if plan.keep_weights else "functions",
        "key": key_record(key),
    }
    with contextlib.nullcontext() if directory is None else DrawFiles(directory, identity, split) as files:
        if files is not None and files.is_finished:
            return completed(files.load())
        arrays, tuning, seconds = run(positions, init_params is not None, tuning, files)
        earlier = seconds.pop("earlier")
        stats = {name.removeprefix("sample_stats/"): leaf for name, leaf in arrays.items()}
        warn_of_divergences(stats, kernel)
        warn_of_no_mode(tuning)
        warn_of_heat(stats, plan, tuning, thinning)
        warn_of_large_steps(stats, plan, tuning)
        metadata = {
            "model": model.name,
            "sites": identity["sites"],
            "coreset": {"digest": data.digest, "num_data": data.num_data} if isinstance(data, Pseudocoreset) else None,
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
            "preprocessing": source.summary,
            "step_size": np.asarray(tuning["step_size"]).tolist(),
            "options": reported_options(setup.options, tuning),
            "keep": identity["keep"],
            "key": {
                "implementation": str(jax.random.key_impl(key)),
                "data": np.asarray(jax.random.key_data(key)).tolist(),
            },
            "backend": jax.default_backend(),
            "versions": library_versions(),
            "seconds": {
                **{name: round(value, 3) for name, value in seconds.items()},
                "total": round(earlier + time.perf_counter() - started, 3),
            },
        }
        if files is not None:
            return completed(files.finish(metadata))
    return completed(replace(Posterior.from_flat(arrays, metadata, None), predict_on=split))


def _identified(option: Any) -> str:
    """An option in words, arrays by their digest."""
    leaves = jax.tree.leaves(option)
    return digest_of(*leaves) if any(isinstance(leaf, np.ndarray | jax.Array) for leaf in leaves) else repr(option)


def _identified_inputs(inputs: Inputs) -> np.ndarray:
    return np.asarray(inputs.fingerprint) if isinstance(inputs, StoredImages) else inputs


def _check_size(num_bytes: int) -> None:
    if num_bytes > KEEP_LIMIT_BYTES:
        raise ValueError(
            f"the draws to keep would take {num_bytes / 2**30:.1f} GiB, more than the limit of "
            f"{KEEP_LIMIT_BYTES / 2**30:.0f}; take keep='functions', a smaller predict_on, or fewer draws "
            "(num_samples) further apart (thinning); or give directory, which keeps them on disk"
        )
