"""Kernel options that are checked against the model, the data and the length of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.inference.chains import Plan
from pseudocoreset.inference.curvature import MAX_PARAMS
from pseudocoreset.inference.schedules import Constant, arrange
from pseudocoreset.inference.validation import resolve_init_params

__all__ = ["resolve_run_options"]


def resolve_run_options(
    options: Mapping[str, Any],
    plan: Plan,
    shapes: Mapping[str, Any],
    *,
    step_size: float | None,
    num_chains: int,
    num_warmup: int,
    num_samples: int,
    thinning: int,
    is_on_disk: bool,
) -> dict[str, Any]:
    """Options that fit the run, arrays among them in the shapes that kernels take.

    Raises:
        TypeError, ValueError: naming the option.
    """
    resolved = dict(options)
    if "trajectory_length" in options and options["trajectory_length"] is None and not plan.model.is_network:
        raise ValueError(
            "trajectory_length has a default, from the scale of the prior, for networks alone; give it: about half of "
            "pi times the largest standard deviation of the posterior"
        )
    if "diagonal_preconditioning" in options and plan.model.num_params < 2:
        raise ValueError("microcanonical kernels need at least two parameters; take kernel='nuts'")
    arrange(options.get("schedule", Constant()), num_samples, thinning)
    if "preconditioner" in options:
        given = options["preconditioner"]
        if isinstance(given, str) and given == "auto":
            given = "curvature" if _takes_curvature(plan, step_size, is_on_disk) else None
        elif given is not None:
            given = _preconditioner(given, plan, shapes, step_size, num_warmup)
        resolved["preconditioner"] = given
    if "control_variate" in options:
        wanted = options["control_variate"]
        if isinstance(wanted, str) and wanted == "auto":
            wanted = isinstance(given, str) and given == "curvature" and plan.batch_size is not None
        resolved["control_variate"] = _control_variate(wanted, plan, dict(shapes), num_chains)
    return resolved


def _takes_curvature(plan: Plan, step_size: float | None, is_on_disk: bool) -> bool:
    """Whether the curvature at the mode is the default: for few parameters that are no network's, and all data."""
    is_small = not plan.model.is_network and plan.model.num_params <= MAX_PARAMS
    return is_small and step_size is None and plan.augment is None and not is_on_disk


def _preconditioner(
    given: Any, plan: Plan, shapes: Mapping[str, Any], step_size: float | None, num_warmup: int
) -> str | dict[str, np.ndarray]:
    """``"curvature"``, ``"rmsprop"``, or for each site a positive array that broadcasts against it."""
    if isinstance(given, str):
        if given not in ("curvature", "rmsprop"):
            raise ValueError(
                f"preconditioner={given!r} is unknown; use None, 'auto', 'curvature', 'rmsprop', a dictionary or a "
                "vector"
            )
        if given == "curvature" and plan.model.num_params > MAX_PARAMS:
            raise ValueError(
                f"preconditioner='curvature' is a matrix of all parameters, for at most {MAX_PARAMS} of them; the "
                f"model has {plan.model.num_params}. Take 'rmsprop'"
            )
        if given == "curvature" and plan.augment is not None:
            raise ValueError(
                "preconditioner='curvature' is that of the data as they are, not of their augmentations; leave augment "
                "out, or take 'rmsprop'"
            )
        if given == "rmsprop" and num_warmup == 0:
            raise ValueError("preconditioner='rmsprop' is estimated during the warmup; num_warmup=0 leaves it none")
        return given
    if isinstance(given, Mapping):
        if set(given) != set(shapes):
            raise ValueError(f"preconditioner must have the sites {sorted(shapes)}; got {sorted(given)}")
        arrays = {name: np.asarray(given[name], dtype=float) for name in shapes}
        for name, array in arrays.items():
            if array.shape not in ((), shapes[name].shape):
                raise ValueError(
                    f"preconditioner[{name!r}] has shape {array.shape}; wanted {shapes[name].shape}, or one number"
                )
    else:
        vector = np.asarray(given, dtype=float)
        sizes = {name: int(np.prod(shapes[name].shape)) for name in sorted(shapes)}
        if vector.shape != (sum(sizes.values()),):
            raise ValueError(f"preconditioner has shape {vector.shape}; wanted ({sum(sizes.values())},)")
        parts = np.split(vector, np.cumsum(list(sizes.values()))[:-1])
        arrays = {name: part.reshape(shapes[name].shape) for name, part in zip(sizes, parts, strict=True)}
    for name, array in arrays.items():
        if not np.all(np.isfinite(array) & (array > 0)):
            raise ValueError(f"preconditioner must be positive and finite; it is not at the site {name!r}")
    if step_size is None:
        raise ValueError("a given preconditioner sets the unit of the step size; give step_size with it")
    return arrays


def _control_variate(given: Any, plan: Plan, shapes: dict[str, Any], num_chains: int) -> bool | dict[str, jax.Array]:
    """False, True (find the centres), or centres stacked over chains."""
    if isinstance(given, bool | np.bool_) and not given:
        return False
    if plan.augment is not None:
        raise ValueError(
            "control_variate: the full gradient at the centre is that of the data as they are, not of their "
            "augmentations; leave augment out, or control_variate"
        )
    if isinstance(given, bool | np.bool_):
        return True
    if not isinstance(given, Mapping):
        raise TypeError(f"control_variate must be a bool or a dictionary of sites; got {type(given).__name__}")
    centres = resolve_init_params(given, shapes, num_chains, "control_variate")
    assert centres is not None
    return jax.tree.map(jnp.asarray, centres)
