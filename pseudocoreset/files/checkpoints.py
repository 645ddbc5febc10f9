"""Checkpoints of long runs: atomic, verified, exactly resumable, one run a directory.

They know nothing of the devices of a run: what was begun on one may go on with several, and the other way round.
"""

from __future__ import annotations

import json
import logging
import os
import pathlib
import re
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.compute.processes import is_writer, same_everywhere, to_host
from pseudocoreset.files.locks import DirectoryLock
from pseudocoreset.files.schema import COUNT, FLAG, RECORD, TEXT, VERSION, check_record, optional
from pseudocoreset.files.storage import (
    CorruptFileError,
    atomic_directory,
    read_arrays,
    read_json,
    verify,
    write_arrays,
    write_json,
)
from pseudocoreset.validation import uses_x64

__all__ = ["Checkpointer", "different_settings"]

logger = logging.getLogger(__name__)
SCHEMA = 1
STATE_FILE = "state.safetensors"
RECORD_FILE = "run.json"
RECORD_FIELDS = {"schema": VERSION, "step": COUNT, "jax": TEXT, "enable_x64": optional(FLAG), "run": RECORD}


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def different_settings(saved: dict[str, Any], run: dict[str, Any]) -> str:
    """The settings in which a saved run differs from this one, in words; empty if in none."""
    now = json.loads(json.dumps(run))
    return "; ".join(
        f"{name}: saved {saved.get(name)!r}, now {now.get(name)!r}"
        for name in sorted(saved.keys() | now.keys())
        if saved.get(name) != now.get(name)
    )


