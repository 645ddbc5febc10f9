"""Weighted data on the device, and what a sampler asks of them: log densities, minibatches, function values.

The target of every sampler is ``log_prior(params) + sum_i w_i log p(y_i | x_i, params)``. Sums over data run
in chunks, values and derivatives together, so memory does not grow with the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pseudocoreset.arguments import checked
from pseudocoreset.compute.chunks import rows_at_once
from pseudocoreset.compute.devices import Devices
from pseudocoreset.compute.limits import limits
from pseudocoreset.models import Model, Params
from pseudocoreset.rows import Rows

__all__ = [
    "control_variate_estimator",
    "default_chunk_size",
    "draw_indices",
    "draw_minibatch",
    "draws_with_replacement",
    "function_summary",
    "gradient_estimator",
    "held_out_chunk_size",
    "log_density_estimator",
    "log_density_terms",
]

# Held-out data of a batch, where a function value depends on the others: as many as the published codes take.
DEPENDENT_ROWS = 256
# With more data than this a row of the minibatch, replacement costs no variance to speak of and saves a sort.
REPLACEMENT_RATIO = 16


def default_chunk_size(model: Model, feature_shape: tuple[int, ...]) -> int | None:
    """Rows that are evaluated at once: as many as suit a network, 2^23 input elements otherwise.

    None, all of them, of networks with batch norm: in chunks they have another posterior.
    """
    if model.is_network and not model.is_separable:
        return None
    if model.is_network:
        return rows_at_once(model, limits())
    return max(16, limits().input_elements // max(1, math.prod(feature_shape)))


def held_out_chunk_size(model: Model, feature_shape: tuple[int, ...]) -> int:
    """Held-out rows that are evaluated at once: ``default_chunk_size``, but at most 256 of networks with batch norm.

    What these predict must not depend on the memory that a chunk may take.
    """
    return default_chunk_size(model, feature_shape) or DEPENDENT_ROWS


@checked
def log_density_estimator(
    model: Model,
    num_data: int,
    *,
    preprocessing: Any = None,
    chunk_size: int | None = None,
    devices: Devices | None = None,
) -> Callable[[Params, Rows], jax.Array]:
    """Unbiased estimate of the log density at temperature one from a minibatch.

    log_prior(params) + (n / B) sum_{i in batch} w_i log p(y_i | x_i, params); exact where the batch is the
    whole data.

    Args:
        model: a bound model.
        num_data: n, the number of data that minibatches are drawn from.
        preprocessing: applied to the inputs of the minibatch, None where they are model inputs already.
        chunk_size: rows evaluated at once; None for all.
        devices: where the rows are, in the place of ``chunk_size``; where they split rows, those are the whole data.

    Returns:
        ``estimator(params, minibatch) -> scalar``.
    """

    def log_likelihood(params: Params, rows: Rows) -> jax.Array:
        x = rows.inputs if preprocessing is None else preprocessing.apply(rows.inputs)
        values = model.log_likelihood(params, x, rows.targets)
        # A datum of weight zero takes no part, even where its log-likelihood is minus infinity.
        return jnp.sum(jnp.where(rows.weights > 0, rows.weights * values, 0.0))

    where = _place(devices, chunk_size)

    def estimator(params: Params, minibatch: Rows) -> jax.Array:
        total = _summed(log_likelihood, where, params, minibatch)
        if where.rows == "split":
            return model.log_prior(params) + total
        return model.log_prior(params) + (num_data / minibatch.weights.shape[0]) * total

    return estimator


def _summed(fn: Callable[[Params, Rows], jax.Array], devices: Devices, params: Params, rows: Rows) -> jax.Array:
    """Sum of ``fn`` over rows, in chunks and over devices.

    Its derivative is summed with it, chunk by chunk, so that nothing is kept of a chunk nor computed again, and the
    devices exchange both at once. (JAX's own derivative of a sum over devices is the sum of what comes back to it on
    each, which is the same on all of them: too large by their number, and of the rows of one.)
    """
    if devices.rows == "whole" and len(rows.weights) <= (devices.chunk or math.inf):
        return fn(params, rows)

    @jax.custom_vjp
    def total(params: Params, rows: Rows) -> jax.Array:
        return devices.sum_rows(lambda some: fn(params, some), rows)

    def forward(params: Params, rows: Rows) -> tuple[jax.Array, Params]:
        return devices.sum_rows(lambda some: jax.value_and_grad(fn)(params, some), rows)

    def backward(slope: Params, cotangent: jax.Array) -> tuple[Params, None]:
        return jax.tree.map(lambda leaf: cotangent * leaf, slope), None

    total.defvjp(forward, backward)
    return total(params, rows)


@checked
def gradient_estimator(model: Model, num_data: int, **form: Any) -> Callable[[Params, Rows], Params]:
    """``grad_estimator(position, minibatch)`` in BlackJAX's form: the gradient of ``log_density_estimator``.

    It takes the same arguments. Its mean over uniformly drawn minibatches is the gradient of the full log density,
    weights included.
    """
    return jax.grad(log_density_estimator(model, num_data, **form))


def control_variate_estimator(
    gradient: Callable[[Params, Rows], Params], centre: Params, centre_gradient: Params
) -> Callable[[Params, Rows], Params]:
    """Gradient estimates that are exact at a centre (Baker, Fearnhead, Fox and Nemeth 2019).

    grad(params, batch) - grad(centre, batch) + grad(centre, all data): unbiased wherever ``grad`` is, and with a
    variance that falls to zero like the squared distance from the centre, for two gradients a call instead of one.
    The same as ``blackjax.sgmcmc.gradients.control_variates``, but for the full gradient, which is not made anew.

    Args:
        gradient: ``gradient(params, minibatch)``, as ``gradient_estimator`` makes it.
        centre: a point near the mode.
        centre_gradient: the full gradient there.
    """

    def estimator(params: Params, minibatch: Rows) -> Params:
        here, there = gradient(params, minibatch), gradient(centre, minibatch)
        return jax.tree.map(lambda a, b, full: (a - b) + full, here, there, centre_gradient)

    return estimator


def log_density_terms(
    model: Model,
    *,
    preprocessing: Any = None,
    chunk_size: int | None = None,
    devices: Devices | None = None,
    num_data: int | None = None,
) -> Callable[[Params, Rows], dict[str, Any]]:
    """The log density in terms, so that differences between two points can be taken one by one.

    Args:
        model: a bound model.
        preprocessing: applied to the inputs, None where they are model inputs already.
        chunk_size: rows evaluated at once; None for all.
        devices: where the rows are, in the place of ``chunk_size``; the terms are those of all.
        num_data: n, where rows are split.

    Returns:
        ``terms(params, rows)``: a tree of arrays whose elements add up to the log density at temperature one, among
        them one a datum and one an element of each site with independent elements. Matrix products are made at
        full precision, which accelerators do not by default.
    """

    def of_rows(params: Params, rows: Rows) -> jax.Array:
        x = rows.inputs if preprocessing is None else preprocessing.apply(rows.inputs)
        values = model.log_likelihood(params, x, rows.targets)
        return jnp.where(rows.weights > 0, rows.weights * values, 0.0)

    where = _place(devices, chunk_size)

    def terms(params: Params, rows: Rows) -> dict[str, Any]:
        with jax.default_matmul_precision("highest"):
            likelihood = where.map_rows(lambda chunk: of_rows(params, chunk), rows)
            likelihood = where.gather(likelihood, len(rows.weights) if num_data is None else num_data)
            of_sites, log_det = model.prior_terms(params)
            return {"likelihood": likelihood, "prior": of_sites, "constraints": log_det}

    return terms


@checked
def draw_minibatch(key: jax.Array, data: Rows, batch_size: int) -> Rows:
    """Rows drawn uniformly, without replacement unless the data are more than 16 times the batch.

    Args:
        key: one typed key.
        data: all data.
        batch_size: rows to draw, at most the number of data.
    """
    indices = draw_indices(key, data.weights.shape[0], batch_size)
    return data.take(indices)


def draw_indices(key: jax.Array, num_data: int, batch_size: int) -> jax.Array:
    """Which rows ``draw_minibatch`` draws, (batch_size,)."""
    return jax.random.choice(key, num_data, (batch_size,), replace=draws_with_replacement(num_data, batch_size))


def draws_with_replacement(num_data: int, batch_size: int) -> bool:
    """Whether a row can be in a minibatch twice."""
    return num_data > REPLACEMENT_RATIO * batch_size


def function_summary(
    model: Model,
    params: Params,
    inputs: jax.Array,
    targets: jax.Array,
    *,
    preprocessing: Any,
    chunk_size: int,
) -> tuple[jax.Array | None, jax.Array]:
    """Function values and log-likelihood on held-out data, in chunks.

    Args:
        model: a bound model.
        params: unconstrained parameters, all sites.
        inputs: (n, *feature_shape), as stored.
        targets: (n, ...).
        preprocessing: applied to ``inputs``; None where they are model inputs already.
        chunk_size: rows evaluated at once.

    Returns:
        Function values (n, d), None for a model without them, and log-likelihood (n,).
    """

    def evaluate(rows: tuple[jax.Array, jax.Array]) -> tuple[jax.Array | None, jax.Array]:
        x = rows[0] if preprocessing is None else preprocessing.apply(rows[0])
        if not model.has_function:
            return None, model.log_likelihood(params, x, rows[1])
        f = model.apply(params, x)
        return f, model.function_log_likelihood(params, f, x, rows[1])

    return Devices(chunk=chunk_size).map_rows(evaluate, (inputs, targets))


def _place(devices: Devices | None, chunk_size: int | None) -> Devices:
    return Devices(chunk=chunk_size) if devices is None else devices
