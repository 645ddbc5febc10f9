"""What SGHMC and SGLD share: schedules, preconditioners and control variates of minibatch gradients."""

from __future__ import annotations

import abc
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.inference.adaptation.curvature import MAX_PARAMS, tune_by_curvature
from pseudocoreset.inference.centring import find_centres, full_gradients
from pseudocoreset.inference.data import control_variate_estimator
from pseudocoreset.inference.engine.guards import warn_of_no_mode
from pseudocoreset.inference.engine.kernel import TRACED, Density, Kernel, Stats, Tuning, per_chain
from pseudocoreset.inference.engine.plan import ON_DISK, Run
from pseudocoreset.inference.schedules import Constant, arrange, described, resolve_schedule
from pseudocoreset.inference.validation import resolve_init_params
from pseudocoreset.models import Params
from pseudocoreset.rows import Rows

__all__ = ["Adapted", "GradientKernel"]

# Of the running mean of squared gradients, a step: customary for RMSprop.
RMSPROP_DECAY = 0.99


class Adapted(NamedTuple):
    """State of a chain whose preconditioner is estimated while it warms up.

    chain
        State of the kernel.
    squares
        Running mean of the squared gradient of each site.
    weight
        What ``squares`` is to be divided by.
    """

    chain: Any
    squares: dict[str, jax.Array]
    weight: jax.Array


