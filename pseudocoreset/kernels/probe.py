"""Whether this process convolves by machine code: found out once, at the first use, and said in one line of the log."""

from __future__ import annotations

import functools
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

__all__ = ["routines_work"]

logger = logging.getLogger(__name__)

_SETTING = "PSEUDOCORESET_KERNELS"
_PROBING = threading.Lock()


def routines_work() -> bool:
    """Whether routines can be compiled here and give the right numbers.

    They do not where llvmlite is missing, the processor is of an unknown kind, XLA's structures are others than those
    that routines are written for, a number is wrong, or the environment variable ``PSEUDOCORESET_KERNELS`` is ``off``
    (``auto``, or nothing, has them tried). Convolutions are matrix products then.

    Raises:
        ValueError: if the variable holds anything else.
    """
    with _PROBING:
        return _probe()


@functools.cache
def _probe() -> bool:
    setting = os.environ.get(_SETTING) or "auto"
    if setting not in ("auto", "off"):
        raise ValueError(f"{_SETTING}: wanted 'auto' or 'off', got {setting!r}")
    if setting == "off":
        logger.info("3x3 convolutions on this CPU are matrix products: %s is off", _SETTING)
        return False
    try:
        # A thread of its own has no part in what JAX may be tracing or mapping here, nor in its settings.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(_check).result()
    except Exception as error:  # whatever it is, it may cost speed and never a run
        reason = f"{type(error).__name__}: {error}"
        logger.warning("3x3 convolutions on this CPU are slower matrix products, not machine code: %s", reason)
        return False
    logger.debug("3x3 convolutions on this CPU are machine code")
    return True


def _check() -> None:
    """Compile both routines, one in each form and precision, and compare what they give with NumPy's sums."""
    from pseudocoreset.kernels.primitives import correlate

    # Enough images that two threads share them.
    tiled, plain = _Problem(28, 16, np.float32), _Problem(40, 3, np.float64)
    value = jax.jit(correlate)(*tiled.given())
    _compare(value, tiled.value(), "values", tolerance=1e-4)
    with jax.enable_x64(True):
        images, filters, bias = plain.given()
        of_weights = jax.linear_transpose(lambda *weights: correlate(images, *weights), filters, bias)
        gradients = jax.jit(of_weights)(jax.device_put(plain.cotangent))
        for found, wanted in zip(gradients, plain.gradients(), strict=True):
            _compare(found, wanted, "gradients", tolerance=1e-12)


def _compare(found: jax.Array, wanted: np.ndarray, what: str, tolerance: float) -> None:
    error = float(np.abs(jax.device_get(found) - wanted).max() / np.abs(wanted).max())
    if not error < tolerance:  # nor where it is no number
        raise ArithmeticError(f"{what} of a convolution are wrong by {error:.1g} of the largest")


class _Problem:
    """Images of 16 x 16 pixels, filters, a bias and a cotangent, and the convolution place by place."""

    def __init__(self, n: int, channels: int, dtype: type):
        rng = np.random.default_rng(0)
        shapes = (n, 16, 16, channels), (3, 3, channels, 16), (16,), (n, 16, 16, 16)
        arrays: list[np.ndarray] = [rng.normal(size=shape).astype(dtype) for shape in shapes]
        self.images, self.filters, self.bias, self.cotangent = arrays
        padded = np.pad(self.images.astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)))
        self.seen = [[padded[:, i : i + 16, j : j + 16] for j in range(3)] for i in range(3)]

    def given(self) -> list[jax.Array]:
        return [jax.device_put(a) for a in (self.images, self.filters, self.bias)]

    def value(self) -> np.ndarray:
        places = (self.seen[i][j] @ self.filters[i, j] for i in range(3) for j in range(3))
        return sum(places, self.bias.astype(float))

    def gradients(self) -> tuple[np.ndarray, np.ndarray]:
        of_filters = [[np.tensordot(a, self.cotangent, ([0, 1, 2], [0, 1, 2])) for a in row] for row in self.seen]
        return np.array(of_filters), self.cotangent.sum((0, 1, 2))
