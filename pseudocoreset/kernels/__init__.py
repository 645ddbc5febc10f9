"""3x3 convolutions on CPUs, compiled for the processor at hand, where XLA leaves half of its speed unused.

``correlate`` is the convolution, with derivatives of every order; ``routines_work`` says whether this process has it.
The library runs without: no other module may depend on more than these two names, and importing them loads no compiler.

Below them: ``probe`` finds out, ``primitives`` are what JAX sees, ``handlers`` what XLA calls, by the structures that
``interface`` reads from XLA's header; ``routines`` and ``products`` say the machine code instruction by instruction,
and ``emitter`` makes it, by LLVM, for the ``processor`` at hand. A routine is compiled once per process for each number
of channels and filters, in about a fifth of a second.
"""

from __future__ import annotations

import jax

from pseudocoreset.kernels.probe import routines_work

__all__ = ["correlate", "routines_work"]


def correlate(x: jax.Array, filters: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """Correlation of images with 3x3 filters, a frame of one zero around the images.

    In a ``shard_map`` it needs ``check_vma=False``, and of a mesh axes of the type ``Auto``.

    Args:
        x: images (n, height, width, channels), float32 or float64.
        filters: (3, 3, channels, num_filters), of that type.
        bias: (num_filters,), added at every place.

    Returns:
        Images (n, height, width, num_filters).

    Raises:
        TypeError: if shapes do not fit one another, or types are others than these.
        RuntimeError: where ``routines_work`` is false.
    """
    if not routines_work():
        raise RuntimeError("correlate: this process has no routines for 3x3 convolutions; its log says why")
    from pseudocoreset.kernels import primitives

    return primitives.correlate(x, filters, bias)
