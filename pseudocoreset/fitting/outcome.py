"""How a fit ended: its result, whether it got worse, and what to do where it failed."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.coreset import Pseudocoreset, mass_note
from pseudocoreset.fitting.verdict.level import Verdict
from pseudocoreset.layout import InputLayout
from pseudocoreset.objectives import Objective
from pseudocoreset.rows import Rows
from pseudocoreset.subsets.curvature.mode import FullPosterior

__all__ = ["MOST_SKIPPED", "FitResult", "Outcome", "Rise", "advise", "find_rise"]

MOST_SKIPPED = 10
MOST_AVERAGED = 10  # losses at the start and at the end
LEAST_RISE = 0.05  # of the loss at the start
SIGNIFICANT = 4.0  # standard errors
NUM_PARAMETERS = 8  # draws of the prior at which a likelihood is tried
MOST_NAMED = 5


class Outcome(enum.Enum):
    """How a fit ended, with a sentence that a person can read."""

    COMPLETED = "All steps were done."
    STOPPED = "A callback asked to stop."
    NON_FINITE = f"Not finite: {MOST_SKIPPED} steps in a row, or all that were done, could not be taken."


class Rise(NamedTuple):
    """A loss that ended above where it started.

    Attributes:
        name: of the loss in the history.
        first: at the start.
        last: at the end.
        steps: last steps averaged.
    """

    name: str
    first: float
    last: float
    steps: int

    def __str__(self) -> str:
        over = f" (average of {self.steps} steps)" if self.steps > 1 else ""
        return f"{self.name} rose from {self.first:,.4g} to {self.last:,.4g}{over}"


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
        advice: what went wrong, where, since which step, and what to do about it; empty if nothing did.
        rise: the loss that ended above its start by more than its noise; None if none did, or if the objective
            reports no loss that can be compared between steps (``Objective.loss_is_value``).
        verdict: how far the posterior of the coreset is from that of all data; None where it was not asked for.
        posterior: of all data, to second order at its mode; None where the method did not find it.
    """

    coreset: Pseudocoreset
    history: dict[str, np.ndarray]
    outcome: Outcome
    state: Any
    seconds: float
    advice: str = ""
    rise: Rise | None = None
    verdict: Verdict | None = None
    posterior: FullPosterior | None = None

    @property
    def is_worse(self) -> bool:
        """Whether the fit ended worse than it started."""
        return self.rise is not None

    def __repr__(self) -> str:
        steps = len(next(iter(self.history.values()), ()))
        skipped = int(np.sum(self.history.get("skipped", 0)))
        but = f" ({skipped} of them skipped)" if skipped else ""
        said = f"{steps} steps{but} in {self.seconds:.1f} s. {self.outcome.value}"
        first = f"worse than its start: {self.rise}; " if self.rise is not None else ""
        if self.verdict is not None and self.verdict.is_worse_than_uniform:
            first += "worse than a uniform subset of as many points; "
        # Points that match the curvature have the scale of all data at any mass.
        is_matched = self.coreset.metadata.get("settings", {}).get("mass") == "matched"
        note = "" if is_matched else mass_note(self.coreset.mass, self.coreset.num_data)
        lines = [
            f"FitResult({first}{self.coreset!r}, {said})",
            self.advice,
            note and f"Its {note}.",
            _kept(self.coreset),
            _at_mode(self.coreset) if self.verdict is None else f"{self.verdict}",
            f"{auto}." if (auto := self.coreset.metadata.get("auto")) else "",
        ]
        return "\n".join(line for line in lines if line)


def _kept(coreset: Pseudocoreset) -> str:
    """That another coreset was kept than the fit ended with; "" where it was not."""
    found = coreset.metadata.get("at_mode")
    if found is None or found["kept"] == "fitted":
        return ""
    return f"The {found['kept']} is kept, for the fit ended farther away ({_nats(found['fitted'])} nats by Laplace)."


def _nats(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3g}"


def _at_mode(coreset: Pseudocoreset) -> str:
    """What the metadata say of the distance to the posterior of all data, in a sentence; "" where they say nothing."""
    found = coreset.metadata.get("at_mode")
    if found is None:
        return ""
    if found["nats"] is None:
        mismatch = found.get("mismatch")
        by = "" if mismatch is None else f"; score and curvature differ by {mismatch:.3g} there, where 0 is right"
        nearer = "" if not found.get("nearer") else f" A {found['nearer']} of as many points is nearer: "
        nearer = nearer and f"{nearer}{_nats(found['other'])} nats."
        return f"Its divergence from the posterior of all data is not known: {found['reason']}{by}.{nearer}"
    near = f"It is {_nats(found['nats'])} nats from the posterior of all data (Laplace at its mode)"
    if found["kept"] != "fitted":
        return f"{near}."
    if found.get("nearer"):
        return f"{near}; a {found['nearer']} of as many points is nearer, {_nats(found['other'])}."
    return f"{near}." if found["other"] is None else f"{near}; its start or random points, {_nats(found['other'])}."


