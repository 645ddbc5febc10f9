"""What a record in a file must look like: said once for each kind of file, checked before anything in it is used."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

__all__ = [
    "COUNT",
    "FLAG",
    "NUMBER",
    "POSITIVE",
    "POSITIVE_COUNT",
    "RECORD",
    "TEXT",
    "VERSION",
    "CorruptFileError",
    "Field",
    "check_record",
    "every",
    "fits_together",
    "listing",
    "maybe",
    "optional",
]


class CorruptFileError(RuntimeError):
    """Something saved is missing, truncated, altered, or of another kind than it should be."""


@dataclass(frozen=True)
class Field:
    """What one entry of a record must be.

    Attributes:
        wanted: in words, for the message.
        holds: whether a value is it.
        required: whether a record without the entry is refused.
    """

    wanted: str
    holds: Callable[[Any], bool]
    required: bool = True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 2**63 and value == int(value)


NUMBER = Field("a finite number", _is_number)
POSITIVE = Field("a positive number", lambda value: _is_number(value) and value > 0)
COUNT = Field("a whole number, 0 or more", _is_count)
POSITIVE_COUNT = Field("a whole number, 1 or more", lambda value: _is_count(value) and value >= 1)
TEXT = Field("text", lambda value: isinstance(value, str))
FLAG = Field("true or false", lambda value: isinstance(value, bool))
RECORD = Field("a JSON object", lambda value: isinstance(value, dict))
VERSION = POSITIVE_COUNT


def maybe(field: Field) -> Field:
    """This, or null."""
    return replace(field, wanted=f"{field.wanted}, or null", holds=lambda value: value is None or field.holds(value))


def optional(field: Field) -> Field:
    """This where the record has it."""
    return replace(field, required=False)


def listing(field: Field) -> Field:
    """A list of it."""
    return Field(f"a list, each {field.wanted}", lambda value: isinstance(value, list) and all(map(field.holds, value)))


def every(field: Field) -> Field:
    """A JSON object whose values are it."""
    return Field(
        f"a JSON object, each value {field.wanted}",
        lambda value: isinstance(value, dict) and all(map(field.holds, value.values())),
    )


def check_record(record: Any, fields: Mapping[str, Field], place: str | os.PathLike[str]) -> dict[str, Any]:
    """The record, after each of these fields was found to be what it must be; others may stand beside them.

    Args:
        record: what was read.
        fields: what its entries must be.
        place: what the message calls it.

    Raises:
        CorruptFileError: naming the first entry that is missing or something else.
    """
    if not isinstance(record, dict):
        raise CorruptFileError(f"{os.fspath(place)} must hold a JSON object; it holds {_shown(record)}")
    for name, field in fields.items():
        if name not in record:
            if field.required:
                raise CorruptFileError(f"{os.fspath(place)} lacks {name!r} ({field.wanted})")
        elif not field.holds(record[name]):
            raise CorruptFileError(f"{os.fspath(place)}: {name!r} must be {field.wanted}; it is {_shown(record[name])}")
    return record


@contextlib.contextmanager
def fits_together(place: str | os.PathLike[str]) -> Iterator[None]:
    """``CorruptFileError`` where something cannot be built from what a file holds.

    For the constructors of what is read: they check what their parts must be to one another.
    """
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        reason = f"{type(error).__name__} {error}" if isinstance(error, LookupError | AttributeError) else str(error)
        raise CorruptFileError(f"{os.fspath(place)} holds what does not go together: {reason}") from error


def _shown(value: Any) -> str:
    text = re.sub(r"\s+", " ", repr(value)) if not isinstance(value, list | dict) else f"{type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
