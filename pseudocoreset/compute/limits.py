"""What a piece of work may take at once: one value, which tests replace."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Limits", "limited", "limits"]

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """Numbers that bound memory. They change how work is cut, not what it gives, up to rounding.

    Attributes:
        rows: data that pass through any model together; None for what follows from the next two.
        activation_bytes: of the activations of a chunk of rows; None for 6 MiB on a CPU, where a network is no slower
            on a handful of images than on hundreds, whose activations leave the caches, and 1 GiB elsewhere.
        weight_copies: a chunk may take as much again as this many copies of the weights, which are read for each.
        busy_bytes: of the largest arrays of networks that go through an accelerator together: passes over as much take
            longer than their launches.
        input_elements: numbers in the inputs of a chunk, of models that are no networks.
        tangent_elements: rows times directions that are differentiated together.
        streamed_bytes: of images in one part of a stream from disk; as much again is on its way in every thread that
            reads ahead.
        block_bytes: of the draws of a block of a chain, and of those that are evaluated together.
        kept_bytes: of all draws of a posterior in memory.
        scored_elements: numbers in the log-likelihoods that are made together for scores.
        pair_elements: distances between draws that are held together.
        device_bytes: that a fit may take of its device; None for what the device has.
    """

    rows: int | None = None
    activation_bytes: int | None = None
    weight_copies: int = 6
    busy_bytes: int = 64 * MEBIBYTE
    input_elements: int = 2**23
    tangent_elements: int = 2**22
    streamed_bytes: int = 64 * MEBIBYTE
    block_bytes: int = 64 * MEBIBYTE
    kept_bytes: int = 4096 * MEBIBYTE
    scored_elements: int = 2**22
    pair_elements: int = 2**22
    device_bytes: int | None = None


_now = Limits()


def limits() -> Limits:
    """Those in force."""
    return _now


@contextlib.contextmanager
def limited(**changes: Any) -> Iterator[Limits]:
    """Others for a while.

    What is compiled depends on them through static values alone (``Devices``, sizes of chunks), so that nothing that
    was compiled under other limits is taken.
    """
    global _now
    before = _now
    _now = dataclasses.replace(before, **changes)
    try:
        yield _now
    finally:
        _now = before
