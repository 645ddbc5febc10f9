"""What is chosen per backend: the form of a convolution, the precision of products, networks that go together.

Experts, chains and posterior draws are the same thing to a compiler: a network applied to many parameter
sets. Vectorising a convolution over its filters turns it into a grouped convolution, and a batched matrix
product of the unfolded images needs the memory of all networks at once. On CPU a sequential map takes the memory of
one network and is the fastest at the size of CIFAR (``benchmarks/results/batching.json``). A GPU is kept busy by one
large network, where a pass over arrays takes ten times as long as a launch (``results/kernels_gpu.json``); small ones
go through together, as many as it takes, which has not been measured.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Jaxpr, jaxprs_in_params

from pseudocoreset.kernels import routines_work

__all__ = [
    "FEW_CHANNELS",
    "Form",
    "convolution_form",
    "full_precision",
    "largest_array",
    "on_cpu",
    "tiles_are_worth_it",
    "written_out",
]

Form = Literal["routine", "winograd", "product", "library"]

# Below them the transforms of tiles cost more than the products that they save (``results/batching.json``).
LEAST_CHANNELS = 8
LEAST_SIZE = 4
# Of each of the nine places, beyond which routines are slower than a matrix product.
WEIGHTS_A_PIXEL = 512
# Up to them a GPU's library pads the channels of images in passes of their own (``results/kernels_gpu.json``).
FEW_CHANNELS = 4


def on_cpu() -> bool:
    """Whether the default devices are CPUs."""
    return jax.default_backend() == "cpu"


def _on_gpu() -> bool:
    return jax.default_backend() == "gpu"


def _rounds_factors() -> bool:
    """Whether products of float32 numbers take rounded factors here, as someone told JAX."""
    return not on_cpu() and jax.default_matmul_precision.value not in ("highest", "float32")


def convolution_form(images: jax.Array, filters: jax.Array, padding: int, stride: int) -> Form:
    """In which form images (n, height, width, channels) meet filters (height, width, channels, num_filters) here.

    - ``"routine"``: our own machine code (``pseudocoreset.kernels``) on a CPU where it works, for 3x3 filters with a
      frame of one zero, in single or double precision. XLA's loops over tiles, and its products of them, take 1.4 to
      4.9 times as long (``benchmarks/results/batching.json``). Not where few pixels meet many weights, as deep in a
      residual network: most of the time goes into reading the weights there, which a routine puts in order first.
    - ``"winograd"``: Winograd's form of the same convolutions, on a GPU in single precision, where it is 1.4 times as
      fast as the library. With rounded factors, which matrix units multiply, the library is faster and Winograd's form
      loses too many digits.
    - ``"product"``: unfolding and one matrix product. On a CPU a ``lax.conv`` inside a loop body (``scan``, ``map``,
      ``while_loop``) falls off XLA's fast path and is an order of magnitude slower than outside it; the matrix product
      is as fast in loops as out of them. On a GPU where channels are few.
    - ``"library"``: the compiler's own.
    """
    height, width, channels, num_filters = filters.shape
    is_usual = (height, width, padding, stride) == (3, 3, 1, 1) and images.dtype == filters.dtype
    if on_cpu():
        is_worth_it = channels * num_filters <= WEIGHTS_A_PIXEL * math.prod(images.shape[:3])
        is_routine = is_usual and is_worth_it and images.dtype in (jnp.float32, jnp.float64) and routines_work()
        return "routine" if is_routine else "product"
    if not _on_gpu():
        return "library"
    is_single = jnp.finfo(images.dtype).bits >= 32 and not _rounds_factors()
    if is_usual and is_single and tiles_are_worth_it(images, filters):
        return "winograd"
    return "product" if channels <= FEW_CHANNELS else "library"


def tiles_are_worth_it(images: jax.Array, filters: jax.Array) -> bool:
    """Whether images and filters are large enough for Winograd's form."""
    return min(images.shape[1:3]) >= LEAST_SIZE and min(filters.shape[2:]) >= LEAST_CHANNELS


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 numbers at their precision, as a context or a decorator, unless JAX was told otherwise.

    Accelerators round the factors of matrix products and convolutions (TF32 on NVIDIA, bfloat16 on TPU) where nothing
    is said. To have that, say so: ``with jax.default_matmul_precision("tensorfloat32"):``, or the environment
    variable ``JAX_DEFAULT_MATMUL_PRECISION``. Sums are in float32 either way. A CPU rounds nothing.
    """
    if on_cpu() or jax.default_matmul_precision.value is not None:
        yield
        return
    with jax.default_matmul_precision("highest"):
        yield


def written_out(x: jax.Array) -> jax.Array:
    """``x`` as an array in memory, where it is about to be read in many places.

    The compiler of a GPU would rather make it again for each of them, the reading of a minibatch and its preprocessing
    nine times over for an unfolding.
    """
    return jax.lax.optimization_barrier(x) if _on_gpu() else x


def largest_array(fn: Callable[[Any], Any], stack: Any) -> int:
    """Bytes of the largest array that ``fn`` of one item of the stack makes on its way."""
    item = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), stack)

    def largest(jaxpr: Jaxpr) -> int:
        made = [v.aval for equation in jaxpr.eqns for v in equation.outvars]
        sizes = [math.prod(a.shape) * a.dtype.itemsize for a in made if isinstance(a, ShapedArray)]
        inner = [largest(j) for equation in jaxpr.eqns for j in jaxprs_in_params(equation.params)]
        return max([1, *sizes, *inner])

    return largest(jax.make_jaxpr(fn)(item).jaxpr)
