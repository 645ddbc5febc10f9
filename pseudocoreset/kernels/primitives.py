"""Correlation of images with 3x3 filters as JAX sees it: two primitives that are each other's derivatives.

The correlation is linear in the weights, and in the images but for its bias; so is its gradient towards the weights in
images and cotangents. A transpose of either is the other, or the correlation with its weights turned round. So
derivatives of any order and either mode are these two again.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from pseudocoreset.kernels import processor
from pseudocoreset.kernels.handlers import target
from pseudocoreset.kernels.sizes import FILTERS, Sizes

__all__ = ["correlate"]


def correlate(x: jax.Array, filters: jax.Array, bias: jax.Array | None) -> jax.Array:
    """As ``pseudocoreset.kernels.correlate``."""
    weights = filters.reshape(-1, filters.shape[-1])
    if bias is not None:
        weights = jnp.concatenate([weights, bias[None]])
    return _correlate(x, weights, bias is not None)


def _correlate(x: jax.Array, weights: jax.Array, bias: bool) -> jax.Array:
    num_filters = weights.shape[1]
    return _correlation.bind(x, _padded(weights), bias=bias)[..., :num_filters]


def _padded(x: jax.Array) -> jax.Array:
    missing = -x.shape[-1] % FILTERS
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x


def _turned(weights: jax.Array, channels: int) -> jax.Array:
    """The weights of the correlation's transpose in the images: channels and filters swapped, places reversed."""
    places = weights[: 9 * channels].reshape(9, channels, -1)
    return jnp.swapaxes(places[::-1], 1, 2).reshape(-1, channels)


def _call(kind: str, out: tuple[int, ...], x: jax.Array, other: jax.Array, bias: bool) -> jax.Array:
    sizes = Sizes.of(x.shape, out[-1], bias, 8 * x.dtype.itemsize)
    n, height, width, _ = x.shape
    parts = sizes.parts(n, height, width, processor.threads_of_a_device())
    shapes = out, (parts, sizes.scratch(-(-n // parts), height, width))
    results = [jax.ShapeDtypeStruct(shape, x.dtype) for shape in shapes]
    return jax.ffi.ffi_call(target(kind, sizes), results)(x, other)[0]


_correlation = Primitive("correlation_3x3")
_gradient = Primitive("correlation_3x3_gradient")


def _check(x: Any, other: Any, fits: bool) -> None:
    """Routines trust what they are given."""
    if x.dtype != other.dtype or x.dtype not in (jnp.float32, jnp.float64) or not fits:
        raise TypeError(
            "correlate: wanted images (n, height, width, channels), filters (3, 3, channels, num_filters) and a bias "
            f"(num_filters,), all float32 or all float64; got {x.str_short()} and, as a matrix, {other.str_short()}"
        )


def _correlation_shape(x: Any, weights: Any, *, bias: bool) -> Any:
    _check(x, weights, x.ndim == 4 and weights.shape[0] == 9 * x.shape[3] + bias)
    return x.update(shape=(*x.shape[:3], weights.shape[1]))


def _gradient_shape(x: Any, cotangent: Any, *, bias: bool) -> Any:
    _check(x, cotangent, x.ndim == cotangent.ndim == 4 and x.shape[:3] == cotangent.shape[:3])
    return x.update(shape=(9 * x.shape[3] + bias, cotangent.shape[3]))


def _evaluate_correlation(x: jax.Array, weights: jax.Array, *, bias: bool) -> jax.Array:
    return _call("correlation", (*x.shape[:3], weights.shape[1]), x, weights, bias)


def _evaluate_gradient(x: jax.Array, cotangent: jax.Array, *, bias: bool) -> jax.Array:
    return _call("gradient", (9 * x.shape[3] + bias, cotangent.shape[3]), x, cotangent, bias)


def _without_bias(weights: jax.Array, bias: bool) -> jax.Array:
    return weights[:-1] if bias else weights


def _with_no_bias(weights: jax.Array, bias: bool) -> jax.Array:
    return jnp.pad(weights, ((0, 1), (0, 0))) if bias else weights


def _correlation_in_x(tangent: Any, x: Any, weights: Any, *, bias: bool) -> Any:
    return _correlation.bind(tangent, _without_bias(weights, bias), bias=False)


def _gradient_in_x(tangent: Any, x: Any, cotangent: Any, *, bias: bool) -> Any:
    return _with_no_bias(_gradient.bind(tangent, cotangent, bias=False), bias)


def _in_second(primitive: Primitive, tangent: Any, x: Any, second: Any, *, bias: bool) -> Any:
    return primitive.bind(x, tangent, bias=bias)


def _transpose(primitive: Primitive, given: Any, x: Any, second: Any, *, bias: bool) -> list[Any]:
    """The correlation makes values of weights, its gradient weights of values: each transposes the other."""
    if ad.is_undefined_primal(x):
        if isinstance(given, ad.Zero):
            return [ad.Zero(x.aval), None]
        assert not bias, "with a bias it is not linear in the images"
        values, weights = (given, second) if primitive is _correlation else (second, given)
        return [_correlate(values, _turned(weights, x.aval.shape[3]), bias=False), None]
    if isinstance(given, ad.Zero):
        return [None, ad.Zero(second.aval)]
    other = _gradient if primitive is _correlation else _correlation
    return [None, other.bind(x, given, bias=bias)]


def _batch_correlation(arguments: Sequence[Any], dims: Sequence[int | None], *, bias: bool) -> tuple[Any, int]:
    if dims[0] is not None and dims[1] is None:
        x = jnp.moveaxis(arguments[0], dims[0], 0)
        out = _correlation.bind(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), arguments[1], bias=bias)
        return out.reshape(*x.shape[:2], *out.shape[1:]), 0
    return _one_by_one(_correlation, arguments, dims, bias=bias)


def _one_by_one(
    primitive: Primitive, arguments: Sequence[Any], dims: Sequence[int | None], *, bias: bool
) -> tuple[Any, int]:
    mapped = [jnp.moveaxis(a, d, 0) for a, d in zip(arguments, dims, strict=True) if d is not None]

    def one(items: list[Any]) -> Any:
        left = iter(items)
        given = [a if d is None else next(left) for a, d in zip(arguments, dims, strict=True)]
        return primitive.bind(*given, bias=bias)

    return jax.lax.map(one, mapped), 0


for _primitive, _evaluate, _shape, _batch, _in_x in (
    (_correlation, _evaluate_correlation, _correlation_shape, _batch_correlation, _correlation_in_x),
    (_gradient, _evaluate_gradient, _gradient_shape, functools.partial(_one_by_one, _gradient), _gradient_in_x),
):
    _primitive.def_impl(jax.jit(_primitive.bind, static_argnames="bias"))
    _primitive.def_abstract_eval(_shape)
    ad.defjvp(_primitive, _in_x, functools.partial(_in_second, _primitive))
    ad.primitive_transposes[_primitive] = functools.partial(_transpose, _primitive)
    batching.primitive_batchers[_primitive] = _batch
    mlir.register_lowering(_primitive, mlir.lower_fun(_evaluate, multiple_results=False), platform="cpu")
