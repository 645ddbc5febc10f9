"""What stands before the first step of any chains: checked settings, their plan, starting points and tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from pseudocoreset.augment import Augmentation
from pseudocoreset.inference.chains import Plan, initial_positions
from pseudocoreset.inference.curvature import tune_by_curvature
from pseudocoreset.inference.data import Minibatch, default_chunk_size, held_out_chunk_size
from pseudocoreset.inference.kernels import Tuning
from pseudocoreset.inference.run_options import resolve_run_options
from pseudocoreset.inference.tuning import centre_gradients, default_step_size, initial_tuning
from pseudocoreset.inference.validation import (
    check_kernel_options,
    check_step_size_and_metric,
    resolve_augment,
    resolve_batch_size,
    resolve_init_params,
)
from pseudocoreset.models import Model, Params
from pseudocoreset.validation import check_integer, check_positive

__all__ = ["Setup", "Start", "set_up"]

STATIC_OPTIONS = (
    "target_acceptance_rate",
    "is_mass_matrix_diagonal",
    "num_integration_steps",
    "max_num_doublings",
    "diagonal_preconditioning",
)


class Start(NamedTuple):
    """Where chains start and what they are tuned to.

    positions
        Of every chain.
    tuning
        Of every chain; what is missing is adapted.
    step_size
        Given, or the default of a stochastic gradient kernel; None where it is adapted.
    """

    positions: Params
    tuning: Tuning
    step_size: float | None


@dataclasses.dataclass(frozen=True)
class Setup:
    """What was asked of chains, checked against the model and the shapes of the data.

    Attributes:
        plan: what compiled blocks depend on.
        options: kernel options, with defaults.
        step_size: as given.
        metric: inverse mass matrix as given.
        temperature: T.
        num_chains: chains, or simulations of one chain each.
        num_warmup: steps of a chain before the first draw.
        num_samples: draws of a chain.
        thinning: steps from draw to draw.
        shapes: of the sites of one chain.
        init_params: given starting points of every chain.
    """

    plan: Plan
    options: Mapping[str, Any]
    step_size: float | None
    metric: np.ndarray | None
    temperature: float
    num_chains: int
    num_warmup: int
    num_samples: int
    thinning: int
    shapes: dict[str, Any]
    init_params: Params | None

    def start(self, key: jax.Array, total_weight: float) -> Start:
        """Everything about the start that does not depend on the data, whose weights sum to ``total_weight``."""
        positions, step_size = self.init_params, self.step_size
        if positions is None:
            positions = initial_positions(self.plan, jax.random.split(key, self.num_chains))
        if step_size is None and self.plan.spec.uses_minibatches:
            step_size = default_step_size(self.plan, positions, total_weight)
        tuning = initial_tuning(
            self.plan,
            positions,
            self.options,
            temperature=self.temperature,
            step_size=step_size,
            metric=self.metric,
            num_samples=self.num_samples,
            thinning=self.thinning,
        )
        return Start(positions, tuning, step_size)

    def check_reads_from_disk(self) -> None:
        """Refuse what needs all data at once.

        Raises:
            ValueError: naming the argument.
        """
        wanted = "data: the training data are on disk and come in minibatches"
        if not self.plan.spec.uses_minibatches:
            raise ValueError(
                f"{wanted}; kernel {self.plan.kernel!r} takes all of them in every gradient. Take kernel='sghmc' or "
                "'sgld', or data in memory"
            )
        if self.plan.batch_size is None:
            raise ValueError(f"{wanted}; give batch_size, less than the {self.plan.num_data} data")
        if self.has_control_variate:
            raise ValueError(f"{wanted}; control_variate takes the gradient of all of them at its centre")
        if self.has_curvature:
            raise ValueError(f"{wanted}; preconditioner='curvature' takes that of all of them")

    @property
    def has_control_variate(self) -> bool:
        """Whether gradients are corrected; with all data in every batch there is no variance to control."""
        return bool(self.options.get("control_variate")) and self.plan.batch_size is not None

    @property
    def has_curvature(self) -> bool:
        """Whether the preconditioner is the curvature of the posterior at its mode."""
        preconditioner = self.options.get("preconditioner")
        return isinstance(preconditioner, str) and preconditioner == "curvature"

    def centred(self, positions: Params, tuning: Tuning, rows: Minibatch) -> tuple[Params, Tuning]:
        """Positions and tuning of chains on ``rows``: centres of control variates and curvature where they are wanted.

        Chains then start at the centres, but without a warmup where they were told to. Those without a mode keep their
        positions, as ``has_mode`` of the tuning says.
        """
        keeps_start = self.init_params is not None and self.num_warmup == 0
        if self.has_curvature:
            modes, tuning, has_mode = tune_by_curvature(
                self.plan,
                positions,
                tuning,
                rows,
                has_control=self.has_control_variate,
                has_step=self.step_size is not None,
                friction=self.options.get("friction"),
            )
            tuning = {**tuning, "has_mode": has_mode}
            centres = tuning["centre"] if isinstance(self.options["control_variate"], dict) else modes
            return positions if keeps_start else centres, tuning
        if not self.has_control_variate:
            return positions, tuning
        tuning = centre_gradients(self.plan, positions, tuning, rows)
        both_given = self.init_params is not None and self.options["control_variate"] is not True
        return positions if both_given or keeps_start else tuning["centre"], tuning


def set_up(
    model: Model,
    kernel: str,
    kernel_options: Mapping[str, Any],
    *,
    num_data: int,
    feature_shape: tuple[int, ...],
    num_chains: int,
    num_warmup: int,
    num_samples: int,
    thinning: int,
    temperature: float,
    batch_size: int | None,
    step_size: float | None,
    init_params: Mapping[str, Any] | None = None,
    chunk_size: int | None = None,
    preprocessing: Any = None,
    held_out_preprocessing: Any = None,
    keep_weights: bool = True,
    augment: Augmentation | str | None = None,
    data_name: str = "",
    mesh: Mesh | None = None,
    is_on_disk: bool = False,
) -> Setup:
    """Check what is asked of a kernel on a model and data; nothing is compiled.

    Args:
        model: a bound model.
        kernel: name in ``KERNELS``.
        kernel_options: as given.
        num_data: data, of ...
        feature_shape: ... this stored shape each.
        num_chains: chains, checked.
        num_warmup: steps of a chain before the first draw.
        num_samples: draws of a chain, checked.
        thinning: steps from draw to draw.
        temperature: T.
        batch_size: data in a minibatch; None for the default of the kernel.
        step_size: None for a default or adaptation.
        init_params: starting points; None for those of ``model.init``.
        chunk_size: rows evaluated at once; None for a default by the size of an input.
        preprocessing: of the stored inputs.
        held_out_preprocessing: of stored held-out inputs.
        keep_weights: whether draws hold all sites.
        augment: of every gradient's inputs, as given.
        data_name: by which ``augment="auto"`` chooses.
        mesh: devices, checked.
        is_on_disk: whether the data are read from disk, minibatch by minibatch.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    options = check_kernel_options(kernel, kernel_options)
    num_warmup = check_integer(num_warmup, "num_warmup", 0)
    thinning = check_integer(thinning, "thinning")
    temperature = check_positive(temperature, "temperature")
    step_size, metric = check_step_size_and_metric(kernel, step_size, options, model.num_params, num_warmup)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    if chunk_size is not None:
        chunk_size = check_integer(chunk_size, "chunk_size")
    batch_size = resolve_batch_size(batch_size, num_data, kernel)
    plan = Plan(
        model=model,
        kernel=kernel,
        options=tuple((name, options[name]) for name in STATIC_OPTIONS if name in options),
        num_data=num_data,
        batch_size=batch_size,
        preprocessing=preprocessing,
        chunk_size=chunk_size or default_chunk_size(model, feature_shape),
        held_out_preprocessing=held_out_preprocessing,
        held_out_chunk_size=chunk_size or held_out_chunk_size(model, feature_shape),
        keep_weights=keep_weights,
        has_metric=metric is not None,
        augment=resolve_augment(augment, kernel, feature_shape, data_name),
        mesh=mesh,
    )
    length = {"num_warmup": num_warmup, "num_samples": num_samples, "thinning": thinning}
    options = resolve_run_options(
        options, plan, shapes, step_size=step_size, num_chains=num_chains, is_on_disk=is_on_disk, **length
    )
    return Setup(
        plan=plan,
        options=options,
        step_size=step_size,
        metric=metric,
        temperature=temperature,
        num_chains=num_chains,
        shapes=shapes,
        init_params=resolve_init_params(init_params, shapes, num_chains),
        **length,
    )
