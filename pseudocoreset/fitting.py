"""The one optimisation loop, and the ``fit_*`` front doors."""

from __future__ import annotations

import enum
import functools
import importlib.metadata
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pseudocoreset.augment import Augmentation, resolve_augmentation
from pseudocoreset.checkpoint import Checkpointer
from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data import Dataset
from pseudocoreset.device import DeviceData
from pseudocoreset.experts import Experts, fingerprint, train_experts
from pseudocoreset.models import Model
from pseudocoreset.objectives import CoresetArrays, Objective, function_kl
from pseudocoreset.progress import progress_bar
from pseudocoreset.proxies import FunctionProxy, Trajectory
from pseudocoreset.recipes import fbpc_recipe
from pseudocoreset.validation import check_choice, check_integer, check_key, check_positive

__all__ = ["FitResult", "Outcome", "fit", "fit_fbpc"]

logger = logging.getLogger(__name__)
MOST_SKIPPED = 10
Callback = Callable[[int, Pseudocoreset, dict[str, float]], bool | None]


class Outcome(enum.Enum):
    """How a fit ended, with a sentence that a person can read."""

    COMPLETED = "All steps were done."
    STOPPED = "A callback asked to stop."
    NON_FINITE = (
        f"Stopped: {MOST_SKIPPED} steps in a row had a gradient that was not finite. The coreset is the last finite "
        "one; use a smaller step size, or younger experts."
    )


@dataclass(frozen=True, eq=False)
class FitResult:
    """What a fit returns.

    Attributes:
        coreset: the learned coreset.
        history: scalars by name, one value a step done, ``(steps,)`` each; with several models their names carry the
            index of the model.
        outcome: how it ended.
        state: final state of the loop: arrays, optimiser state, objective states.
        seconds: wall time of this call.
    """

    coreset: Pseudocoreset
    history: dict[str, np.ndarray]
    outcome: Outcome
    state: Any
    seconds: float

    def __repr__(self) -> str:
        steps = len(next(iter(self.history.values()), ()))
        return f"FitResult({self.coreset!r}, {steps} steps in {self.seconds:.1f} s. {self.outcome.value})"


class _Loop(NamedTuple):
    """Everything that is carried from step to step."""

    arrays: CoresetArrays
    optimizer: Any
    objectives: tuple[Any, ...]
    skipped: jax.Array  # steps in a row with a gradient that was not finite


