"""Several processes, each with devices of its own: which of them writes, and what all of them must have.

After ``jax.distributed.initialize`` every process runs the same script and holds the same arrays on its host; process 0
alone writes files, which all of them must be able to read.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pseudocoreset.compute.meshes import replicated

__all__ = ["is_writer", "same_everywhere", "to_host", "wait_for_all"]


def to_host(tree: Any) -> Any:
    """The arrays of a tree as NumPy's, whole on every process; all processes must ask for them."""
    leaves, structure = jax.tree.flatten(tree)
    # What spans processes is made whole on each device first, all of it in one computation.
    spread_out: dict[int, Any] = {
        i: leaf
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)
    }
    if spread_out:
        for i, leaf in replicated(spread_out, next(iter(spread_out.values())).sharding.mesh).items():
            leaves[i] = leaf
    return jax.tree.unflatten(structure, [np.asarray(leaf) for leaf in leaves])


def is_writer() -> bool:
    """Whether this process writes files: the only one, or the first of several."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Return when all processes have come here."""
    if jax.distributed.is_initialized():
        multihost_utils.sync_global_devices(name)


def same_everywhere(number: int) -> bool:
    """Whether all processes have the same number."""
    return not jax.distributed.is_initialized() or bool(np.all(multihost_utils.process_allgather(number) == number))
