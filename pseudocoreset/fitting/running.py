"""How a method runs: one that learns, with its experts and its start, and one that chooses."""

from __future__ import annotations

import importlib.metadata
import itertools
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data.fingerprints import fingerprint
from pseudocoreset.data.levels import warn_of_missing_levels
from pseudocoreset.data.on_device import check_in_memory
from pseudocoreset.experts import Experts, train_experts
from pseudocoreset.fitting.keeping import keep_better
from pseudocoreset.fitting.loop import Plan, prepare, run
from pseudocoreset.fitting.outcome import FitResult, Outcome
from pseudocoreset.fitting.verdict import Level, Verdict, judge
from pseudocoreset.methods import Learned, Problem
from pseudocoreset.methods.base import EXPERT_EPOCHS, Callback
from pseudocoreset.models import Model
from pseudocoreset.objectives.posteriors import NoModeError
from pseudocoreset.subsets import Chosen, Random
from pseudocoreset.validation import key_record

__all__ = ["Way", "choose", "learn", "planned", "random_points", "with_verdict"]

logger = logging.getLogger(__name__)
# Learning rates of experts trained here: the next where columns on raw scales, or noise near zero, overflow.
EXPERT_RATES = (0.01, 1e-3, 1e-4, 1e-5, 1e-6)


@dataclass(frozen=True)
class Way:
    """How a fit runs, beside what it computes."""

    callbacks: tuple[Callback, ...] = ()
    checkpoint_dir: str | os.PathLike[str] | None = None
    progress: bool = True
    mesh: Mesh | None = None
    fixed: tuple[str | int, ...] = ()


def learn(method: Learned, problem: Problem, way: Way) -> FitResult:
    """The result of a method that learns; of what stands in for it where there is no mode."""
    check_in_memory(problem.data.train)
    try:
        return _learned(method, problem, way)
    except NoModeError as error:
        instead = method.without_mode(problem, way.progress)
        if instead is None:
            raise
        words, other = instead
        logger.warning("%s. %s", str(error).split(". Take ")[0], words)
        return _learned(other, problem, way)


def planned(method: Learned, problem: Problem, way: Way) -> Plan:
    """The plan of a method that learns: start, objectives and optimiser. Nothing runs."""
    start = problem.start
    if start is None:
        start = method.first_start(problem)
    fit_key = jax.random.split(problem.key)[1]
    if start is None:
        start = Pseudocoreset.from_data(
            problem.data,
            images_per_class=problem.images_per_class,
            size=problem.size,
            key=jax.random.fold_in(fit_key, 0),
            mass="ones" if method.weights == "ones" else "data",
        )
    assert method.steps is not None
    return prepare(
        [method.objective(m, problem) for m in problem.models],
        problem.data,
        coreset=start,
        key=fit_key,
        steps=method.steps,
        optimizer=method.default_optimizer(problem) if method.optimizer is None else method.optimizer,
        fixed=way.fixed,
        mesh=way.mesh,
    )


def _learned(method: Learned, problem: Problem, way: Way) -> FitResult:
    plan = planned(method, problem, way)
    wants_experts = any(objective.window is not None for objective in plan.objectives)
    experts: Sequence[Experts] | None = problem.experts if wants_experts else None
    if wants_experts and experts is None:
        experts = _train(method, problem, way)
    result = run(
        plan,
        experts=experts,
        callbacks=way.callbacks,
        checkpoint_dir=way.checkpoint_dir,
        progress=way.progress,
    )
    extra: dict[str, Any] = {"objective": method.name, "images_per_class": problem.images_per_class}
    if "step_size" in result.history:  # learned with the points: that at which networks are to be trained on them
        extra["learned_step_size"] = float(result.history["step_size"][-1])
    result = replace(result, coreset=replace(result.coreset, metadata=result.coreset.metadata | extra))
    start = plan.coreset
    # With the mass of ones the posterior is not to be that of all data.
    if method.weights == "learned" or not np.isclose(start.mass, start.size):
        result = keep_better(result, problem.models, problem.data, start)
    return replace(result, coreset=method.finished(result.coreset))


