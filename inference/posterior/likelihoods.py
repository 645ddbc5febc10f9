"""What each draw of a posterior predicts on held-out inputs, a bounded block of draws at a time.

The distribution of the target comes from the NumPyro program itself, run with its latent sites, and its
function values where they are at hand, set to those of a draw.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers

from pseudocoreset.compute.limits import limits
from pseudocoreset.inference.posterior.model import held_out, model_of
from pseudocoreset.models import Model
from pseudocoreset.models.structure import class_log_probabilities, without_mask

if TYPE_CHECKING:
    from pseudocoreset.data import Split
    from pseudocoreset.inference.posterior.draws import Posterior

__all__ = ["log_probability_blocks", "mean_blocks", "observed", "same_data", "target_blocks"]

_FUNCTION = "f"


def same_data(left: Split, right: Split) -> bool:
    """Whether two splits hold the same model inputs and targets."""
    if left is right:
        return True
    if not (np.array_equal(left.raw, right.raw) and np.array_equal(left.y, right.y)):
        return False
    one, other = left.preprocessing, right.preprocessing
    arrays, others = one.arrays(), other.arrays()
    return one.metadata() == other.metadata() and all(np.array_equal(arrays[name], others[name]) for name in arrays)


def observed(posterior: Posterior, inputs: np.ndarray | slice = slice(None)) -> np.ndarray | None:
    """What the model of a posterior observes of its held-out data: targets, inputs, or a transform of them.

    Args:
        posterior: Draws evaluated on held-out inputs.
        inputs: Which of them.

    Returns:
        ``(n, ...)``; None where it depends on latent sites, so that predictions have no one value to be held against.
    """
    split = held_out(posterior)
    first, second = np.asarray(
        _observed(model_of(posterior), jnp.asarray(split.packed[inputs]), jnp.asarray(split.y[inputs]))
    )
    return first if np.array_equal(first, second) else None


@functools.partial(jax.jit, static_argnums=0)
def _observed(model: Model, x: jax.Array, y: jax.Array) -> jax.Array:
    """The value of the observed site (2, n, ...) in two runs of the program, whose latent sites differ."""
    name = model.terms[0].name

    def run(key: jax.Array) -> jax.Array:
        program = handlers.seed(model.program, key)
        return handlers.trace(program).get_trace(*model.program_arguments(x, y))[name]["value"]

    return jax.vmap(run)(jax.random.split(jax.random.key(0)))


def log_probability_blocks(
    posterior: Posterior,
    *,
    inputs: np.ndarray | slice = slice(None),
    chains: slice = slice(None),
    draws: slice = slice(None),
) -> Iterator[np.ndarray]:
    """Yield ``(block, n, C)`` log-probabilities of successive draws, chain by chain.

    Args:
        posterior: Draws evaluated on held-out inputs, of a model with finite support.
        inputs: Which held-out inputs.
        chains: Which chains.
        draws: Which draws of each.
    """
    width = model_of(posterior).num_classes or 1
    yield from _blocks(posterior, _class_log_probabilities, width, inputs, chains, draws)


def mean_blocks(
    posterior: Posterior,
    *,
    inputs: np.ndarray | slice = slice(None),
    chains: slice = slice(None),
    draws: slice = slice(None),
) -> Iterator[np.ndarray]:
    """Yield ``(block, n, d)`` means of the target; arguments as ``log_probability_blocks``."""
    yield from _blocks(posterior, _mean, 1, inputs, chains, draws)


def target_blocks(
    posterior: Posterior, key: jax.Array, *, inputs: np.ndarray | slice = slice(None)
) -> Iterator[np.ndarray]:
    """Yield ``(block, n, ...)`` targets drawn from the likelihood of successive draws.

    Args:
        posterior: Draws evaluated on held-out inputs.
        key: A typed key; draw s uses ``fold_in(key, s)``.
        inputs: Which held-out inputs.
    """
    yield from _blocks(posterior, _sample, 1, inputs, slice(None), slice(None), key)


def _blocks(
    posterior: Posterior,
    quantity: Callable[[dist.Distribution, jax.Array], jax.Array],
    width: int,
    inputs: np.ndarray | slice,
    chains: slice,
    draws: slice,
    key: jax.Array | None = None,
) -> Iterator[np.ndarray]:
    """Apply ``quantity(likelihood, key)`` to the likelihood at the held-out inputs under each draw."""
    split, model = held_out(posterior), model_of(posterior)
    y = jnp.asarray(split.y[inputs])
    x = jnp.zeros((y.shape[0], *split.feature_shape)) if model.is_network else jnp.asarray(split.packed[inputs])
    values = {name: leaf[chains, draws] for name, leaf in posterior.draws.items()}
    if posterior.function_values is not None:
        if model.is_network:  # weights act through the function values alone
            values = {name: leaf for name, leaf in values.items() if not name.startswith("network/")}
        values[_FUNCTION] = posterior.function_values[chains, draws][:, :, inputs]
    else:
        missing = sorted(set(jax.eval_shape(model.init, jax.random.key(0))) - set(values))
        if missing:
            raise ValueError(
                f"the posterior has no function values at the held-out inputs, and no draws of {', '.join(missing)}; "
                "sample with predict_on=..., or, when its weights were kept, use posterior.evaluate(split)"
            )
        x = jnp.asarray(split.packed[inputs])
    total = math.prod(next(iter(values.values())).shape[:2])
    stack = {name: leaf.reshape((total, *leaf.shape[2:])) for name, leaf in values.items()}
    block = max(1, min(total, limits().scored_elements // max(1, y.shape[0] * width)))
    key = jax.random.key(0) if key is None else key  # unused by quantities that are not random
    for start in range(0, total, block):
        index = np.arange(start, start + block)
        # the last block repeats the last draw, so that one compiled program serves all
        part = {name: leaf[np.minimum(index, total - 1)] for name, leaf in stack.items()}
        yield np.asarray(_evaluate(model, quantity, part, x, y, index, key))[: total - start]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _evaluate(
    model: Model,
    quantity: Callable[[dist.Distribution, jax.Array], jax.Array],
    values: dict[str, jax.Array],
    x: jax.Array,
    y: jax.Array,
    index: jax.Array,
    key: jax.Array,
) -> jax.Array:
    def one(values: dict[str, jax.Array], index: jax.Array) -> jax.Array:
        return quantity(_likelihood(model, values, x, y), jax.random.fold_in(key, index))

    return jax.vmap(one)(values, index)


def _likelihood(model: Model, values: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> dist.Distribution:
    """The distribution of the observed site, given constrained values of latent sites (and of "f")."""

    def value_of(site: dict[str, Any]) -> jax.Array | None:
        if site["type"] == "deterministic" and site["name"] == _FUNCTION and _FUNCTION in values:
            return values[_FUNCTION].reshape(jnp.shape(site["value"]))
        if site["type"] != "sample" or site["is_observed"]:
            return None
        # a site without draws acts on the target through "f" alone, so any value will do
        return values[site["name"]] if site["name"] in values else jnp.zeros(site["fn"].shape())

    program = handlers.substitute(handlers.seed(model.program, jax.random.key(0)), substitute_fn=value_of)
    sites = handlers.trace(program).get_trace(*model.program_arguments(x, y))
    return without_mask(sites[model.terms[0].name]["fn"])


def _sample(likelihood: dist.Distribution, key: jax.Array) -> jax.Array:
    return likelihood.sample(key)


def _class_log_probabilities(likelihood: dist.Distribution, _: jax.Array) -> jax.Array:
    """``(n, C)`` log-probabilities of a distribution with finite support."""
    return class_log_probabilities(likelihood, likelihood.batch_shape[0])


def _mean(likelihood: dist.Distribution, _: jax.Array) -> jax.Array:
    mean = likelihood.mean
    return mean.reshape(mean.shape[0], -1)
