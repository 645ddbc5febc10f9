"""The row of a published table that is nearest to a problem."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

__all__ = ["closest", "nearest"]

T = TypeVar("T")


def nearest(table: Mapping[tuple[str, int], T], data_name: str, images_per_class: float | None, elsewhere: T) -> T:
    """The row of a data set at the closest published number of images per class, or ``elsewhere``."""
    published = [count for name, count in table if name == data_name]
    if not published or images_per_class is None:
        return elsewhere
    return table[data_name, closest(published, images_per_class)]


def closest(published: Iterable[int], count: float) -> int:
    """The published number that is closest to ``count``."""
    return min(published, key=lambda one: abs(one - count))
