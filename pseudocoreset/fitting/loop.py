"""The one optimisation loop."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from pseudocoreset.arguments import checked
from pseudocoreset.compute.backends import full_precision
from pseudocoreset.compute.devices import Devices
from pseudocoreset.compute.memory import MemoryEstimate
from pseudocoreset.compute.progress import progress_bar
from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data import Dataset
from pseudocoreset.data.doors import check_start
from pseudocoreset.data.fingerprints import fingerprint
from pseudocoreset.data.levels import warn_of_missing_levels
from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.experts import Experts
from pseudocoreset.files.checkpoints import Checkpointer
from pseudocoreset.fitting.block import Constraints, Loop, compile_block
from pseudocoreset.fitting.leaves import (
    Box,
    kept_mass,
    soften,
    to_free,
)
from pseudocoreset.fitting.memory import block_memory, check_memory, raise_if_exhausted
from pseudocoreset.fitting.outcome import MOST_SKIPPED, FitResult, Outcome, advise, find_rise
from pseudocoreset.fitting.snapshots import match_experts, snapshot_choices, snapshots_of
from pseudocoreset.methods.base import Callback
from pseudocoreset.objectives import Objective
from pseudocoreset.rows import Rows
from pseudocoreset.validation import check_integer, check_key, key_record

__all__ = ["Plan", "optimise", "prepare", "run"]

logger = logging.getLogger(__name__)


class _Keys(NamedTuple):
    """The keys of a fit."""

    loop: jax.Array
    experts: jax.Array
    states: jax.Array


@dataclass(frozen=True, eq=False)
class Plan:
    """A fit whose arguments and shapes are checked. Nothing has run.

    Attributes:
        objectives: one for each model.
        optimizer: acts on a dictionary of the free leaves.
        data: the data set.
        coreset: where to start.
        arrays: those of ``coreset``, as the loop has them.
        constraints: what learned weights keep of their mass, and where learned inputs may go.
        is_soft: whether targets are class probabilities.
        steps: number of steps.
        block_size: steps of a compiled block, a divisor of ``steps``.
        key: of the fit, for the record.
        keys: split from it.
        fixed: inputs to hold, for the record.
        devices: that share the work.
    """

    objectives: tuple[Objective, ...]
    optimizer: optax.GradientTransformation
    data: Dataset
    coreset: Pseudocoreset
    arrays: Rows
    constraints: Constraints
    is_soft: bool
    steps: int
    block_size: int
    key: jax.Array
    keys: _Keys
    fixed: tuple[str | int, ...]
    devices: Devices

    def begin(self, device: DeviceData) -> Loop:
        """The state of the loop before its first step."""
        keys = jax.random.split(self.keys.states, len(self.objectives))
        states = tuple(o.init(k, self.arrays, device) for o, k in zip(self.objectives, keys, strict=True))
        free = to_free(self.arrays, self.objectives[0].free, self.is_soft)
        nothing = {name: jnp.zeros(getattr(self.arrays, name).shape, bool) for name in self.objectives[0].free}
        start = self.optimizer.init(free)
        return Loop(self.arrays, free, start, states, jnp.zeros((), jnp.int32), self.arrays, nothing)

    @property
    def run_block(self) -> Callable[..., tuple[Loop, dict[str, jax.Array]]]:
        """The compiled block."""
        return compile_block(self.objectives, self.optimizer, self.is_soft)

    @full_precision()
    def memory(self) -> MemoryEstimate:
        """What the fit needs of its device. A block is compiled, and nothing runs.

        Raises:
            MemoryError: if the compiler itself runs out of memory.
        """
        device = DeviceData.shapes_of(self.data, self.devices)
        return self._memory(jax.eval_shape(self.begin, device), device)

    def _memory(self, loop: Loop, device: DeviceData) -> MemoryEstimate:
        first = (loop, self.constraints, self.keys.loop, np.arange(self.block_size))
        return block_memory(self.run_block, first, device, self.objectives)

    def record(self, experts: Sequence[Experts | None]) -> dict[str, Any]:
        """What tells this run from others, JSON-able."""
        run = {
            "objectives": [{"name": o.name, "model": o.model.name, **o.settings} for o in self.objectives],
            "data": self.data.name,
            "data_fingerprint": fingerprint(self.data),
            "experts": [None if e is None else e.metadata for e in experts],
            "steps": self.steps,
            "key": key_record(self.key),
        }
        return run | ({"fixed": list(self.fixed)} if self.fixed else {})

    def coreset_of(self, arrays: Rows) -> Pseudocoreset:
        """A coreset with the arrays of the loop."""
        inputs, targets, weights = map(np.asarray, arrays)
        metadata = {**self.coreset.metadata, "objective": "+".join(o.name for o in self.objectives)}
        return replace(self.coreset, inputs=inputs, targets=targets, weights=weights, metadata=metadata)


@checked
@full_precision()
def optimise(
    objective: Objective | Sequence[Objective],
    data: Dataset,
    *,
    coreset: Pseudocoreset | None = None,
    images_per_class: int | None = None,
    size: int | None = None,
    key: jax.Array,
    steps: int,
    optimizer: optax.GradientTransformation | Mapping[str, optax.GradientTransformation],
    experts: Experts | Sequence[Experts] | None = None,
    weights: str | None = None,
    fixed: Sequence[str | int] = (),
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: str | os.PathLike[str] | None = None,
    block_size: int = 10,
    progress: bool = True,
    mesh: Mesh | None = None,
) -> FitResult:
    """Optimise the free leaves of a coreset under one objective, or under the sum of several (one for each model).

    The loop under ``fit``, for objectives of your own. Steps run in compiled blocks without a return to the host. Free
    weights are projected onto non-negative numbers after each step, and keep their mass, or that of each class, where
    the objective does not determine it (``Objective.mass``); free class targets become probabilities, 0.9 on the label
    at the start, learned through their logits. A step whose gradient or loss is not finite, or that leaves no weight
    above zero, is skipped; after a fit that ends on such steps the coreset is the last whose gradient and loss were
    finite, with advice. With a ``checkpoint_dir`` the whole state is written between blocks, and a run that was
    stopped, called again with the same arguments, ends with the same bits as one that was not.

    Args:
        objective: from ``pseudocoreset.objectives``; a sequence adds up their gradients (multi-architecture).
        data: the data set.
        coreset: where to start; random real data by default, of ``images_per_class`` or ``size`` points.
        images_per_class: points of each class.
        size: number of points in all.
        key: one typed key.
        steps: number of steps.
        optimizer: acts on a dictionary of the free leaves, ``{"inputs": array}``; or one optimiser for each of them,
            by name.
        experts: snapshots for objectives that take them, one set for each objective.
        weights: mass of the weights of the start, ``"ones"`` or ``"data"``; None for ones, or for those of ``coreset``.
        fixed: inputs to hold as they are in the points of the start; see ``fit``.
        callbacks: called between blocks as ``callback(step, coreset, info)``; True stops.
        checkpoint_dir: where to keep checkpoints.
        block_size: most steps of a compiled block.
        progress: show a progress bar.
        mesh: devices that share the work of a step; see ``fit``.

    Raises:
        TypeError, ValueError: for arguments out of range or that do not go together.
        MemoryError: for a fit that needs more memory than its device has (see ``estimate_memory``).
    """
    plan = prepare(
        objective,
        data,
        coreset=coreset,
        images_per_class=images_per_class,
        size=size,
        key=key,
        steps=steps,
        optimizer=optimizer,
        weights=weights,
        fixed=fixed,
        block_size=block_size,
        mesh=mesh,
    )
    return run(plan, experts=experts, callbacks=callbacks, checkpoint_dir=checkpoint_dir, progress=progress)


def prepare(
    objective: Objective | Sequence[Objective],
    data: Dataset,
    *,
    coreset: Pseudocoreset | None = None,
    images_per_class: int | None = None,
    size: int | None = None,
    key: jax.Array,
    steps: int,
    optimizer: optax.GradientTransformation | Mapping[str, optax.GradientTransformation],
    weights: str | None = None,
    fixed: Sequence[str | int] = (),
    block_size: int = 10,
    mesh: Mesh | None = None,
) -> Plan:
    """All checks and shapes of a fit; ``optimise`` documents the arguments.

    Raises:
        TypeError, ValueError: for arguments out of range or that do not go together.
    """
    check_key(key)
    check_integer(steps, "steps")
    check_integer(block_size, "block_size")
    devices = Devices.of(mesh)
    objectives = (objective,) if isinstance(objective, Objective) else tuple(objective)
    if not objectives:
        raise ValueError("objective is empty; give at least one")
    names = objectives[0].free
    if any(o.free != names for o in objectives):
        raise ValueError(f"objective: all must free the same leaves; got {[o.free for o in objectives]}")
    if isinstance(optimizer, Mapping):
        if set(optimizer) != set(names):
            raise ValueError(f"optimizer names {sorted(optimizer)}; the free leaves are {sorted(names)}")
        optimizer = optax.partition(dict(optimizer), {name: name for name in names})
    init_key, *keys = jax.random.split(key, 4)
    if coreset is None:
        coreset = Pseudocoreset.from_data(
            data, images_per_class=images_per_class, size=size, key=init_key, mass=weights or "ones"
        )
    elif images_per_class is not None or size is not None:
        raise ValueError("give either a coreset to start from or the size of one (images_per_class, size), not both")
    else:
        check_start(coreset, data, weights=weights)
        if not coreset.preprocessing.is_known:
            coreset = replace(coreset, preprocessing=data.preprocessing)
    warn_of_missing_levels(coreset, data)
    if coreset.targets.ndim == 2:
        # Said once: real targets in training may come to look like probabilities.
        coreset = replace(coreset, holds_probabilities=coreset.is_soft)
    arrays = Rows(*map(jnp.asarray, (coreset.packed, coreset.targets, coreset.weights)))
    if "targets" in names:
        arrays = arrays._replace(targets=soften(arrays.targets, data.num_classes))
    kept = kept_mass(arrays, [o.mass for o in objectives]) if "weights" in names else None
    is_bounded = not any(o.model.is_network for o in objectives)
    box = Box.of(data.train, arrays.inputs, fixed, is_bounded=is_bounded) if "inputs" in names else None
    return Plan(
        objectives=objectives,
        optimizer=optimizer,
        data=data,
        coreset=coreset,
        arrays=arrays,
        constraints=(kept, box),
        is_soft=coreset.is_soft or data.num_classes is not None,
        steps=steps,
        block_size=max(divisor for divisor in range(1, min(block_size, steps) + 1) if steps % divisor == 0),
        key=key,
        keys=_Keys(*keys),
        fixed=tuple(fixed),
        devices=devices,
    )


@full_precision()
def run(
    plan: Plan,
    *,
    experts: Experts | Sequence[Experts] | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> FitResult:
    """The steps of a plan; ``optimise`` documents the arguments.

    Raises:
        ValueError: for experts that do not fit.
        MemoryError: for a fit that needs more memory than its device has.
    """
    began = time.perf_counter()
    objectives, data, steps, block = plan.objectives, plan.data, plan.steps, plan.block_size
    expert_sets = match_experts(objectives, experts, data)
    device = DeviceData.from_dataset(data, plan.devices)
    loop = plan.devices.replicate(plan.begin(device))
    check_memory(plan._memory(loop, device), objectives)
    choices = [
        None
        if o.window is None or e is None
        else snapshot_choices(jax.random.fold_in(plan.keys.experts, i), o, e, steps)
        for i, (o, e) in enumerate(zip(objectives, expert_sets, strict=True))
    ]
    history: dict[str, list[np.ndarray]] = {}
    outcome, done = Outcome.COMPLETED, 0
    record = plan.record(expert_sets)
    checkpoints = None if checkpoint_dir is None else Checkpointer(checkpoint_dir, record)
    try:
        saved = None if checkpoints is None else checkpoints.restore(loop)
        if saved is not None:
            done, loop, extra = saved
            history = {name: [values] for name, values in extra.items()}
            logger.info("going on from step %d of %d", done, steps)
            loop = plan.devices.replicate(loop)
        with progress_bar("fitting the coreset", steps, enabled=progress, completed=done) as advance:
            while done < steps:
                snapshots = tuple(
                    () if e is None or c is None else snapshots_of(o, e, c[done : done + block])
                    for o, e, c in zip(objectives, expert_sets, choices, strict=True)
                )
                numbers = np.arange(done, done + block)
                loop, report = plan.run_block(loop, plan.constraints, plan.keys.loop, numbers, snapshots, device)
                info = {name: np.asarray(values) for name, values in report.items()}
                for name, values in info.items():
                    history.setdefault(name, []).append(values)
                done += block
                _log_capped(info, done)
                advance(block, f"loss {np.mean(info['loss']):.3f}" if "loss" in info else "")
                if int(loop.skipped) >= MOST_SKIPPED:
                    outcome = Outcome.NON_FINITE
                    break
                last = {name: float(values[-1]) for name, values in info.items()}
                if any([callback(done, plan.coreset_of(loop.arrays), last) for callback in callbacks]):
                    outcome = Outcome.STOPPED
                if checkpoints is not None:
                    checkpoints.save(done, loop, {name: np.concatenate(v) for name, v in history.items()})
                if outcome is Outcome.STOPPED:
                    break
    except jax.errors.JaxRuntimeError as error:
        raise_if_exhausted(error, objectives)
        raise
    finally:
        if checkpoints is not None:
            checkpoints.__exit__()
    series = {name: np.concatenate(parts) for name, parts in history.items()}
    return _result(plan, loop, series, outcome, done, record, time.perf_counter() - began)


def _result(
    plan: Plan,
    loop: Loop,
    series: dict[str, np.ndarray],
    outcome: Outcome,
    done: int,
    record: dict[str, Any],
    seconds: float,
) -> FitResult:
    """What the loop ended with, and what is to be said of it."""
    rise, advice = find_rise(plan.objectives, series), ""
    is_stuck = int(loop.skipped) > 0
    if is_stuck:
        if np.all(series["skipped"]):
            outcome = Outcome.NON_FINITE
        first = done - int(loop.skipped) + 1
        key = jax.random.fold_in(plan.key, done)
        advice = advise(plan.objectives, plan.coreset, loop.arrays, loop.lost, series, first, key)
    elif rise is not None:
        advice = (
            "The coreset is further from the full posterior than where it started. Take a smaller step size, or use "
            "the start."
        )
    if outcome is not Outcome.COMPLETED or advice:
        worse = "" if rise is None else f"worse than its start: {rise}. "
        logger.warning("step %d of %d: %s%s %s", done, plan.steps, worse, outcome.value, advice)
    fitted = plan.coreset_of(loop.good if is_stuck else loop.arrays)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "numpyro", "optax")}
    metadata = {**fitted.metadata, **record, "steps_done": done, "outcome": outcome.name, "versions": versions}
    return FitResult(
        coreset=replace(fitted, metadata=metadata),
        history=series,
        outcome=outcome,
        state=loop,
        seconds=seconds,
        advice=advice,
        rise=rise,
    )


def _log_capped(info: dict[str, np.ndarray], done: int) -> None:
    for name, capped in info.items():
        if name.startswith("inner_capped") and np.any(capped):
            loss = info[name.replace("capped", "loss")]
            logger.info(
                "steps up to %d: the training on the coreset met its cap (inner_max_steps) in %d of %d steps, "
                "at a mean loss of %.3g",
                done,
                int(np.sum(capped)),
                len(capped),
                float(np.mean(loss[capped])),
            )