@dataclass(frozen=True, kw_only=True)
class GradientKernel(Kernel, abc.ABC):
    """Options that SGHMC and SGLD share, and the gradient of a step; a subclass makes a move of it.

    **Why what is estimated is frozen.** While G = M^-1 follows the gradients it depends on theta, and Langevin dynamics
    then keep the posterior only with a further drift, Gamma_i = sum_j dG_ij / dtheta_j, that preconditioned SGLD leaves
    out. After the warmup G is a constant, Gamma is zero, and the stationary law is that of any fixed mass.
    """

    schedule: Any = field(default=Constant(), metadata=TRACED)
    preconditioner: Any = field(default="auto", metadata=TRACED)
    control_variate: Any = field(default="auto", metadata=TRACED)

    uses_minibatches = True

    def __post_init__(self) -> None:
        self.settle(schedule=resolve_schedule(self.schedule))

    @abc.abstractmethod
    def start(self, key: jax.Array, position: Params, tuning: Tuning) -> Any:
        """The state that a chain starts with."""

    @abc.abstractmethod
    def move(
        self, key: jax.Array, state: Any, gradient: Params, inverse_mass: Params | None, tuning: Tuning
    ) -> tuple[Any, Stats]:
        """One transition, given the estimate of the gradient."""

    @staticmethod
    @abc.abstractmethod
    def curved_step_size(kappa: jax.Array, noise: jax.Array, friction: float | None) -> jax.Array:
        """The step size in units of the curvature at a mode; see ``curvature.StepRule``."""

    @property
    def given_friction(self) -> float | None:
        """The friction that was given, of kernels that have one."""
        return None

    def init(self, key: jax.Array, position: Params, tuning: Tuning, density: Density) -> Any:
        """The state, with empty estimates where the preconditioner is to be estimated."""
        del density
        state = self.start(key, position, tuning)
        if "rmsprop_decay" not in tuning:
            return state
        zero = jnp.zeros((), tuning["step_size"].dtype)
        return Adapted(state, {name: zero for name in position}, zero)

    def position(self, state: Any) -> Params:
        """The parameters in a state."""
        chain = state.chain if isinstance(state, Adapted) else state
        return chain if isinstance(chain, dict) else chain.position

    def step(self, key: jax.Array, state: Any, tuning: Tuning, density: Density, rows: Rows) -> tuple[Any, Stats]:
        """One gradient estimate, and the move that it makes."""
        estimator = density.gradient
        if "centre" in tuning:
            estimator = control_variate_estimator(estimator, tuning["centre"], tuning["centre_gradient"])
        gradient = estimator(self.position(state), rows)
        if not isinstance(state, Adapted):
            return self.move(key, state, gradient, tuning.get("preconditioner"), tuning)
        # No weight on new gradients after the warmup; during it they count before they move anything, as in RMSprop.
        new = jnp.where(tuning["is_warmup"], 1 - tuning["rmsprop_decay"], 0.0).astype(state.weight.dtype)
        weight = (1 - new) * state.weight + new
        squares = {
            name: (1 - new) * state.squares[name] + new * jnp.mean(jnp.square(leaf)).astype(new.dtype)
            for name, leaf in gradient.items()
        }
        chain, stats = self.move(key, state.chain, gradient, _inverse_mass_of(squares, weight), tuning)
        return Adapted(chain, squares, weight), stats

    def for_run(self, run: Run) -> Self:
        """Options in the shapes of the model, those that are "auto" decided."""
        arrange(self.schedule, run.num_samples, run.thinning)
        preconditioner = self.preconditioner
        if isinstance(preconditioner, str) and preconditioner == "auto":
            preconditioner = "curvature" if _takes_curvature(run) else None
        elif preconditioner is not None:
            preconditioner = _preconditioner(preconditioner, run)
        control_variate = self.control_variate
        if isinstance(control_variate, str) and control_variate == "auto":
            control_variate = _is_curvature(preconditioner) and run.plan.batch_size is not None
        control_variate = _control_variate(control_variate, run)
        kernel = replace(self, preconditioner=preconditioner, control_variate=control_variate)
        if run.is_on_disk:
            kernel._check_reads_from_disk(run)
        return kernel

    def _check_reads_from_disk(self, run: Run) -> None:
        if self._has_control_variate(run):
            raise ValueError(f"{ON_DISK}; control_variate takes the gradient of all of them at its centre")
        if _is_curvature(self.preconditioner):
            raise ValueError(f"{ON_DISK}; preconditioner='curvature' takes that of all of them")

    def _has_control_variate(self, run: Run) -> bool:
        """Whether gradients are corrected; with all data in every batch there is no variance to control."""
        return bool(self.control_variate) and run.plan.batch_size is not None

    def tuning(self, run: Run, positions: Params, step_size: float | None) -> Tuning:
        """Schedule, preconditioner and centres, as they are given."""
        values: dict[str, Any] = {}
        if (schedule := arrange(self.schedule, run.num_samples, run.thinning)) is not None:
            values["schedule"] = schedule
        if self.preconditioner == "rmsprop":
            values["rmsprop_decay"] = RMSPROP_DECAY
        elif isinstance(self.preconditioner, dict):
            values["preconditioner"] = self.preconditioner
        tuning = per_chain(values, positions)
        if isinstance(self.control_variate, dict) and run.plan.batch_size is not None:
            tuning["centre"] = self.control_variate
        return tuning

    def is_centred(self, run: Run) -> bool:
        """Whether there are control variates, or a curvature at a mode."""
        return self._has_control_variate(run) or _is_curvature(self.preconditioner)

    def centred(self, run: Run, positions: Params, tuning: Tuning, rows: Rows) -> tuple[Params, Tuning]:
        """Positions and tuning of chains on ``rows``: centres of control variates and curvature where they are wanted.

        Chains then start at the centres, but without a warmup where they were told to. Those without a mode keep their
        positions, as ``has_mode`` of the tuning says.
        """
        keeps_start = run.init_params is not None and run.num_warmup == 0
        has_control = self._has_control_variate(run)
        if _is_curvature(self.preconditioner):
            modes, tuning, has_mode = tune_by_curvature(
                run.plan,
                positions,
                tuning,
                rows,
                rule=self.curved_step_size,
                has_control=has_control,
                has_step=run.step_size is not None,
                friction=self.given_friction,
            )
            tuning = {**tuning, "has_mode": has_mode}
            centres = tuning["centre"] if isinstance(self.control_variate, dict) else modes
            return positions if keeps_start else centres, tuning
        if not has_control:
            return positions, tuning
        centres = tuning["centre"] if "centre" in tuning else find_centres(run.plan, positions, rows)
        tuning = {**tuning, "centre": centres, "centre_gradient": full_gradients(run.plan, centres, rows)}
        both_given = run.init_params is not None and self.control_variate is not True
        return positions if both_given or keeps_start else centres, tuning

    def reported(self, tuning: Tuning) -> dict[str, Any]:
        """Options in JSON, arrays by their kind."""
        report = {**super().reported(tuning), "schedule": described(self.schedule)}
        for name in ("preconditioner", "control_variate"):
            if isinstance(report[name], dict):
                report[name] = "given"
        return report

    def warn(self, stats: Mapping[str, np.ndarray], run: Run, tuning: Tuning) -> None:
        """Warn of chains without a mode too."""
        super().warn(stats, run, tuning)
        warn_of_no_mode(tuning)


