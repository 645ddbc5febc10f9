"""Which settings of a test run by default."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(values: Iterable[Any], *fast: Any) -> list[Any]:
    """Values to parametrise a test with: all but ``fast`` repeat it at other settings, and run with ``-m slow``."""
    values = list(values)
    assert set(fast) <= set(values), f"{set(fast) - set(values)} are not among the values"
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]
