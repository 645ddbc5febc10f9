"""``evaluate``: what a coreset is worth, by a named protocol."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, overload

import jax
import numpy as np
from jax.sharding import Mesh

from pseudocoreset.arguments import checked
from pseudocoreset.compute.backends import full_precision
from pseudocoreset.compute.devices import Devices
from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data import Dataset, Split
from pseudocoreset.data.doors import bind_to, check_start, check_targets
from pseudocoreset.evaluation.protocol import Protocol, Scored, Task, resolve_protocol
from pseudocoreset.evaluation.result import Evaluation, Evaluations
from pseudocoreset.formatting import number
from pseudocoreset.inference.posterior import library_versions
from pseudocoreset.models import Model
from pseudocoreset.validation import check_choice, check_key, key_record

__all__ = ["evaluate"]

SPLITS = ("validation", "test")


@checked
@overload
def evaluate(
    coreset: Pseudocoreset,
    model: Model,
    data: Dataset,
    *,
    protocol: str | Protocol = ...,
    key: jax.Array,
    split: str = ...,
    validation_fraction: float = ...,
    mesh: Mesh | None = ...,
    progress: bool = ...,
    **settings: Any,
) -> Evaluation: ...


@checked
@overload
def evaluate(
    coreset: Pseudocoreset,
    model: Sequence[Model] | Mapping[str, Model],
    data: Dataset,
    *,
    protocol: str | Protocol = ...,
    key: jax.Array,
    split: str = ...,
    validation_fraction: float = ...,
    mesh: Mesh | None = ...,
    progress: bool = ...,
    **settings: Any,
) -> Evaluations: ...


@checked
@full_precision()
def evaluate(
    coreset: Pseudocoreset,
    model: Model | Sequence[Model] | Mapping[str, Model],
    data: Dataset,
    *,
    protocol: str | Protocol = "default",
    key: jax.Array,
    split: str = "validation",
    validation_fraction: float = 0.1,
    mesh: Mesh | None = None,
    progress: bool = True,
    **settings: Any,
) -> Evaluation | Evaluations:
    """What a coreset is worth to a network that sees nothing else, scored once on held-out data.

    Validation data are the default, so that a choice between coresets costs no look at the test split, which has to be
    asked for; a protocol scores its last state or its draws, never the best of several looks. Where the data set
    carries no validation split, a part of its training data is taken, the same for the same key. A coreset that was
    learned from all training data has then been learned from these too, and scores a little better on them than on new
    data: good for comparisons of coresets of the same data, not for claims. To have it clean, split first
    (``data.split_validation``), and learn the coreset from what is left.

    Args:
        coreset: what to evaluate.
        model: a network, not necessarily the one that the coreset was learned with; or several, by name or one after
            the other (cross-architecture transfer).
        data: the data set, preprocessed as that of the coreset was.
        protocol: ``"default"`` (the posterior, sampled correctly), ``"kim2022"``, ``"fbpc2023"`` (as published, for
            comparison with tables), ``"distillation"`` (networks trained by SGD), or a configuration from
            ``pseudocoreset.evaluation``: ``Default``, ``Kim2022``, ``FBPC2023``, ``Distillation``. A subclass of
            ``pseudocoreset.evaluation.Protocol`` adds another.
        key: one typed key. All networks are evaluated with the same.
        split: ``"validation"`` or ``"test"``.
        validation_fraction: of the training data, where there is no validation split.
        mesh: devices that share the chains or the repeats, ``jax.make_mesh((4,), ("devices",))``; the figures are those
            of one device up to rounding.
        progress: show progress bars.
        **settings: fields of the protocol, over those that it has.

    Returns:
        ``Evaluation``, or, for several models, ``Evaluations``, a dictionary of them by name.

    Raises:
        TypeError, ValueError: for arguments that do not fit, before anything is compiled.
        FloatingPointError: when a run leaves the finite numbers.
    """
    check_key(key)
    check_choice(split, "split", SPLITS)
    if not isinstance(coreset, Pseudocoreset):
        raise TypeError(f"coreset must be a Pseudocoreset; got {type(coreset).__name__}")
    if not isinstance(data, Dataset):
        raise TypeError(f"data must be a Dataset (Dataset.from_arrays makes one); got {type(data).__name__}")
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction must be between 0 and 1; got {validation_fraction}")
    mesh = Devices.of(mesh).mesh
    chosen = resolve_protocol(protocol, settings)
    check_start(coreset, data)
    split_key, run_key = jax.random.split(key)
    needs_validation = split == "validation" or chosen.needs_validation
    validation, is_seen = _validation(data, validation_fraction, split_key) if needs_validation else (None, False)
    held_out = validation if split == "validation" else data.test
    if held_out is None:
        raise ValueError(f"split='test', but {data.name} has no test split; take split='validation'")
    notes = []
    if is_seen and split == "validation":
        notes.append(
            f"The validation data are {len(held_out):,} of the training data, which this coreset may have been learned "
            "from: compare coresets by these figures, but quote those of the test split."
        )

    def run(one: Model) -> Evaluation:
        began = time.perf_counter()
        bound = bind_to(one, data)
        struct = jax.ShapeDtypeStruct(coreset.packed.shape, np.float32)
        check_targets(bound, struct, coreset.targets, "coreset", takes_soft=coreset.is_soft)
        task = Task(bound, coreset, held_out, validation, data.name, run_key, mesh, progress)
        scored = chosen.run(task)
        return Evaluation(
            protocol=chosen.name,
            model=one.name,
            split=split,
            num_data=len(held_out),
            metrics=scored.metrics,
            settings=scored.settings | _described(task, key),
            notes=(*scored.notes, *_notes_on_scores(task, scored), *notes),
            seconds=time.perf_counter() - began,
            versions=library_versions(),
            posterior=scored.posterior,
        )

    if isinstance(model, Model):
        return run(model)
    return Evaluations({name: dataclasses.replace(run(one), model=name) for name, one in _named(model).items()})


def _described(task: Task, key: jax.Array) -> dict[str, Any]:
    """What every evaluation records beside the settings of its protocol; ``key`` is the one that was given."""
    return {
        "data": task.data_name,
        "num_points": task.coreset.size,
        "objective": task.coreset.metadata.get("objective"),
        "num_params": task.model.num_params,
        "key": key_record(key),
        "backend": jax.default_backend(),
    }


def _notes_on_scores(task: Task, scored: Scored) -> list[str]:
    if task.model.num_classes is None or "nll" not in scored.metrics:
        return []
    uniform = float(np.log(task.model.num_classes))
    if scored.metrics["nll"].mean < uniform:
        return []
    return [f"The NLL is no better than that of uniform guessing ({number(uniform)})."]


def _validation(data: Dataset, fraction: float, key: jax.Array) -> tuple[Split, bool]:
    """Validation data, and whether they are training data."""
    if data.validation is not None:
        return data.validation, False
    found = data.split_validation(fraction, key).validation
    assert found is not None
    return found, True


def _named(models: Sequence[Model] | Mapping[str, Model]) -> dict[str, Model]:
    """Models by name; those of one name are numbered."""
    if isinstance(models, Mapping):
        named = {str(name): one for name, one in models.items()}
    elif isinstance(models, tuple | list):
        every = [getattr(one, "name", "") for one in models]
        named = {
            name if every.count(name) == 1 else f"{name}-{1 + every[:place].count(name)}": models[place]
            for place, name in enumerate(every)
        }
    else:
        named = {}
    if not named or not all(isinstance(one, Model) for one in named.values()):
        raise TypeError(f"model must be a Model, or several, in a sequence or by name; got {models!r}")
    return named
