"""Runs of the published protocols: all repeats together, in compiled blocks of rounds."""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.compute.devices import Devices
from pseudocoreset.compute.processes import to_host
from pseudocoreset.compute.progress import progress_bar
from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data import Split
from pseudocoreset.data.augmentation import resolve_augmentation
from pseudocoreset.diagnostics.predictions.predictive import Predictive
from pseudocoreset.evaluation.base import Learning, Rounds
from pseudocoreset.evaluation.protocol import Protocol, Scored, Task
from pseudocoreset.evaluation.result import Estimate
from pseudocoreset.evaluation.scores import estimates, scores_of
from pseudocoreset.inference.data import function_summary, held_out_chunk_size
from pseudocoreset.inference.validation import stored_inputs
from pseudocoreset.models import Params
from pseudocoreset.rows import Rows

__all__ = ["Outcome", "Published", "run_rounds"]

NUM_BLOCKS = 20
HeldOut = tuple[jax.Array, jax.Array]  # inputs as stored, targets


class Outcome(NamedTuple):
    """What the repeats of a run predict on held-out data.

    log_probabilities
        (repeats, n, C) of the averages over draws.
    log_likelihood
        (repeats, draws, n) of the labels under each draw.
    y
        (n,) labels.
    measured
        (repeats,) arrays by name: numbers about the run itself.
    """

    log_probabilities: np.ndarray
    log_likelihood: np.ndarray
    y: np.ndarray
    measured: dict[str, np.ndarray]

    def predictive(self, repeat: int) -> Predictive:
        """The model average of one repeat."""
        log_probabilities, members = self.log_probabilities[repeat].astype(np.float64), self.log_likelihood[repeat]
        return Predictive(
            y=self.y,
            log_likelihood=log_probabilities[np.arange(len(self.y)), self.y],
            member_log_likelihood=members.mean(0, dtype=np.float64),
            log_probabilities=log_probabilities,
            num_draws=len(members),
        )

    def ensemble(self) -> Predictive:
        """The average over repeats of one draw each."""
        parts = self.log_probabilities.astype(np.float64)
        log_probabilities = np.logaddexp.reduce(parts) - math.log(len(parts))
        return Predictive(
            y=self.y,
            log_likelihood=log_probabilities[np.arange(len(self.y)), self.y],
            member_log_likelihood=self.log_likelihood.mean((0, 1), dtype=np.float64),
            log_probabilities=log_probabilities,
            num_chains=len(parts),
        )