class Checkpointer:
    """Steps of one run in ``directory``, the newest two kept.

    Use it as a context manager; it holds a lock on the directory meanwhile. Of several processes the first writes, and
    all read.

    Args:
        directory: where the steps go, made if absent.
        run: what identifies the run, a JSON-able dictionary. A directory that holds another run is refused.

    Raises:
        ValueError: if the directory belongs to a run with other settings; the message lists them.
        BlockingIOError: if another process is using the directory.
    """

    def __init__(self, directory: str | os.PathLike[str], run: dict[str, Any]) -> None:
        self.directory = pathlib.Path(directory)
        self.run = run
        self._lock: DirectoryLock | None = None
        if not is_writer():
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self._steps() and (deeper := next(self.directory.glob("*/step-*/manifest.json"), None)):
            raise ValueError(
                f"{self.directory} holds checkpoints one directory deeper, in {deeper.parents[1]}; give that one to go "
                "on with them, or an empty one"
            )
        self._lock = DirectoryLock(self.directory)
        for leftover in self.directory.glob(".*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()

    @property
    def has_steps(self) -> bool:
        """Whether there is a checkpoint, whole or not."""
        return bool(self._steps())

    def _steps(self) -> list[pathlib.Path]:
        steps = [path for path in self.directory.glob("step-*") if re.fullmatch(r"step-\d{9,18}", path.name)]
        return sorted(steps, key=_number)

    def save(self, step: int, state: Any, extra: dict[str, np.ndarray] | None = None) -> None:
        """Write the state after ``step`` steps.

        Args:
            step: steps done.
            state: pytree of arrays and typed keys: everything needed to go on.
            extra: named arrays kept beside it (the history, say).
        """
        leaves = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in jax.tree.leaves(state)]
        arrays = {f"state/{i:05d}": leaf for i, leaf in enumerate(to_host(leaves))}
        arrays |= {f"extra/{name}": np.asarray(value) for name, value in (extra or {}).items()}
        with atomic_directory(self.directory / f"step-{step:09d}") as folder:
            write_arrays(folder / STATE_FILE, arrays)
            versions = {"jax": jax.__version__, "enable_x64": uses_x64()}
            write_json(folder / RECORD_FILE, {"schema": SCHEMA, "step": step, **versions, "run": self.run})
        for old in self._steps()[:-2] if is_writer() else []:
            shutil.rmtree(old, ignore_errors=True)

    def restore(self, template: Any) -> tuple[int, Any, dict[str, np.ndarray]] | None:
        """The newest whole step, or None if there is none yet.

        Args:
            template: a state of the same structure, shapes and dtypes, or the structs of one.

        Returns:
            (steps done, state, extra arrays).

        Raises:
            ValueError: if the checkpoints belong to a run with other settings or shapes.
            CorruptFileError: if there are checkpoints but not one of them is whole.
            RuntimeError: if several processes do not see the same checkpoints.
        """
        restored = self._newest(template)
        if not same_everywhere(-1 if restored is None else restored[0]):
            raise RuntimeError(
                f"the processes see different checkpoints in {self.directory}; use a file system that all of them share"
            )
        return restored

    def _newest(self, template: Any) -> tuple[int, Any, dict[str, np.ndarray]] | None:
        steps = self._steps()
        for folder in reversed(steps):
            try:
                verify(folder, STATE_FILE, RECORD_FILE)
                record = check_record(read_json(folder / RECORD_FILE), RECORD_FIELDS, folder / RECORD_FILE)
                if record["step"] != _number(folder):
                    raise CorruptFileError(f"{folder} holds step {record['step']}, which is not its name")
                arrays = read_arrays(folder / STATE_FILE)
            except (CorruptFileError, FileNotFoundError) as error:
                logger.warning("skipping a damaged checkpoint: %s", error)
                continue
            self._check_run(record)
            state = _fill(template, arrays)
            extra = {name.removeprefix("extra/"): a for name, a in arrays.items() if name.startswith("extra/")}
            return int(record["step"]), state, extra
        if steps:
            raise CorruptFileError(
                f"no checkpoint in {self.directory} is whole; remove the directory to start the run afresh"
            )
        return None

    def _check_run(self, record: dict[str, Any]) -> None:
        if record["schema"] > SCHEMA:
            raise ValueError(
                f"{self.directory} has schema {record['schema']}, this version of pseudocoreset reads up to {SCHEMA}; "
                "upgrade it"
            )
        is_double = uses_x64()
        if record.get("enable_x64", is_double) != is_double:
            raise ValueError(
                f"{self.directory} holds a run that was begun with jax_enable_x64={not is_double}; now it is "
                f"{is_double}. Go on with the same setting, or use another directory"
            )
        if different := different_settings(record["run"], self.run):
            raise ValueError(
                f"{self.directory} holds checkpoints of another run; use another directory. Different: {different}"
            )
        if record["jax"] != jax.__version__:
            logger.warning(
                "resuming with JAX %s what was begun with %s: results agree in distribution, not to the bit",
                jax.__version__,
                record["jax"],
            )


def _number(folder: pathlib.Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _fill(template: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The template with the arrays of a checkpoint in the place of its own."""
    leaves, treedef = jax.tree.flatten(template)
    wanted = [jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf for leaf in leaves]
    saved = [arrays[name] for name in sorted(arrays) if name.startswith("state/")]
    if [a.shape for a in saved] != [np.shape(leaf) for leaf in wanted]:
        raise ValueError("the checkpoint has arrays of other shapes than this run; use another directory")
    for array, leaf in zip(saved, wanted, strict=True):
        if jax.dtypes.canonicalize_dtype(array.dtype) != (dtype := jnp.result_type(leaf)):
            raise ValueError(
                f"the checkpoint has arrays of {array.dtype} where this run has {dtype}; use another directory"
            )
    filled = [
        # The implementation of the run's own key: two of them can have numbers of one shape.
        jax.random.wrap_key_data(jnp.asarray(a), impl=jax.random.key_impl(leaf)) if _is_key(leaf) else jnp.asarray(a)
        for leaf, a in zip(leaves, saved, strict=True)
    ]
    return jax.tree.unflatten(treedef, filled)
