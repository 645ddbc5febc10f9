"""3x3 convolutions on CPUs, compiled for the processor at hand, where XLA leaves half of its speed unused.

``correlate`` is the convolution, with derivatives of every order. Below it: ``primitives`` for JAX, ``handlers`` for
XLA, ``programs`` and ``products``, which say the kernels instruction by instruction, and ``emitter``, which makes
machine code of them by LLVM. Each is compiled once a process for each number of channels and filters, in about a fifth
of a second.
"""

from pseudocoreset.kernels.primitives import correlate

__all__ = ["correlate"]
