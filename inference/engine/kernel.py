"""What a kernel is: checked options, and the start, the step and the adaptation of one chain."""

from __future__ import annotations

import abc
import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.inference.engine.guards import warn_of_divergences
from pseudocoreset.models import Params
from pseudocoreset.rows import Rows

if TYPE_CHECKING:
    from pseudocoreset.inference.engine.plan import Plan, Run

__all__ = ["TRACED", "Density", "Kernel", "Stats", "Tuning", "option_names", "per_chain", "tempered"]

Stats = dict[str, jax.Array]
Tuning = dict[str, Any]  # arrays, and tuples and dictionaries of them


class Density(NamedTuple):
    """What a kernel may ask of the target, at temperature one.

    log_density
        ``(params, rows) -> scalar``, unbiased, and exact on ``data``.
    gradient
        ``(params, rows) -> params``, its gradient: an estimator in BlackJAX's form.
    minibatch
        ``key -> Rows``; all data where no batch size was asked for.
    data
        All data; nothing in a step on data from disk.
    terms
        ``(params, data) -> tree`` of arrays whose elements add up to the log density; see ``log_density_terms``.
    """

    log_density: Callable[[Params, Rows], jax.Array]
    gradient: Callable[[Params, Rows], Params]
    minibatch: Callable[[jax.Array], Rows]
    data: Rows
    terms: Callable[[Params, Rows], Any] | None = None


class ValueIsInTuning:
    """In the place of a traced option inside compiled code, where every use of it is an error."""

    def __bool__(self) -> bool:
        raise TypeError("this option is traced: compiled code takes it from tuning, not from the kernel")

    def __repr__(self) -> str:
        return "<in tuning>"


_IN_TUNING = ValueIsInTuning()


# Metadata of an option that compiled code takes from ``tuning``, so that another value compiles nothing.
TRACED: Mapping[str, Any] = {"traced": True}


class Kernel(abc.ABC):
    """One MCMC algorithm; a subclass is a frozen dataclass whose fields are the options of the algorithm.

    A field is part of the compiled program, and must be hashable; with ``metadata=TRACED`` it may hold anything, and
    ``tuning`` says what compiled code gets of it.

    ``__post_init__`` checks what can be told without a model, ``for_run`` the rest. The three methods ``init``,
    ``step`` and ``adapt`` are of one chain and are compiled; the engine runs them for all chains, in blocks, on data in
    memory or on disk, and goes on with them where a run was stopped.

    Attributes:
        name: what ``sample(kernel=...)`` and saved posteriors call it.
        uses_minibatches: whether a step is on a minibatch; otherwise it needs the exact log density.
        divergence_remedy: what a warning of divergent transitions advises beside a smaller step size.
    """

    name: ClassVar[str]
    uses_minibatches: ClassVar[bool] = False
    divergence_remedy: ClassVar[str | None] = None

    @abc.abstractmethod
    def init(self, key: jax.Array, position: Params, tuning: Tuning, density: Density) -> Any:
        """The state that a chain starts with: a pytree of arrays."""

    @abc.abstractmethod
    def step(self, key: jax.Array, state: Any, tuning: Tuning, density: Density, rows: Rows) -> tuple[Any, Stats]:
        """One transition.

        Args:
            key: of this step alone.
            state: of the chain.
            tuning: ``temperature``, ``step_size``, what ``tuning`` and ``adapt`` add, and ``is_warmup``.
            density: the target.
            rows: the minibatch of this step; all data for kernels without minibatches.

        Returns:
            The next state, and scalars by ArviZ's names; ``lp``, where it is among them, is the log density at
            temperature one.
        """

    def position(self, state: Any) -> Params:
        """The parameters in a state."""
        return state.position

    def adapt(
        self, key: jax.Array, position: Params, tuning: Tuning, density: Density, num_steps: int
    ) -> tuple[Any, Tuning]:
        """The state after a warmup that finds a step size, and the tuning with it; see ``adapts``."""
        raise NotImplementedError

    @property
    def adapts(self) -> bool:
        """Whether there is an ``adapt``, which finds the step size where none is given."""
        return type(self).adapt is not Kernel.adapt

    def for_run(self, run: Run) -> Self:
        """The kernel with options that fit what was asked of the chains.

        Raises:
            TypeError, ValueError: naming the option that does not.
        """
        del run
        return self

    def default_step_size(self, plan: Plan, positions: Params, total_weight: float) -> float | None:
        """The step size where none is given; None where ``adapt`` finds it.

        Args:
            plan: of the chains.
            positions: where the chains start, leaves (chain, ...).
            total_weight: sum of the weights of the data.
        """
        del plan, positions, total_weight
        return None

    def tuning(self, run: Run, positions: Params, step_size: float | None) -> Tuning:
        """What compiled code needs of the traced options, leaves (chain, ...); see ``per_chain``."""
        del run, positions, step_size
        return {}

    def is_centred(self, run: Run) -> bool:
        """Whether chains start where ``centred`` says, which looks at all data."""
        del run
        return False

    def centred(self, run: Run, positions: Params, tuning: Tuning, rows: Rows) -> tuple[Params, Tuning]:
        """Positions and tuning, leaves (chain, ...), for all data ``rows``."""
        del run, rows
        return positions, tuning

    def reported(self, tuning: Tuning) -> dict[str, Any]:
        """The options in JSON, as metadata of a posterior."""
        del tuning
        return self.options()

    def warn(self, stats: Mapping[str, np.ndarray], run: Run, tuning: Tuning) -> None:
        """Warn of draws that look wrong, by their statistics (chain, draw)."""
        del run, tuning
        warn_of_divergences(stats, self)

    def options(self) -> dict[str, Any]:
        """The options by name."""
        return {name: getattr(self, name) for name in option_names(type(self))}

    def settle(self, **values: Any) -> None:
        """Set options to values that were checked, in ``__post_init__``."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def compiled_form(self) -> Self:
        """The kernel as compiled code knows it: without the values of traced options.

        Raises:
            TypeError: if another option is not hashable.
        """
        form = copy.copy(self)
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if field.metadata.get("traced"):
                form.settle(**{field.name: _IN_TUNING})
                continue
            try:
                hash(getattr(self, field.name))
            except TypeError as error:
                raise TypeError(
                    f"{field.name} of kernel {self.name!r} cannot be hashed; declare it as field(metadata=TRACED), and "
                    "put it into tuning"
                ) from error
        return form


def option_names(kernel: type[Kernel]) -> tuple[str, ...]:
    """Names of the options of a kernel."""
    return tuple(field.name for field in dataclasses.fields(kernel))  # type: ignore[arg-type]


def per_chain(values: Mapping[str, Any], positions: Params) -> Tuning:
    """Values of all chains as tuning: leaves (chain, ...), integers or of the type of the parameters.

    Args:
        values: numbers, arrays, and trees of them.
        positions: of the chains, leaves (chain, ...).
    """
    leaves = jax.tree.leaves(positions)
    # A wider type than that of the parameters would change theirs from step to step.
    num_chains, dtype = leaves[0].shape[0], jnp.result_type(*leaves)

    def of_chains(value: Any) -> jax.Array:
        counts = isinstance(value, int)
        return jnp.broadcast_to(jnp.asarray(value, jnp.int32 if counts else dtype), (num_chains, *np.shape(value)))

    return jax.tree.map(of_chains, dict(values))


def tempered(tuning: Tuning, density: Density) -> Callable[[Params], jax.Array]:
    """The log density of all data, divided by the temperature."""
    return lambda params: density.log_density(params, density.data) / tuning["temperature"]
