"""Which snapshots of experts the steps of a fit take."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.data import Dataset
from pseudocoreset.data.doors import check_preprocessing
from pseudocoreset.experts import Experts
from pseudocoreset.objectives import Objective

__all__ = ["match_experts", "snapshot_choices", "snapshots_of"]


def match_experts(
    objectives: tuple[Objective, ...], experts: Experts | Sequence[Experts] | None, data: Dataset
) -> tuple[Experts | None, ...]:
    """One set of experts an objective, checked against what it takes and the inputs that it was trained on."""
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
        first, last = _epochs(objective, one)
        ahead = objective.window.ahead or 0
        if not first <= last <= one.num_epochs - ahead:
            further = f" and {ahead} epochs ahead" if ahead else ""
            raise ValueError(
                f"first_epoch={first} and last_epoch={objective.window.last}{further} do not fit experts of "
                f"{one.num_epochs} epochs"
            )
        wanted = {site.name: list(site.unconstrained_shape) for site in objective.model.sites}
        check_preprocessing(
            one.metadata.get("inputs"),
            data.preprocessing.summary,
            "what the experts were trained on",
            "data",
            "Load the data as they were for the experts, or train others",
        )
        if one.metadata["sites"] != wanted:
            raise ValueError(
                f"experts were trained on another model ({one.metadata.get('model')}, {one.metadata.get('num_params')} "
                f"parameters) than {objective.model.name} ({objective.model.num_params} parameters)"
            )
    return sets


def _epochs(objective: Objective, experts: Experts) -> tuple[int, int]:
    """First and last epoch of the first snapshot that an objective takes."""
    assert objective.window is not None
    first, last, ahead, _ = objective.window
    return first, experts.num_epochs - (ahead or 0) if last is None else last


def snapshots_of(objective: Objective, experts: Experts, choices: np.ndarray) -> tuple[Any, ...]:
    """What the window names for the choices (steps, count, 2) of a block: the first, where it asks the second too."""
    assert objective.window is not None
    ahead, count = objective.window.ahead, objective.window.per_step

    def stacked(later: int) -> Any:
        stack = experts.stack([(expert, epoch + later) for expert, epoch in choices.reshape(-1, 2).tolist()])
        if count is None:
            return stack
        return jax.tree.map(lambda leaf: leaf.reshape(-1, count, *leaf.shape[1:]), stack)

    return (stacked(0),) if ahead is None else (stacked(0), stacked(ahead))


def snapshot_choices(key: jax.Array, objective: Objective, experts: Experts, steps: int) -> np.ndarray:
    """Experts and epochs (steps, count, 2); those of a step depend on nothing but the key and the step."""
    assert objective.window is not None
    first, last = _epochs(objective, experts)
    count = objective.window.per_step or 1
    chosen = _choose(key, steps * count, experts.num_experts, first, last)
    return np.stack(chosen, axis=-1).reshape(steps, count, 2)


@functools.partial(jax.jit, static_argnames="steps")
def _choose(key: jax.Array, steps: int, num_experts: int, first: int, last: int) -> tuple[jax.Array, jax.Array]:
    """So many experts, and for each an epoch from first to last."""

    def choose(step: jax.Array) -> tuple[jax.Array, jax.Array]:
        expert_key, epoch_key = jax.random.split(jax.random.fold_in(key, step))
        expert = jax.random.randint(expert_key, (), 0, num_experts)
        return expert, jax.random.randint(epoch_key, (), first, last + 1)

    return jax.vmap(choose)(jnp.arange(steps))
