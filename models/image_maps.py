"""Linear maps of images whose transposes are written out, where reverse mode would make slow ones of their slices.

The transpose of a slice pads, and that of several adds what they padded: passes over arrays that a compiler for a CPU
does not vectorise well. So each such map is a primitive of JAX that knows its transpose, under every derivative.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

__all__ = ["ImageMap"]


@dataclass(frozen=True)
class ImageMap:
    """A linear map of images, each by itself, so that a batch is more images.

    Attributes:
        apply: ``(shape, x) -> y``, and, if it takes a bias, ``(shape, x, bias) -> y + bias``.
        adjoint: ``(shape, y) -> x``, its transpose in x.
        shape: height and width of the images.
        before: axis of the images in x.
        after: and in y.
    """

    apply: Callable[..., jax.Array]
    adjoint: Callable[[tuple[int, int], jax.Array], jax.Array]
    shape: tuple[int, int]
    before: int = 0
    after: int = 0

    def __call__(self, x: jax.Array, *bias: jax.Array) -> jax.Array:
        """The map of ``x``, with a bias (channels,) added at every place."""
        return _primitive.bind(x, *bias, map=self)

    def transposed(self) -> ImageMap:
        """From y to x."""
        return ImageMap(self.adjoint, self.apply, self.shape, self.after, self.before)


_primitive = Primitive("image_map")


# Traced and lowered once for all layers of a shape: a deep network has hundreds of these maps.
@functools.partial(jax.jit, static_argnames="map")
def _evaluate(x: jax.Array, *bias: jax.Array, map: ImageMap) -> jax.Array:
    return map.apply(map.shape, x, *bias)


def _shape(x: Any, *bias: Any, map: ImageMap) -> Any:
    given = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, *bias))
    out = jax.eval_shape(functools.partial(_evaluate, map=map), *given)
    return x.update(shape=out.shape, dtype=out.dtype)


def _transpose(cotangent: Any, x: Any, *bias: Any, map: ImageMap) -> list[Any]:
    if isinstance(cotangent, ad.Zero):
        return [ad.Zero(a.aval) if ad.is_undefined_primal(a) else None for a in (x, *bias)]
    found = [map.transposed()(cotangent), *(cotangent.sum((0, 1, 2)) for _ in bias)]
    return [a if ad.is_undefined_primal(b) else None for a, b in zip(found, (x, *bias), strict=True)]


def _batch(arguments: Sequence[Any], dims: Sequence[int | None], *, map: ImageMap) -> tuple[Any, int]:
    x, *bias = arguments
    axis, *of_bias = dims
    if of_bias and of_bias[0] is not None:
        added = jnp.moveaxis(bias[0], of_bias[0], 0)[:, None, None, None]
        out = map(x) if axis is None else _batch([x], [axis], map=map)[0]
        return out + added, map.after
    assert axis is not None  # one of them is mapped over
    x = jnp.moveaxis(x, axis, map.before)
    num_batches, num_images = x.shape[map.before : map.before + 2]
    x = x.reshape(*x.shape[: map.before], num_batches * num_images, *x.shape[map.before + 2 :])
    out = map(x, *bias)
    return out.reshape(*out.shape[: map.after], num_batches, num_images, *out.shape[map.after + 1 :]), map.after


_primitive.def_impl(_evaluate)
_primitive.def_abstract_eval(_shape)
ad.deflinear2(_primitive, _transpose)
batching.primitive_batchers[_primitive] = _batch
mlir.register_lowering(_primitive, mlir.lower_fun(_evaluate, multiple_results=False))