@dataclass(frozen=True)
class _Plan:
    protocol: Rounds
    task: Learning
    preprocessing: Any
    chunk_size: int

    def predict(self, params: Params, rows: HeldOut) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities (n, C), and those of the labels (n,)."""
        model = self.task.model
        f, log_likelihood = function_summary(
            model, params, *rows, preprocessing=self.preprocessing, chunk_size=self.chunk_size
        )
        assert f is not None

        # A protocol of published papers, for networks, whose likelihood sees the inputs through f alone.
        unread = jnp.zeros((f.shape[0], *model.datum_shape), f.dtype)

        def of_class(label: jax.Array) -> jax.Array:
            return model.function_log_likelihood(params, f, unread, jnp.full(f.shape[0], label))

        return jax.vmap(of_class, out_axes=1)(jnp.arange(model.num_classes)), log_likelihood


class _Carry(NamedTuple):
    state: Any
    total: jax.Array  # (n, C) log of the sum of probabilities
    log_likelihood: jax.Array  # (draws, n)


@functools.partial(jax.jit, static_argnames=("plan", "num_data", "devices"))
def _start(plan: _Plan, keys: jax.Array, num_data: int, devices: Devices) -> _Carry:
    num_rounds, first = plan.protocol.rounds
    num_classes = plan.task.model.num_classes
    assert num_classes is not None

    def one(key: jax.Array) -> _Carry:
        state = plan.protocol.start(jax.random.fold_in(key, 0), plan.task)
        return _Carry(
            state,
            jnp.full((num_data, num_classes), -jnp.inf, jnp.float32),
            jnp.zeros((num_rounds - first, num_data), jnp.float32),
        )

    return devices.map(one, keys)


@functools.partial(jax.jit, static_argnames=("plan", "devices"))
def _run_block(
    plan: _Plan,
    carry: _Carry,
    keys: jax.Array,
    rounds: tuple[jax.Array, jax.Array],
    coreset: Rows,
    rows: HeldOut,
    devices: Devices,
) -> tuple[_Carry, jax.Array]:
    """Rounds from the first to before the last of every repeat, and whether its parameters are finite."""
    return devices.map(functools.partial(_rounds_of_one, plan), (carry, keys), rounds, coreset, rows)


def _rounds_of_one(
    plan: _Plan, item: tuple[_Carry, jax.Array], rounds: Any, coreset: Rows, rows: HeldOut
) -> tuple[_Carry, jax.Array]:
    carry, key = item
    recorded_from = plan.protocol.rounds[1]

    def recorded(index: jax.Array, carry: _Carry) -> _Carry:
        log_probabilities, log_likelihood = plan.predict(plan.protocol.position(carry.state), rows)
        total = jnp.logaddexp(carry.total, log_probabilities.astype(carry.total.dtype))
        members = carry.log_likelihood.at[index - recorded_from].set(log_likelihood.astype(carry.total.dtype))
        return _Carry(carry.state, total, members)

    def round_of(index: jax.Array, carry: _Carry) -> _Carry:
        state = plan.protocol.advance(jax.random.fold_in(key, index + 1), index, carry.state, plan.task, coreset)
        carry = carry._replace(state=state)
        return jax.lax.cond(index >= recorded_from, recorded, lambda _, same: same, index, carry)

    first, last = rounds
    carry = jax.lax.fori_loop(first, last, round_of, carry)
    leaves = jax.tree.leaves(plan.protocol.position(carry.state))
    return carry, jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def run_rounds(
    protocol: Rounds,
    task: Learning,
    coreset: Pseudocoreset,
    split: Split,
    key: jax.Array,
    *,
    devices: Devices,
    progress: bool,
) -> Outcome:
    """Run all repeats of a run in rounds; the key of a repeat depends on its number alone.

    Args:
        protocol: with everything filled in that depends on the coreset.
        task: model and augmentation.
        coreset: what to train or sample on.
        split: held-out data.
        key: one typed key.
        devices: that share the repeats.
        progress: show a progress bar.

    Raises:
        FloatingPointError: when the parameters of a repeat leave the finite numbers.
    """
    inputs, preprocessing = stored_inputs(split)
    plan = _Plan(protocol, task, preprocessing, held_out_chunk_size(task.model, inputs.shape[1:]))
    arrays = devices.replicate(Rows(coreset.packed, coreset.targets, coreset.weights))
    rows = devices.replicate((inputs, split.y))
    keys = devices.replicate(jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(protocol.repeats)))
    num_rounds, recorded_from = protocol.rounds
    carry = _start(plan, keys, len(split), devices)
    block = math.ceil(num_rounds / NUM_BLOCKS)
    with progress_bar(f"evaluating: {protocol.name}", num_rounds, enabled=progress) as advance:
        for done in range(0, num_rounds, block):
            last = min(done + block, num_rounds)
            rounds = devices.replicate((np.int32(done), np.int32(last)))
            carry, finite = _run_block(plan, carry, keys, rounds, arrays, rows, devices)
            lost = np.flatnonzero(~to_host(finite))
            if len(lost):
                raise FloatingPointError(
                    f"protocol {protocol.name!r} left the finite numbers in repeats {lost[:10].tolist()} before round "
                    f"{last} of {num_rounds}; try a smaller step size"
                )
            advance(last - done)
    count = num_rounds - recorded_from
    found = to_host((carry.total, carry.log_likelihood, protocol.measured(carry.state)))
    return Outcome(found[0] - math.log(count), found[1], np.asarray(split.y), found[2])


@dataclass(frozen=True)
class Published(Protocol, Rounds):
    """A protocol as a paper or its code has it, run in rounds: ``Kim2022``, ``FBPC2023`` and ``Distillation``."""

    batch_scores: ClassVar[bool] = False  # whether its code scores test batches of 128 by formulas of its own
    scores_ensemble: ClassVar[bool] = False  # whether the average of all repeats is scored too

    @abstractmethod
    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures must know."""

    @abstractmethod
    def resolved(self, coreset: Pseudocoreset, num_classes: int) -> Published:
        """The same with what depends on the coreset filled in."""

    def run(self, task: Task) -> Scored:
        """Run all repeats, and score each.

        Raises:
            ValueError: if the model is none of classes with function values.
        """
        model, coreset = task.model, task.coreset
        if model.num_classes is None or not model.has_function:
            raise ValueError(
                f"protocol {self.name!r} is for models of classes with function values; {model.name!r} is none, "
                "use protocol='default'"
            )
        resolved = self.resolved(coreset, model.num_classes)
        asked = getattr(resolved, "augment", None)
        augment = resolve_augmentation(asked, coreset.packed.shape[1:], task.data_name)
        learning = Learning(model, augment)
        devices = Devices.of(task.mesh)
        outcome = run_rounds(resolved, learning, coreset, task.split, task.key, devices=devices, progress=task.progress)
        members = outcome.log_likelihood if resolved.batch_scores else [None] * resolved.repeats
        metrics = estimates([scores_of(outcome.predictive(i), one) for i, one in enumerate(members)])
        metrics |= {name: Estimate(tuple(map(float, values))) for name, values in outcome.measured.items()}
        if resolved.scores_ensemble and resolved.repeats > 1:
            ensemble = scores_of(outcome.ensemble())
            metrics |= estimates([{k: v for k, v in ensemble.items() if not k.startswith("nll_member")}], "ensemble_")
        settings = dataclasses.asdict(resolved) | {"augment": None if augment is None else augment.strategy}
        return Scored(metrics, settings, resolved.notes())