def fit(
    objective: Objective | Sequence[Objective],
    data: Dataset,
    *,
    coreset: Pseudocoreset | None = None,
    images_per_class: int | None = None,
    size: int | None = None,
    key: jax.Array,
    steps: int,
    optimizer: optax.GradientTransformation,
    experts: Experts | Sequence[Experts] | None = None,
    weights: str = "ones",
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: str | os.PathLike[str] | None = None,
    block_size: int = 10,
    progress: bool = True,
) -> FitResult:
    """Optimise the inputs of a coreset under one objective, or under the sum of several (one a model).

    Steps run in compiled blocks without a return to the host. A step whose gradient is not finite is skipped. With a
    ``checkpoint_dir`` the whole state is written between blocks, and a run that was stopped, called again with the
    same arguments, ends with the same bits as one that was not.

    Args:
        objective: from ``pseudocoreset.objectives``; a sequence adds up their gradients (multi-architecture).
        data: the data set.
        coreset: where to start; random real data by default, of ``images_per_class`` or ``size`` points.
        images_per_class: points of each class.
        size: number of points in all.
        key: one typed key.
        steps: number of steps.
        optimizer: acts on ``{"inputs": array}``.
        experts: snapshots for objectives that take them, one set for each objective.
        weights: mass of the weights of the start, ``"ones"`` or ``"data"``.
        callbacks: called between blocks as ``callback(step, coreset, info)``; True stops.
        checkpoint_dir: where to keep checkpoints.
        block_size: most steps a compiled block.
        progress: show a progress bar.

    Raises:
        ValueError: for arguments out of range or that do not go together.
    """
    check_key(key)
    check_integer(steps, "steps")
    check_integer(block_size, "block_size")
    objectives = (objective,) if isinstance(objective, Objective) else tuple(objective)
    if not objectives:
        raise ValueError("objective is empty; give at least one")
    expert_sets = _match_experts(objectives, experts)
    init_key, loop_key, expert_key, state_key = jax.random.split(key, 4)
    if coreset is None:
        coreset = Pseudocoreset.from_data(
            data, images_per_class=images_per_class, size=size, key=init_key, mass=weights
        )
    elif images_per_class is not None or size is not None:
        raise ValueError("give either a coreset to start from or the size of one (images_per_class, size), not both")
    elif coreset.inputs.shape[1:] != data.train.feature_shape:
        raise ValueError(
            f"coreset has inputs of shape {coreset.inputs.shape[1:]}; the data have {data.train.feature_shape}"
        )

    arrays = CoresetArrays(*map(jnp.asarray, (coreset.inputs, coreset.targets, coreset.weights)))
    states = tuple(
        o.init(k, arrays) for o, k in zip(objectives, jax.random.split(state_key, len(objectives)), strict=True)
    )
    loop = _Loop(arrays, optimizer.init({"inputs": arrays.inputs}), states, jnp.zeros((), jnp.int32))
    block = max(divisor for divisor in range(1, min(block_size, steps) + 1) if steps % divisor == 0)
    choices = [
        None if o.window is None or e is None else _snapshot_choices(jax.random.fold_in(expert_key, i), o, e, steps)
        for i, (o, e) in enumerate(zip(objectives, expert_sets, strict=True))
    ]
    device = DeviceData.from_dataset(data)
    run_block = _compile_block(objectives, optimizer)
    history: dict[str, list[np.ndarray]] = {}
    outcome, done, began = Outcome.COMPLETED, 0, time.perf_counter()
    record = functools.partial(_with_arrays, coreset, objectives)

    run = {
        "objectives": [{"name": o.name, "model": o.model.name, **o.settings} for o in objectives],
        "data": data.name,
        "data_fingerprint": fingerprint(data),
        "experts": [None if e is None else e.metadata for e in expert_sets],
        "steps": steps,
        "key": np.asarray(jax.random.key_data(key)).tolist(),
    }
    checkpoints = None if checkpoint_dir is None else Checkpointer(checkpoint_dir, run)
    try:
        saved = None if checkpoints is None else checkpoints.restore(loop)
        if saved is not None:
            done, loop, extra = saved
            history = {name: [values] for name, values in extra.items()}
            logger.info("going on from step %d of %d", done, steps)
        with progress_bar("fitting the coreset", steps, enabled=progress, completed=done) as advance:
            while done < steps:
                snapshots = tuple(
                    None if e is None or c is None else e.stack(c[done : done + block])
                    for e, c in zip(expert_sets, choices, strict=True)
                )
                loop, report = run_block(loop, loop_key, jnp.arange(done, done + block), snapshots, device)
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
                if any([callback(done, record(loop.arrays), last) for callback in callbacks]):
                    outcome = Outcome.STOPPED
                if checkpoints is not None:
                    checkpoints.save(done, loop, {name: np.concatenate(v) for name, v in history.items()})
                if outcome is Outcome.STOPPED:
                    break
    finally:
        if checkpoints is not None:
            checkpoints.__exit__()
    if outcome is not Outcome.COMPLETED:
        logger.warning("step %d of %d: %s", done, steps, outcome.value)
    fitted = record(loop.arrays)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "numpyro", "optax")}
    metadata = {**fitted.metadata, **run, "steps_done": done, "outcome": outcome.name, "versions": versions}
    return FitResult(
        coreset=replace(fitted, metadata=metadata),
        history={name: np.concatenate(values) for name, values in history.items()},
        outcome=outcome,
        state=loop,
        seconds=time.perf_counter() - began,
    )


