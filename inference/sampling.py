"""``sample``: chains of one kernel on a model's posterior, run together in compiled blocks of draws."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from pseudocoreset.arguments import checked
from pseudocoreset.compute.backends import full_precision
from pseudocoreset.compute.devices import Devices
from pseudocoreset.compute.limits import limits
from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data import Dataset
from pseudocoreset.data.augmentation import Augmentation
from pseudocoreset.data.doors import check_preprocessing, check_targets
from pseudocoreset.data.fingerprints import fingerprint
from pseudocoreset.data.sources.records import Inputs, StoredImages
from pseudocoreset.inference.engine.guards import warn_of_augmentation
from pseudocoreset.inference.engine.kernel import Kernel, Tuning
from pseudocoreset.inference.engine.plan import Plan, Run
from pseudocoreset.inference.engine.prepare import Start, set_up, start_of
from pseudocoreset.inference.engine.running import Given, bytes_per_draw, run_chains
from pseudocoreset.inference.engine.stored import StoredRows
from pseudocoreset.inference.kernels.registry import resolve_kernel
from pseudocoreset.inference.posterior import Posterior, library_versions, split_arrays
from pseudocoreset.inference.posterior.draw_files import DrawFiles, digest_of
from pseudocoreset.inference.validation import (
    Source,
    input_struct,
    resolve_data,
    resolve_keep,
    resolve_predict_on,
    stored_inputs,
)
from pseudocoreset.models import Model
from pseudocoreset.rows import Rows
from pseudocoreset.validation import check_integer, check_key, key_record

__all__ = ["sample"]

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
    kernel: str | Kernel = "sghmc",
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
        kernel: a name, whose options are among ``kernel_options``, or a kernel that holds its own, such as
            ``SGHMC(friction=1.0)``; the classes of ``pseudocoreset.inference`` document them. Exact draws:
            ``"nuts"`` (``NUTS``), ``"hmc"`` (``HMC``), ``"network_hmc"`` (``NetworkHMC``), ``"adjusted_mclmc"``
            (``AdjustedMCLMC``). Draws with a bias that the step size controls: ``"mclmc"`` (``MCLMC``), ``"sghmc"``
            (``SGHMC``), ``"sgld"`` (``SGLD``). For comparison only, because its variance is wrong:
            ``"blackjax_sghmc"`` (``BlackjaxSGHMC``). For one of your own see ``docs/add-a-kernel.md``.
        num_chains: independent chains, at least 1.
        num_warmup: steps a chain before the first draw, 0 or more. Kernels other than SGHMC and SGLD adapt in them.
        num_samples: draws a chain to keep, at least 1.
        thinning: steps from one draw to the next, at least 1.
        temperature: T, positive.
        key: one typed key, ``jax.random.key(seed)``. The same key on the same machine gives the same draws.
        batch_size: data in a minibatch, 1 to n; for the stochastic gradient kernels only. By default all data
            up to 2,000 of them, and 128 beyond.
        augment: ``"auto"``, a strategy or an ``Augmentation`` (``pseudocoreset.data.augmentation``): every gradient
            sees the images through a new one, so that the chain samples the posterior whose log-likelihood is the
            mean over augmentations, as the coreset papers evaluate, and not that of the model, which a warning says;
            for the stochastic gradient kernels only. None by default.
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
        **kernel_options: options of a kernel that is given by its name: the fields of its class.

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
    devices = Devices.of(mesh)
    num_chains = check_integer(num_chains, "num_chains")
    num_samples = check_integer(num_samples, "num_samples")
    kernel = resolve_kernel(kernel, kernel_options)

    source = resolve_data(data, takes_bytes=not model.is_network)
    model, targets = source.bind(model)
    held_out = _held_out(model, source, resolve_predict_on(predict_on, data), isinstance(data, Pseudocoreset))
    run = set_up(
        model,
        kernel,
        num_data=len(source.rows.inputs),
        feature_shape=source.rows.inputs.shape[1:],
        devices=devices,
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
        held_out_preprocessing=held_out.preprocessing,
        keep_weights=resolve_keep(keep, model, held_out.split is not None),
        augment=augment,
        data_name=source.name,
        is_on_disk=isinstance(source.rows.inputs, StoredImages),
    )
    if deterministic and not run.plan.keep_weights:
        raise ValueError("deterministic=True needs the draws of all sites; take keep='weights'")
    warn_of_augmentation(run.plan)
    if directory is None:
        _check_size(bytes_per_draw(run, held_out.arrays) * num_samples)

    rows = _placed(source, targets, run.plan)
    init_key, run_key = jax.random.split(key)
    start = _started(run, init_key, source, rows)
    given = Given(rows, None if held_out.arrays is None else devices.replicate(held_out.arrays))
    identity = {
        **_identity(run, start, source, targets, held_out),
        "init_params": digest_of(*(init_params or {}).values()),
        "key": key_record(key),
    }
    with contextlib.nullcontext() if directory is None else DrawFiles(directory, identity, held_out.split) as files:
        if files is not None and files.is_finished:
            posterior = files.load()
        else:
            arrays, tuning, seconds = run_chains(run, start, run_key, given, files, progress=progress)
            run.kernel.warn({name.removeprefix("sample_stats/"): leaf for name, leaf in arrays.items()}, run, tuning)
            seconds["total"] = seconds.pop("earlier") + time.perf_counter() - started
            metadata = _metadata(run, tuning, source, data, key, seconds)
            if files is not None:
                posterior = files.finish(metadata)
            else:
                posterior = replace(Posterior.from_flat(arrays, metadata, None), predict_on=held_out.split)
    posterior = posterior.with_model(model)
    return posterior.with_deterministic() if deterministic else posterior


class _HeldOut(NamedTuple):
    """What draws are evaluated on: the split, its inputs and targets as they go to the device, and what is left to do.

    All None where there is nothing.
    """

    split: Any = None
    arrays: tuple[np.ndarray, np.ndarray] | None = None
    preprocessing: Any = None


def _held_out(model: Model, source: Source, split: Any, is_coreset: bool) -> _HeldOut:
    """The split, checked against the model and what is sampled on."""
    if split is None:
        return _HeldOut()
    inputs, preprocessing = stored_inputs(split)
    targets = check_targets(model, input_struct(inputs, preprocessing), split.y, "predict_on", takes_soft=False)
    check_preprocessing(
        source.summary,
        split.preprocessing.summary,
        "data",
        "predict_on",
        "Load both alike, or give predict_on=(x, y) with x as the model is to see them"
        + (REPLACE_PREPROCESSING if is_coreset else ""),
    )
    return _HeldOut(split, (inputs[:], targets), preprocessing)


def _placed(source: Source, targets: np.ndarray, plan: Plan) -> Rows | StoredRows:
    """Training data where the chains take them from."""
    weights = np.asarray(source.rows.weights, jnp.result_type(float))
    if isinstance(source.rows.inputs, StoredImages):
        return StoredRows(source.rows.inputs, targets, weights)
    return plan.devices.place(Rows(source.rows.inputs, targets, weights))


def _total_weight(source: Source) -> float:
    return float(np.sum(source.rows.weights, dtype=np.float64))


def _started(run: Run, key: jax.Array, source: Source, rows: Rows | StoredRows) -> Start:
    start = start_of(run, key, _total_weight(source))
    if not (run.is_centred and isinstance(rows, Rows)):
        return start
    positions, tuning = run.kernel.centred(run, start.positions, start.tuning, rows)
    return start._replace(positions=positions, tuning=tuning)


def _settings(run: Run) -> dict[str, Any]:
    """What a run in a directory is identified by and its posterior says alike."""
    return {
        "model": run.plan.model.name,
        "sites": {name: list(leaf.shape) for name, leaf in run.shapes.items()},
        "kernel": run.kernel.name,
        "temperature": run.temperature,
        "num_chains": run.num_chains,
        "num_warmup": run.num_warmup,
        "num_samples": run.num_samples,
        "thinning": run.thinning,
        "batch_size": run.plan.batch_size,
        "keep": "weights" if run.plan.keep_weights else "functions",
    }


def _identity(run: Run, start: Start, source: Source, targets: np.ndarray, held_out: _HeldOut) -> dict[str, Any]:
    """What a run in a directory is identified by, but for the key and the starting points."""
    return {
        **_settings(run),
        "data": digest_of(_identified_inputs(source.rows.inputs), targets, source.rows.weights),
        "predict_on": None if held_out.split is None else digest_of(*split_arrays(held_out.split).values()),
        "options": {name: _identified(value) for name, value in run.kernel.options().items()},
        "step_size": start.step_size,
        "augment": repr(run.plan.augment),
    }


def _metadata(
    run: Run, tuning: Tuning, source: Source, data: Any, key: jax.Array, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """What a posterior says of the run that made it."""
    return {
        **_settings(run),
        "num_data": run.plan.num_data,
        "total_weight": _total_weight(source),
        "augment": None if run.plan.augment is None else run.plan.augment.strategy,
        "preprocessing": source.summary,
        "data_fingerprint": fingerprint(data) if isinstance(data, Dataset) else None,
        "step_size": np.asarray(tuning["step_size"]).tolist(),
        "options": run.kernel.reported(tuning),
        "key": {
            "implementation": str(jax.random.key_impl(key)),
            "data": np.asarray(jax.random.key_data(key)).tolist(),
        },
        "backend": jax.default_backend(),
        "versions": library_versions(),
        "coreset": {"digest": data.digest, "num_data": data.num_data} if isinstance(data, Pseudocoreset) else None,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }


def _identified(option: Any) -> str:
    """An option in words, arrays by their digest."""
    leaves = jax.tree.leaves(option)
    return digest_of(*leaves) if any(isinstance(leaf, np.ndarray | jax.Array) for leaf in leaves) else repr(option)


def _identified_inputs(inputs: Inputs) -> np.ndarray:
    return np.asarray(inputs.fingerprint) if isinstance(inputs, StoredImages) else inputs


def _check_size(num_bytes: int) -> None:
    most = limits().kept_bytes
    if num_bytes > most:
        raise ValueError(
            f"the draws to keep would take {num_bytes / 2**30:.1f} GiB, more than the limit of "
            f"{most / 2**30:.0f}; take keep='functions', a smaller predict_on, or fewer draws "
            "(num_samples) further apart (thinning); or give directory, which keeps them on disk"
        )
