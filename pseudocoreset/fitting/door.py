"""``fit``: one door for every method."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import jax
from jax.sharding import Mesh

from pseudocoreset.arguments import checked, described
from pseudocoreset.compute.backends import full_precision
from pseudocoreset.compute.devices import Devices
from pseudocoreset.compute.memory import MemoryEstimate
from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data import Dataset
from pseudocoreset.data.doors import bind_to, check_start
from pseudocoreset.data.on_device import check_in_memory
from pseudocoreset.experts import Experts
from pseudocoreset.fitting.automatic import Attempt, attempt
from pseudocoreset.fitting.outcome import FitResult
from pseudocoreset.fitting.running import Way, choose, learn, planned, with_verdict
from pseudocoreset.methods import (
    BACON,
    FBPC,
    BPCForwardKL,
    BPCReverseKL,
    BPCWasserstein,
    DistributionMatching,
    GradientMatching,
    Learned,
    Method,
    Problem,
    TrajectoryMatching,
)
from pseudocoreset.methods.base import NUM_EXPERTS, Callback
from pseudocoreset.models import Model
from pseudocoreset.objectives import Objective
from pseudocoreset.subsets import GIGA, Chosen, Curvature, Herding, KCentres, Random, SparseVI
from pseudocoreset.validation import check_integer, check_key

__all__ = ["METHODS", "estimate_memory", "fit", "method_class"]

logger = logging.getLogger(__name__)
METHODS: Mapping[str, type[Method]] = {
    cls.name: cls
    for cls in (
        FBPC,
        BPCReverseKL,
        BPCForwardKL,
        BPCWasserstein,
        GradientMatching,
        TrajectoryMatching,
        DistributionMatching,
        BACON,
        Random,
        Herding,
        KCentres,
        GIGA,
        SparseVI,
        Curvature,
    )
}


@checked
@full_precision()
def fit(
    model: Model | Sequence[Model],
    data: Dataset,
    method: str | Method | type[Method] = "auto",
    *,
    images_per_class: int | None = None,
    size: int | None = None,
    key: jax.Array,
    coreset: Pseudocoreset | None = None,
    experts: Experts | Sequence[Experts] | None = None,
    num_experts: int = NUM_EXPERTS,
    num_expert_epochs: int | None = None,
    fixed: Sequence[str | int] = (),
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    mesh: Mesh | None = None,
    verdict: bool = True,
    **settings: Any,
) -> FitResult:
    """Learn or choose a coreset whose posterior is to match that of the data.

    Args:
        model: a model, or several (multi-architecture: their gradients are summed).
        data: the data set.
        method: ``"auto"``; the name of a method; or its settings as a dataclass of ``pseudocoreset.methods`` or
            ``pseudocoreset.subsets``, ``FBPC(num_draws=50)`` say. ``"auto"`` takes ``"fbpc"`` for networks; for
            other models of at most 1,000 parameters ``"curvature"``, where the posterior has a mode and ``size`` points
            match its curvature; where they are fewer than it takes the nearer of that and ``"bpc_fkl"``; else
            ``"bpc_rkl"``. The result says which, and why.
        images_per_class: points of each class.
        size: number of points in all; give this or ``images_per_class``. ``"curvature"`` finds it where both are left
            out.
        key: one typed key.
        coreset: where to start instead of random real data.
        experts: trajectories from ``train_experts``, one set for each model; trained here if None and the method
            needs them.
        num_experts: experts to train if none are given.
        num_expert_epochs: their epochs; 50, or the number that the method needs.
        fixed: inputs to hold as they are at the start: arrays of a dictionary by name, or columns of inputs (n, p) by
            position. Integers and booleans in a dictionary never move. Of models that are no networks, a column whose
            data are all positive stays at or above half of its least datum, one that is nowhere negative at or above
            zero, and either at or above the least value of the start if that is smaller; columns that are nowhere
            positive likewise, from above.
        callbacks: called between blocks of steps as ``callback(step, coreset, info)``; True stops.
        checkpoint_dir: where to keep checkpoints, and the experts trained here. The same call goes on there.
        progress: show progress bars.
        mesh: devices that share the work of a step, ``jax.make_mesh((4,), ("devices",))``: the draws (and chains) of
            the forward and reverse KL divergence, the classes of matching methods and BACON, the networks of FBPC
            (``num_networks``), else the draws of a linearised proxy; with an axis called ``"data"``,
            ``jax.make_mesh((4,), ("data",))``, the data of every batch of FBPC; and the experts trained here. What
            remains each device does for itself. A run with checkpoints may go on with another mesh, or without.
        verdict: whether to judge the coreset at the end: how far its posterior is from that of all data, by draws of
            both. That takes about as long as a fast fit; ``docs/judging-a-coreset.md`` explains it. Of networks
            nothing is computed, and the verdict is NOT KNOWN.
        **settings: of the method, by name; ``help(FBPC)`` says what there is.

    Returns:
        ``FitResult``.

    Raises:
        TypeError, ValueError: for arguments out of range or that do not go together.
        MemoryError: for a fit that needs more memory than its device has (see ``estimate_memory``).

    Example:
        >>> result = fit(model, data, "fbpc", images_per_class=10, key=jax.random.key(0))  # doctest: +SKIP
    """
    given = {
        "coreset": coreset is not None,
        "experts": experts is not None,
        "num_experts": num_experts != NUM_EXPERTS,
        "num_expert_epochs": num_expert_epochs is not None,
        "fixed": len(fixed) > 0,
        "callbacks": len(callbacks) > 0,
        "checkpoint_dir": checkpoint_dir is not None,
        "mesh": mesh is not None,
    }
    problem = _posed(model, data, key, images_per_class, size, coreset, experts, num_experts, num_expert_epochs)
    way = Way(tuple(callbacks), checkpoint_dir, progress, Devices.of(mesh).mesh, tuple(fixed))
    result = _fitted(problem, method, settings, given, way)
    return with_verdict(result, problem) if verdict else result


def _fitted(
    problem: Problem,
    method: str | Method | type[Method],
    settings: dict[str, Any],
    given: Mapping[str, bool],
    way: Way,
) -> FitResult:
    """The result of the method, or of what ``"auto"`` takes."""
    tried: Attempt | None = None
    if isinstance(method, str) and method == "auto":
        tried = attempt(problem, settings, given, way)
        if tried.other is None:
            return tried.taken
        method = tried.other
    chosen = _with_settings(method, settings, problem)
    _check_count(chosen, problem, "" if tried is None else tried.why)
    useless = [name for name, is_given in given.items() if is_given and name not in chosen.takes]
    if useless:
        raise TypeError(f"{useless[0]}: the method {chosen.name!r} has no use for it; leave it out")
    if problem.start is not None and isinstance(chosen, Learned):
        check_start(problem.start, problem.data, weights=chosen.weights)
    chosen = chosen.resolved(problem)
    if isinstance(chosen, Learned):
        result = learn(chosen, problem, way)
        return result if tried is None else tried.nearest(result)
    if isinstance(chosen, Chosen):
        return choose(chosen, problem, way)
    raise TypeError(f"method must be a Learned or a Chosen method; got {type(chosen).__name__}")


@checked
@full_precision()
def estimate_memory(
    model: Any,
    data: Any,
    method: Any = "auto",
    *,
    images_per_class: int | None = None,
    size: int | None = None,
    coreset: Pseudocoreset | None = None,
    fixed: Sequence[str | int] = (),
    mesh: Mesh | None = None,
    **settings: Any,
) -> MemoryEstimate:
    """What a fit will need on its device: its block of steps is compiled, and the compiler asked. Nothing runs.

    Compilation takes as long as it does in the fit; with JAX's persistent cache (``jax_compilation_cache_dir``) only
    once. Experts are not trained and need not be given; the memory of training them is not counted, nor that of the
    full-data posterior that some objectives compute before the first step. Off the device the data lie in memory a
    second time.

    Args:
        model: as in ``fit``. ``estimate_memory(fit_fbpc, model, data, ...)`` is understood too.
        data: as in ``fit``.
        method: as in ``fit``; one that learns.
        images_per_class: as in ``fit``.
        size: as in ``fit``.
        coreset: as in ``fit``.
        fixed: as in ``fit``.
        mesh: as in ``fit``.
        **settings: whatever else ``fit`` would be given.

    Returns:
        ``MemoryEstimate``; printed it reads as a sentence.

    Raises:
        ValueError: for a method that runs no compiled block, as those that choose real data.
        MemoryError: if the compiler itself runs out of memory.

    Example:
        >>> print(estimate_memory(model, data, "fbpc", images_per_class=10))  # doctest: +SKIP
        31 MB: 24 MB of temporaries, ...
    """
    if hasattr(model, "method"):
        model, data, method = data, method, model.method
    for name in ("callbacks", "checkpoint_dir", "progress", "verdict"):
        settings.pop(name, None)
    key = settings.pop("key", jax.random.key(0))
    trained = [
        settings.pop(name, default) for name, default in (("num_experts", NUM_EXPERTS), ("num_expert_epochs", None))
    ]
    problem = _posed(model, data, key, images_per_class, size, coreset, settings.pop("experts", None), *trained)
    chosen = _with_settings(method, settings, problem)
    _check_count(chosen, problem)
    chosen = chosen.resolved(problem)
    if not isinstance(chosen, Learned):
        raise ValueError(f"method={chosen.name!r} runs no compiled block of steps whose memory could be estimated")
    check_in_memory(problem.data.train)
    return planned(chosen, problem, Way(mesh=Devices.of(mesh).mesh, fixed=tuple(fixed))).memory()


def method_class(name: str) -> type[Method]:
    """The method of this name, or the class at ``"package.module:Class"``.

    Raises:
        ValueError: for an unknown name.
    """
    if name in METHODS:
        return METHODS[name]
    module, separator, attribute = name.partition(":")
    if not separator:
        known = ", ".join(map(repr, METHODS))
        raise ValueError(f"method={name!r} is unknown; use one of {known}, 'auto', or 'package.module:Class'")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        is_missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        remedy = f"; put the folder of {error.name} on PYTHONPATH, or install it" if is_missing else ""
        raise ValueError(f"method={name!r}: {error}{remedy}") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ValueError(f"method={name!r} must name a class of Method; got {found!r}")
    return found


def _with_settings(method: str | Method | type[Method], settings: dict[str, Any], problem: Problem) -> Method:
    """The method as an instance, with the settings that were given by name."""
    is_class = isinstance(method, type) and issubclass(method, Method)
    if not (is_class or isinstance(method, str | Method)):
        raise TypeError(f"method must be a name, a Method or a class of Method; got {described(method)}")
    if isinstance(method, str) and method == "auto":
        method = FBPC if problem.are_networks else BPCReverseKL
    if isinstance(method, str):
        method = method_class(method)
    known = [field.name for field in fields(method)]
    for name in settings:
        if name not in known:
            raise TypeError(f"the method {method.name!r} has no setting {name!r}; it has {', '.join(known)}")
    return replace(method, **settings) if isinstance(method, Method) else method(**settings)


def _check_count(method: Method, problem: Problem, why: str = "") -> None:
    """Refuse a problem without a number of points, but for a method that finds it; ``why`` it is not curvature."""
    given = (problem.images_per_class, problem.size, problem.start)
    if not method.finds_size and all(one is None for one in given):
        why = f". {method.name!r} needs it, which is taken for: {why}" if why else ""
        raise ValueError(f"give one of images_per_class and size; got None and None{why}")


def _posed(
    model: Model | Sequence[Model],
    data: Dataset,
    key: jax.Array,
    images_per_class: int | None,
    size: int | None,
    coreset: Pseudocoreset | None,
    experts: Experts | Sequence[Experts] | None,
    num_experts: int,
    num_expert_epochs: int | None,
) -> Problem:
    """The problem, checked.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    check_key(key)
    if isinstance(model, Objective):
        raise TypeError("model must be a Model; for an objective of your own use pseudocoreset.fitting.optimise")
    models = (model,) if isinstance(model, Model) else tuple(model) if isinstance(model, Sequence) else ()
    if not models or not all(isinstance(m, Model) for m in models):
        raise TypeError(f"model must be a Model or a sequence of them; got {described(model)}")
    if not isinstance(data, Dataset):
        raise TypeError(f"data must be a Dataset; got {described(data)}")
    if coreset is None and images_per_class is not None and size is not None:
        raise ValueError(f"give one of images_per_class and size; got {images_per_class} and {size}")
    bound = tuple(bind_to(m, data) for m in models)
    if coreset is not None:
        check_start(coreset, data, images_per_class=images_per_class, size=size)
    if num_expert_epochs is not None:
        check_integer(num_expert_epochs, "num_expert_epochs")
    sets = (experts,) if isinstance(experts, Experts) else experts
    if sets is not None and not sets:
        raise ValueError("experts is empty; give the experts of train_experts, or None to have them trained here")
    return Problem(
        models=bound,
        data=data,
        key=key,
        images_per_class=images_per_class,
        size=size,
        start=coreset,
        experts=None if sets is None else tuple(sets),
        num_experts=num_experts,
        num_expert_epochs=num_expert_epochs,
    )