def find_rise(objectives: Sequence[Objective], history: Mapping[str, np.ndarray]) -> Rise | None:
    """The first loss that ended above its start, of objectives whose losses can be compared between steps.

    The average over the last steps (a twentieth of all, at most ten) is compared with the first value, and with the
    average over as many first steps: a rise is one of more than 5 %, and of more than four standard errors by the
    differences of neighbouring steps.
    """
    for i, objective in enumerate(objectives):
        name = "loss" if len(objectives) == 1 else f"loss_{i}"
        values = np.asarray(history.get(name, ()), np.float64)
        if "skipped" in history and len(history["skipped"]) == len(values):
            values = values[~np.asarray(history["skipped"], bool)]
        values = values[np.isfinite(values)]
        if not objective.loss_is_value or len(values) < 2:
            continue
        count = int(np.clip(len(values) // 20, 1, MOST_AVERAGED))
        last = float(values[-count:].mean())
        noise = min(_noise(values), _noise(values[-max(8, len(values) // 2) :]))  # of the end, if it was wild before
        for averaged in sorted({1, count}):
            first = float(values[:averaged].mean())
            error = noise * math.sqrt(1 / averaged + 1 / count)
            if last - first > max(LEAST_RISE * abs(first), SIGNIFICANT * error):
                return Rise(name, first, last, count)
    return None


def _noise(values: np.ndarray) -> float:
    """Standard deviation of single values about a smooth course; the median, so that a step that jumps is no noise."""
    return float(np.median(np.abs(np.diff(values)))) / 0.954 if len(values) > 2 else 0.0


def advise(
    objectives: Sequence[Objective],
    start: Pseudocoreset,
    stuck: Rows,
    lost: Mapping[str, Any],
    history: Mapping[str, np.ndarray],
    step: int,
    key: jax.Array,
) -> str:
    """What was not finite, since which step, what to do, how many steps were skipped, and which coreset is returned.

    Args:
        objectives: of the fit.
        start: where it started.
        stuck: the arrays at which no gradient was finite.
        lost: by free leaf, where its last gradient was not finite: boolean arrays.
        history: scalars of every step.
        step: the first of the steps in a row.
        key: one typed key, for parameters at which the likelihood is tried.
    """
    skipped = np.asarray(history["skipped"], bool)
    finite = [np.isfinite(values) for name, values in history.items() if name.startswith(("loss", "gradient_norm"))]
    if not np.any(np.all(finite, axis=0)):
        which = "no step had a finite objective and gradient, not even the first: the coreset is the start"
    elif skipped.all():
        which = "the coreset is the start"
    else:
        which = "the coreset is the last one whose objective and gradient were finite"
    cause = _cause(objectives, start, stuck, lost, history, step, key)
    return f"{cause} {np.sum(skipped)} of {len(skipped)} steps were skipped in all; {which}."


def _cause(
    objectives: Sequence[Objective],
    start: Pseudocoreset,
    stuck: Rows,
    lost: Mapping[str, Any],
    history: Mapping[str, np.ndarray],
    step: int,
    key: jax.Array,
) -> str:
    """What was not finite, since which step, and what to do; arguments as in ``advise``."""
    since = f"Since step {step}"
    for objective in objectives:
        points = _without_likelihood(objective, start, key)
        if len(points):
            shown = ", ".join(f"{_short(start.targets[i])}" for i in points[:MOST_NAMED])
            return (
                f"The targets of {len(points)} of the {start.size} points of the start have no finite likelihood under "
                f"{objective.model.name} (points {_listed(points)}; their targets are {shown}): they, or the inputs "
                "beside them, are outside the support of the likelihood. Correct the data or the model; no step size "
                "helps."
            )
        points = _without_likelihood(objective, stuck, key)
        if len(points):
            said = f"{since} the likelihood of {objective.model.name} is not finite at points {_listed(points)}: "
            before = stuck._replace(targets=jnp.asarray(start.targets))
            if "targets" in objective.free and not len(_without_likelihood(objective, before, key)):
                return said + "their targets left its support. Leave 'targets' out of free=; no step size helps."
            return said + "their inputs moved to where it has none. Take a smaller step size."
    masks = {name: np.asarray(mask) for name, mask in lost.items()}
    layout = objectives[0].model.layout
    where = [name + _columns(mask, layout if name == "inputs" else None) for name, mask in masks.items() if mask.any()]
    younger = ", or younger experts" if any(o.window is not None for o in objectives) else ""
    if where:
        what = f"the gradient in the {' and the '.join(where)} was not finite; the likelihood was"
    else:
        losses = [name for name, values in history.items() if name.startswith("loss") and not np.isfinite(values[-1])]
        what = (
            f"the {losses[0]} was not finite; the gradient and the likelihood were"
            if losses
            else "steps would have left no weight above zero, or values beyond the largest numbers"
        )
    return f"{since} {what}. Take a smaller step size{younger}."


def _without_likelihood(objective: Objective, points: Any, key: jax.Array) -> np.ndarray:
    """Points whose log-likelihood is not finite at any of a few parameters drawn from the prior."""
    model = objective.model
    inputs = points.packed if isinstance(points, Pseudocoreset) else points.inputs
    values = [
        np.asarray(model.log_likelihood(model.init(k), inputs, points.targets))
        for k in jax.random.split(key, NUM_PARAMETERS)
    ]
    return np.flatnonzero(~np.isfinite(np.stack(values)).any(0))


def _columns(mask: np.ndarray, layout: InputLayout | None) -> str:
    """Which columns of a leaf, by name where they have one; empty for all of them."""
    columns = mask.any(0)
    if mask.ndim == 1 or columns.all():
        return ""
    names = [", ".join(map(str, index)) for index in np.argwhere(columns)]
    if layout is not None and mask.ndim == 2:
        owners = [next(leaf for leaf in layout.leaves if leaf.columns.stop > int(index)) for index in names]
        names = [
            repr(leaf.name) if leaf.width == 1 else f"{int(index) - leaf.start} of {leaf.name!r}"
            for index, leaf in zip(names, owners, strict=True)
        ]
    return f" in {'column' if len(names) == 1 else 'columns'} {_listed(names)}"


def _short(value: Any) -> str:
    return np.array2string(np.asarray(value), precision=4, threshold=6)


def _listed(items: Sequence[Any] | np.ndarray) -> str:
    named = ", ".join(str(item) for item in items[:MOST_NAMED])
    return named + (f" and {len(items) - MOST_NAMED} more" if len(items) > MOST_NAMED else "")
