"""What stands before the first step of any chains: checked settings, starting points and tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from pseudocoreset.compute.devices import Devices
from pseudocoreset.data.augmentation import Augmentation
from pseudocoreset.inference.data import default_chunk_size, held_out_chunk_size
from pseudocoreset.inference.engine.blocks import initial_positions
from pseudocoreset.inference.engine.kernel import Kernel, Tuning, per_chain
from pseudocoreset.inference.engine.plan import ON_DISK, Plan, Run
from pseudocoreset.inference.validation import resolve_augment, resolve_batch_size, resolve_init_params
from pseudocoreset.models import Model, Params
from pseudocoreset.validation import check_integer, check_positive

__all__ = ["Start", "set_up", "start_of"]


class Start(NamedTuple):
    """Where chains start and what they are tuned to.

    positions
        Of every chain.
    tuning
        Of every chain; a step size that is missing is adapted.
    step_size
        Given, or the default of the kernel; None where it is adapted.
    """

    positions: Params
    tuning: Tuning
    step_size: float | None


def start_of(run: Run, key: jax.Array, total_weight: float) -> Start:
    """Everything about the start of chains but what ``Kernel.centred`` finds in the data.

    Args:
        run: what was asked of them.
        key: of the starting points.
        total_weight: sum of the weights of the data.
    """
    positions, step_size = run.init_params, run.step_size
    if positions is None:
        positions = initial_positions(run.plan, jax.random.split(key, run.num_chains))
    if step_size is None:
        step_size = run.kernel.default_step_size(run.plan, positions, total_weight)
    if step_size is None and not run.kernel.adapts:
        raise ValueError(f"kernel {run.kernel.name!r} neither adapts a step size nor has a default; give step_size")
    values = {"temperature": run.temperature}
    if step_size is not None:
        values["step_size"] = step_size
    tuning = per_chain(values, positions) | run.kernel.tuning(run, positions, step_size)
    return Start(positions, tuning, step_size)


def set_up(
    model: Model,
    kernel: Kernel,
    *,
    num_data: int,
    feature_shape: tuple[int, ...],
    num_chains: int,
    num_warmup: int,
    num_samples: int,
    thinning: int,
    temperature: float,
    batch_size: int | None,
    step_size: float | None,
    init_params: Mapping[str, Any] | None = None,
    chunk_size: int | None = None,
    preprocessing: Any = None,
    held_out_preprocessing: Any = None,
    keep_weights: bool = True,
    augment: Augmentation | str | None = None,
    data_name: str = "",
    devices: Devices | None = None,
    is_on_disk: bool = False,
) -> Run:
    """Check what is asked of a kernel on a model and data; nothing is compiled.

    Args:
        model: a bound model.
        kernel: as given.
        num_data: data, of ...
        feature_shape: ... this stored shape each.
        num_chains: chains, checked.
        num_warmup: steps of a chain before the first draw.
        num_samples: draws of a chain, checked.
        thinning: steps from draw to draw.
        temperature: T.
        batch_size: data in a minibatch; None for the default of the kernel.
        step_size: None for a default or adaptation.
        init_params: starting points; None for those of ``model.init``.
        chunk_size: rows evaluated at once; None for a default by the size of an input.
        preprocessing: of the stored inputs.
        held_out_preprocessing: of stored held-out inputs.
        keep_weights: whether draws hold all sites.
        augment: of every gradient's inputs, as given.
        data_name: by which ``augment="auto"`` chooses.
        devices: that share the chains; the default one if None.
        is_on_disk: whether the data are read from disk, minibatch by minibatch.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    num_warmup = check_integer(num_warmup, "num_warmup", 0)
    thinning = check_integer(thinning, "thinning")
    temperature = check_positive(temperature, "temperature")
    if step_size is not None:
        step_size = check_positive(step_size, "step_size")
    elif kernel.adapts and num_warmup == 0:
        raise ValueError(
            f"num_warmup=0 leaves kernel {kernel.name!r} no steps to adapt in; give step_size, or some warmup"
        )
    if chunk_size is not None:
        chunk_size = check_integer(chunk_size, "chunk_size")
    rows_at_once = chunk_size or default_chunk_size(model, feature_shape)
    plan = Plan(
        model=model,
        kernel=kernel.compiled_form(),
        num_data=num_data,
        batch_size=resolve_batch_size(batch_size, num_data, kernel),
        preprocessing=preprocessing,
        held_out_preprocessing=held_out_preprocessing,
        held_out_chunk_size=chunk_size or held_out_chunk_size(model, feature_shape),
        keep_weights=keep_weights,
        augment=resolve_augment(augment, kernel, feature_shape, data_name),
        devices=(devices or Devices()).for_draws_of(model).in_chunks_of(rows_at_once),
    )
    if plan.has_exact_density and (model.is_separable or not model.is_network):
        # A gradient is a sum over all rows, and no other: devices share those too.
        plan = dataclasses.replace(plan, devices=plan.devices.splitting_rows())
    run = Run(
        plan=plan,
        kernel=kernel,
        step_size=step_size,
        temperature=temperature,
        num_chains=num_chains,
        num_warmup=num_warmup,
        num_samples=num_samples,
        thinning=thinning,
        is_on_disk=is_on_disk,
    )
    if is_on_disk:
        _check_reads_from_disk(run)
    kernel = kernel.for_run(run)
    return dataclasses.replace(
        run,
        kernel=kernel,
        plan=dataclasses.replace(plan, kernel=kernel.compiled_form()),
        init_params=resolve_init_params(init_params, run.shapes, num_chains),
    )


def _check_reads_from_disk(run: Run) -> None:
    """Refuse what needs all data at once.

    Raises:
        ValueError: naming the argument.
    """
    if not run.kernel.uses_minibatches:
        raise ValueError(
            f"{ON_DISK}; kernel {run.kernel.name!r} takes all of them in every gradient. Take kernel='sghmc' or "
            "'sgld', or data in memory"
        )
    if run.plan.batch_size is None:
        raise ValueError(f"{ON_DISK}; give batch_size, less than the {run.plan.num_data} data")
    if run.kernel.adapts and run.step_size is None:
        raise ValueError(f"{ON_DISK}; kernel {run.kernel.name!r} adapts its step size on all of them: give step_size")
