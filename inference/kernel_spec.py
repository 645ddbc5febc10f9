"""What ``sample`` asks of a kernel, and what a kernel may ask of the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from pseudocoreset.inference.data import Minibatch
from pseudocoreset.models import Params

__all__ = ["Density", "KernelSpec", "Stats", "Tuning", "batch_and_step", "position_of", "tempered"]

Stats = dict[str, jax.Array]
Tuning = dict[str, Any]  # arrays, and tuples and dictionaries of them


class Density(NamedTuple):
    """What a kernel may ask of the target, at temperature one.

    log_density
        ``(params, minibatch) -> scalar``, unbiased, and exact on ``data``.
    gradient
        ``(params, minibatch) -> params``, its gradient: an estimator in BlackJAX's form.
    minibatch
        ``key -> Minibatch``; all data where no batch size was asked for.
    data
        All data.
    terms
        ``(params, data) -> tree`` of arrays whose elements add up to the log density; see ``log_density_terms``. Only
        network HMC asks for it.
    """

    log_density: Callable[[Params, Minibatch], jax.Array]
    gradient: Callable[[Params, Minibatch], Params]
    minibatch: Callable[[jax.Array], Minibatch]
    data: Minibatch
    terms: Callable[[Params, Minibatch], Any] | None = None


class KernelSpec(NamedTuple):
    """One algorithm for one chain.

    init
        ``(key, position, tuning, density) -> state``.
    step
        ``(key, state, tuning, density, options) -> (state, stats)``; stats have ArviZ's names. ``tuning`` also holds
        ``is_warmup``.
    position
        ``state -> params``.
    options
        Names and defaults of what ``sample`` takes as ``**kernel_options`` (None: decided by ``sample``).
    uses_minibatches
        Whether gradients are estimated; otherwise the kernel needs the exact log density.
    adapt
        ``(key, position, tuning, density, options, num_steps, has_metric) -> (state, tuning)`` or None.
    """

    init: Callable[..., Any]
    step: Callable[..., tuple[Any, Stats]]
    position: Callable[[Any], Params]
    options: Mapping[str, Any]
    uses_minibatches: bool
    adapt: Callable[..., tuple[Any, Tuning]] | None = None


def tempered(tuning: Tuning, density: Density) -> Callable[[Params], jax.Array]:
    """The log density of all data, divided by the temperature."""
    return lambda params: density.log_density(params, density.data) / tuning["temperature"]


def batch_and_step(key: jax.Array) -> jax.Array:
    """Keys of a step on a minibatch: of the minibatch, and of the rest, (2,)."""
    return jax.random.split(key)


def position_of(state: Any) -> Params:
    """The position of a state that has one."""
    return state.position