def _train(method: Learned, problem: Problem, way: Way) -> list[Experts]:
    expert_key = jax.random.split(problem.key)[0]
    epochs = problem.num_expert_epochs
    if epochs is None:
        epochs = max(EXPERT_EPOCHS, method.least_epochs())
    logger.info("no experts given: training %d of %d epochs for each model", problem.num_experts, epochs)
    mesh = way.mesh
    if mesh is not None and problem.num_experts >= mesh.size:
        # Enough for every device: none has to share its minibatches, whatever the axes are called.
        mesh = Mesh(mesh.devices.ravel(), ("experts",))

    def train(i: int, one: Model, rate: float) -> Experts:
        # The first rate is that of ``train_experts``, in the directory that it has always had.
        place = f"experts-{i}" if rate == EXPERT_RATES[0] else f"experts-{i}-rate-{rate:g}"
        return train_experts(
            one,
            problem.data,
            num_experts=problem.num_experts,
            num_epochs=epochs,
            key=jax.random.fold_in(expert_key, i),
            learning_rate=rate,
            batch_size=min(256, problem.data.train.num_data),
            augment=method.augmentation,
            directory=None if way.checkpoint_dir is None else os.path.join(way.checkpoint_dir, place),
            progress=way.progress,
            mesh=mesh,
        )

    def trained(i: int, one: Model) -> Experts:
        for rate, following in itertools.pairwise(EXPERT_RATES):
            try:
                return train(i, one, rate)
            except FloatingPointError:
                logger.info("experts left the finite numbers at the learning rate %g: trying %g", rate, following)
        return train(i, one, EXPERT_RATES[-1])

    return [trained(i, m) for i, m in enumerate(problem.models)]


def choose(method: Chosen, problem: Problem, way: Way) -> FitResult:
    """The result of a method that chooses; its coreset stays the choice, where random points are nearer it says so."""
    began = time.perf_counter()
    choice = method.choose(problem, way.callbacks, way.progress)
    record = {
        "objective": method.name,
        "settings": choice.settings,
        "data": problem.data.name,
        "data_fingerprint": fingerprint(problem.data),
        "images_per_class": problem.images_per_class,
        "key": key_record(problem.key),
        "versions": {library: importlib.metadata.version(library) for library in ("jax", "numpyro")},
    }
    coreset = replace(choice.coreset, metadata=choice.coreset.metadata | record)
    warn_of_missing_levels(coreset, problem.data)
    outcome = Outcome.STOPPED if choice.was_stopped else Outcome.COMPLETED
    result = FitResult(
        coreset,
        choice.history,
        outcome,
        None,
        time.perf_counter() - began,
        choice.advice,
        posterior=choice.posterior,
    )
    has_mass_of_ones = choice.settings.get("mass") == "ones"
    if not method.is_compared or has_mass_of_ones or problem.are_networks:
        return result
    random = None if isinstance(method, Random) else random_points(problem, coreset)
    return keep_better(result, problem.models, problem.data, random, "random subset", replaces=False)


def random_points(problem: Problem, coreset: Pseudocoreset) -> Pseudocoreset:
    """Random points to hold a coreset against: as many as were asked for, or as it has, with the mass of the data."""
    size = problem.size
    if problem.images_per_class is None and size is None:
        size = min(coreset.size, problem.data.train.num_data)
    return Pseudocoreset.from_data(
        problem.data,
        images_per_class=problem.images_per_class,
        size=size,
        key=jax.random.fold_in(problem.key, 1),
        mass="data",
    )


def with_verdict(result: FitResult, problem: Problem) -> FitResult:
    """The result with the verdict on its coreset, which its metadata hold too; POOR is a warning."""
    coreset = result.coreset
    # Chosen, or learned, with weights of one: points that are not to have the scale of all data.
    has_mass_of_ones = np.isclose(coreset.mass, coreset.size) and not np.isclose(coreset.mass, coreset.num_data)
    if problem.are_networks:
        verdict = Verdict(Level.NOT_KNOWN, reason="the posterior of a network has many modes")
    elif len(problem.models) > 1:
        verdict = Verdict(Level.NOT_KNOWN, reason="there are several models")
    elif has_mass_of_ones:
        why = "its mass is the number of points, not that of the data, which coreset.with_mass('data') gives it"
        verdict = Verdict(Level.NOT_KNOWN, reason=why)
    else:
        verdict = _judged(result, problem)
    if verdict.level is Level.POOR:
        logger.warning("%s", verdict)
    metadata = coreset.metadata | {"verdict": verdict.as_dict()}
    return replace(result, coreset=replace(coreset, metadata=metadata), verdict=verdict)


def _judged(result: FitResult, problem: Problem) -> Verdict:
    """The verdict by draws; where judging fails, what it failed of: the fit is not to be lost with it."""
    at_mode = (result.coreset.metadata.get("at_mode") or {}).get("nats")
    is_random = result.coreset.metadata.get("objective") == Random.name
    try:
        return judge(
            problem.models[0],
            problem.data,
            result.coreset,
            key=jax.random.fold_in(problem.key, 2),
            uniform=None if is_random else random_points(problem, result.coreset),
            posterior=result.posterior,
            at_mode=at_mode,
        )
    except Exception as error:
        logger.warning("the coreset could not be judged", exc_info=True)
        what = str(error).strip().splitlines() or [""]
        reason = f"judging it failed with {type(error).__name__}: {what[0]}"
        return Verdict(Level.NOT_KNOWN, at_mode=at_mode, reason=reason)