def _inverse_mass_of(squares: dict[str, jax.Array], weight: jax.Array) -> dict[str, jax.Array]:
    """The least root mean square gradient of a site divided by that of each; ones before any was seen."""
    scales = {name: jnp.sqrt(square / jnp.maximum(weight, 1e-30)) for name, square in squares.items()}
    least = functools.reduce(jnp.minimum, scales.values())
    is_known = (weight > 0) & (least > 0)
    return {name: jnp.where(is_known, least / jnp.where(is_known, scale, 1.0), 1.0) for name, scale in scales.items()}


def _is_curvature(preconditioner: Any) -> bool:
    return isinstance(preconditioner, str) and preconditioner == "curvature"


def _takes_curvature(run: Run) -> bool:
    """Whether the curvature at the mode is the default: for few parameters that are no network's, and all data."""
    model = run.plan.model
    is_small = not model.is_network and model.num_params <= MAX_PARAMS
    return is_small and run.step_size is None and run.plan.augment is None and not run.is_on_disk


def _preconditioner(given: Any, run: Run) -> str | dict[str, np.ndarray]:
    """``"curvature"``, ``"rmsprop"``, or for each site a positive array that broadcasts against it."""
    if isinstance(given, str):
        _check_named(given, run)
        return given
    arrays = _by_site(given, run.shapes)
    for name, array in arrays.items():
        if not np.all(np.isfinite(array) & (array > 0)):
            raise ValueError(f"preconditioner must be positive and finite; it is not at the site {name!r}")
    if run.step_size is None:
        raise ValueError("a given preconditioner sets the unit of the step size; give step_size with it")
    return arrays


def _check_named(given: str, run: Run) -> None:
    if given not in ("curvature", "rmsprop"):
        raise ValueError(
            f"preconditioner={given!r} is unknown; use None, 'auto', 'curvature', 'rmsprop', a dictionary or a vector"
        )
    if given == "curvature" and run.plan.model.num_params > MAX_PARAMS:
        raise ValueError(
            f"preconditioner='curvature' is a matrix of all parameters, for at most {MAX_PARAMS} of them; the "
            f"model has {run.plan.model.num_params}. Take 'rmsprop'"
        )
    if given == "curvature" and run.plan.augment is not None:
        raise ValueError(
            "preconditioner='curvature' is that of the data as they are, not of their augmentations; leave augment "
            "out, or take 'rmsprop'"
        )
    if given == "rmsprop" and run.num_warmup == 0:
        raise ValueError("preconditioner='rmsprop' is estimated during the warmup; num_warmup=0 leaves it none")


def _by_site(given: Any, shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A dictionary, or one vector of all parameters in the order of the sites' names, as arrays by site."""
    if isinstance(given, Mapping):
        if set(given) != set(shapes):
            raise ValueError(f"preconditioner must have the sites {sorted(shapes)}; got {sorted(given)}")
        arrays = {name: np.asarray(given[name], dtype=float) for name in shapes}
        for name, array in arrays.items():
            if array.shape not in ((), shapes[name].shape):
                raise ValueError(
                    f"preconditioner[{name!r}] has shape {array.shape}; wanted {shapes[name].shape}, or one number"
                )
        return arrays
    vector = np.asarray(given, dtype=float)
    sizes = {name: int(np.prod(shapes[name].shape)) for name in sorted(shapes)}
    if vector.shape != (sum(sizes.values()),):
        raise ValueError(f"preconditioner has shape {vector.shape}; wanted ({sum(sizes.values())},)")
    parts = np.split(vector, np.cumsum(list(sizes.values()))[:-1])
    return {name: part.reshape(shapes[name].shape) for name, part in zip(sizes, parts, strict=True)}


def _control_variate(given: Any, run: Run) -> bool | dict[str, jax.Array]:
    """False, True (find the centres), or centres stacked over chains."""
    if isinstance(given, bool | np.bool_) and not given:
        return False
    if run.plan.augment is not None:
        raise ValueError(
            "control_variate: the full gradient at the centre is that of the data as they are, not of their "
            "augmentations; leave augment out, or control_variate"
        )
    if isinstance(given, bool | np.bool_):
        return True
    if not isinstance(given, Mapping):
        raise TypeError(f"control_variate must be a bool or a dictionary of sites; got {type(given).__name__}")
    centres = resolve_init_params(given, run.shapes, run.num_chains, "control_variate")
    assert centres is not None
    return jax.tree.map(jnp.asarray, centres)