def fit_fbpc(
    model: Model | Sequence[Model],
    data: Dataset,
    *,
    images_per_class: int | None = None,
    size: int | None = None,
    key: jax.Array,
    steps: int | None = None,
    experts: Experts | Sequence[Experts] | None = None,
    proxy: str | FunctionProxy = "trajectory",
    optimizer: optax.GradientTransformation | None = None,
    step_size: float | None = None,
    augment: Augmentation | str | None = "auto",
    weights: str = "ones",
    num_draws: int = 30,
    first_epoch: int | None = None,
    last_epoch: int | None = None,
    inner_loss: float | None = None,
    inner_learning_rate: float = 1e-3,
    inner_max_steps: int = 500,
    coreset_batch_size: int | None = None,
    num_experts: int = 10,
    num_expert_epochs: int | None = None,
    coreset: Pseudocoreset | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> FitResult:
    """Function space Bayesian pseudocoreset (FBPC; Kim, Lee and Lee 2023, Algorithm 1).

    Defaults that are None come from Table 4 of the paper for the data sets it names (nearest number of images a
    class), and are sensible elsewhere.

    Args:
        model: a model with function values, or several (multi-architecture: their gradients are summed).
        data: the data set.
        images_per_class: points of each class.
        size: number of points in all; give this or ``images_per_class``.
        key: one typed key.
        steps: N, updates of the coreset.
        experts: trajectories from ``train_experts``, one set a model; trained here if None.
        proxy: ``"trajectory"`` (Eq. 16), ``"isotropic"`` (unit variance), or one of ``pseudocoreset.proxies``.
        optimizer: acts on the inputs; SGD of step ``step_size`` by default.
        step_size: alpha.
        augment: ``"auto"``, a strategy, an ``Augmentation`` or None (see ``resolve_augmentation``).
        weights: mass of the weights, ``"ones"`` (as published) or ``"data"``. It does not change the fit, whose
            gradient is divided by it; it is carried by the coreset into its posterior.
        num_draws: S, draws of the function values a step.
        first_epoch: T, the earliest expert epoch used.
        last_epoch: the latest.
        inner_loss: gamma, the loss at which the training of a network on the coreset stops.
        inner_learning_rate: its Adam step size.
        inner_max_steps: its cap; a log line says when it is hit.
        coreset_batch_size: B, points used a step.
        num_experts: experts to train if none are given.
        num_expert_epochs: their epochs; 50, or what ``first_epoch`` asks for.
        coreset: where to start instead of random real data.
        callbacks: called between blocks as ``callback(step, coreset, info)``; True stops.
        checkpoint_dir: where to keep checkpoints; experts trained here are kept there too.
        progress: show progress bars.

    Returns:
        ``FitResult``.

    Raises:
        ValueError: for arguments out of range or that do not go together.
    """
    check_key(key)
    check_choice(weights, "weights", ("ones", "data"))
    models = (model,) if isinstance(model, Model) else tuple(model)
    if not models or not all(isinstance(m, Model) for m in models):
        raise TypeError(f"model must be a Model or a sequence of them; got {model!r}")
    if coreset is None and (images_per_class is None) == (size is None):
        raise ValueError(f"give one of images_per_class and size; got {images_per_class} and {size}")
    recipe = fbpc_recipe(data.name, images_per_class)
    models = tuple(m.bind(data.train.raw, data.train.y) for m in models)
    augmentation = resolve_augmentation(augment, data)
    expert_key, fit_key = jax.random.split(key)
    first = recipe.first_epoch if first_epoch is None else check_integer(first_epoch, "first_epoch", minimum=0)
    if proxy == "trajectory":
        proxy = Trajectory(
            data_learning_rate=recipe.data_learning_rate,
            coreset_learning_rate=recipe.coreset_learning_rate,
            batch_size=min(256, data.train.num_data),
        )
    objectives = [
        function_kl(
            m,
            proxy=proxy,
            num_draws=num_draws,
            first_epoch=first,
            last_epoch=last_epoch,
            inner_loss=recipe.inner_loss if inner_loss is None else inner_loss,
            inner_learning_rate=inner_learning_rate,
            inner_max_steps=inner_max_steps,
            coreset_batch_size=recipe.coreset_batch_size if coreset_batch_size is None else coreset_batch_size,
            augment=augmentation,
        )
        for m in models
    ]
    if optimizer is None:
        alpha = recipe.step_size if step_size is None else check_positive(step_size, "step_size")
        optimizer = optax.sgd(alpha)
    elif step_size is not None:
        raise ValueError("give optimizer or step_size, not both")
    if coreset is None:
        # Chosen before the experts are trained: a size that the data do not have must not cost an hour first.
        coreset = Pseudocoreset.from_data(
            data,
            images_per_class=images_per_class,
            size=size,
            key=jax.random.fold_in(fit_key, 0),
            mass=weights,
        )
    if experts is None:
        epochs = max(50, first) if num_expert_epochs is None else num_expert_epochs
        logger.info("no experts given: training %d of %d epochs for each model", num_experts, epochs)
        experts = [
            train_experts(
                m,
                data,
                num_experts=num_experts,
                num_epochs=epochs,
                key=jax.random.fold_in(expert_key, i),
                batch_size=min(256, data.train.num_data),
                augment=augmentation,
                directory=None if checkpoint_dir is None else os.path.join(checkpoint_dir, f"experts-{i}"),
                progress=progress,
            )
            for i, m in enumerate(models)
        ]
    result = fit(
        objectives,
        data,
        coreset=coreset,
        key=fit_key,
        steps=recipe.steps if steps is None else steps,
        optimizer=optimizer,
        experts=experts,
        callbacks=callbacks,
        checkpoint_dir=checkpoint_dir,
        progress=progress,
    )
    metadata = {**result.coreset.metadata, "objective": "fbpc", "images_per_class": images_per_class}
    return replace(result, coreset=replace(result.coreset, metadata=metadata))


def _match_experts(
    objectives: tuple[Objective, ...], experts: Experts | Sequence[Experts] | None
) -> tuple[Experts | None, ...]:
    """One set of experts an objective, checked against what it takes."""
    if experts is None:
        sets: tuple[Experts | None, ...] = (None,) * len(objectives)
    else:
        sets = (experts,) if isinstance(experts, Experts) else tuple(experts)
    if len(sets) != len(objectives):
        raise ValueError(f"experts must be one set for each of the {len(objectives)} models; got {len(sets)}")
    for objective, one in zip(objectives, sets, strict=True):
        if objective.window is None:
            continue
        if one is None:
            raise ValueError(f"experts: {objective.name} takes expert trajectories; make them with train_experts")
        last = one.num_epochs if objective.window.last is None else objective.window.last
        if not objective.window.first <= last <= one.num_epochs:
            raise ValueError(
                f"first_epoch={objective.window.first} and last_epoch={objective.window.last} do not fit experts of "
                f"{one.num_epochs} epochs"
            )
        wanted = {site.name: list(site.unconstrained_shape) for site in objective.model._bound.sites}
        if one.metadata["sites"] != wanted:
            raise ValueError(
                f"experts were trained on another model ({one.metadata['model']}, {one.metadata['num_params']} "
                f"parameters) than {objective.model.name} ({objective.model.num_params} parameters)"
            )
    return sets


def _snapshot_choices(key: jax.Array, objective: Objective, experts: Experts, steps: int) -> list[tuple[int, int]]:
    """(expert, epoch) for every step; that of a step depends on nothing but the key and the step."""
    assert objective.window is not None
    first = objective.window.first
    last = experts.num_epochs if objective.window.last is None else objective.window.last

    def choose(step: jax.Array) -> tuple[jax.Array, jax.Array]:
        expert_key, epoch_key = jax.random.split(jax.random.fold_in(key, step))
        expert = jax.random.randint(expert_key, (), 0, experts.num_experts)
        return expert, jax.random.randint(epoch_key, (), first, last + 1)

    chosen = jax.vmap(choose)(jnp.arange(steps))
    return list(zip(np.asarray(chosen[0]).tolist(), np.asarray(chosen[1]).tolist(), strict=True))


def _compile_block(
    objectives: tuple[Objective, ...], optimizer: optax.GradientTransformation
) -> Callable[..., tuple[_Loop, dict[str, jax.Array]]]:
    def one_step(loop: _Loop, item: Any, key: jax.Array, data: DeviceData) -> tuple[_Loop, dict[str, jax.Array]]:
        step, snapshots = item
        total, states = None, []
        report: dict[str, jax.Array] = {}
        for i, objective in enumerate(objectives):
            step_key = jax.random.fold_in(jax.random.fold_in(key, step), i)
            gradient, state, info = objective.gradient(step_key, loop.objectives[i], loop.arrays, data, snapshots[i])
            total = gradient if total is None else jax.tree.map(jnp.add, total, gradient)
            states.append(state)
            report |= {name if len(objectives) == 1 else f"{name}_{i}": value for name, value in info.items()}
        free = {"inputs": loop.arrays.inputs}
        updates, optimizer_state = optimizer.update(total, loop.optimizer, free)
        moved = optax.apply_updates(free, updates)
        proposal = _Loop(loop.arrays._replace(**moved), optimizer_state, tuple(states), jnp.zeros_like(loop.skipped))
        finite = jnp.all(jnp.isfinite(optax.tree.norm((total, moved))))
        stay = loop._replace(skipped=loop.skipped + 1)
        report["gradient_norm"] = optax.tree.norm(total)
        report["inputs_rms"] = jnp.sqrt(jnp.mean(proposal.arrays.inputs**2))
        report["skipped"] = ~finite
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), proposal, stay), report

    @jax.jit
    def run_block(
        loop: _Loop, key: jax.Array, numbers: jax.Array, snapshots: Any, data: DeviceData
    ) -> tuple[_Loop, dict[str, jax.Array]]:
        return jax.lax.scan(lambda carry, item: one_step(carry, item, key, data), loop, (numbers, snapshots))

    return run_block


def _with_arrays(coreset: Pseudocoreset, objectives: tuple[Objective, ...], arrays: CoresetArrays) -> Pseudocoreset:
    inputs, targets, weights = map(np.asarray, arrays)
    metadata = {**coreset.metadata, "objective": "+".join(o.name for o in objectives)}
    return replace(coreset, inputs=inputs, targets=targets, weights=weights, metadata=metadata)


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
