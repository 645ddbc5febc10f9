"""``Protocol``: a named way of scoring a coreset, in a file of its own.

A protocol is a frozen dataclass whose fields are its settings, with a ``name`` and a ``run``. Once its class exists,
``evaluate(..., protocol=name)`` and the command know it: ``evaluate`` checks its arguments and splits the data, ``run``
scores one model, and ``evaluate`` adds what every evaluation says.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import jax
from jax.sharding import Mesh

from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.evaluation.result import Estimate
from pseudocoreset.models import Model
from pseudocoreset.validation import check_choice

if TYPE_CHECKING:
    from pseudocoreset.data import Split
    from pseudocoreset.inference import Posterior

__all__ = ["PROTOCOLS", "Protocol", "Scored", "Task", "resolve_protocol"]


@dataclass(frozen=True)
class Task:
    """What a protocol is to score.

    Attributes:
        model: a bound model.
        coreset: all that the model may learn from.
        split: the data that are scored.
        validation: data to choose settings on, for a protocol with ``needs_validation``; others leave it alone.
        data_name: of the data set.
        key: one typed key.
        mesh: devices to share the work, or None.
        progress: whether to show progress bars.
    """

    model: Model
    coreset: Pseudocoreset
    split: Split
    validation: Split | None
    data_name: str
    key: jax.Array
    mesh: Mesh | None
    progress: bool


@dataclass(frozen=True)
class Scored:
    """What a protocol found.

    Attributes:
        metrics: scores by name.
        settings: everything that it was run with, as it came out: JSON-able.
        notes: what a reader of the figures must know, in sentences.
        posterior: the draws, where there are some.
    """

    metrics: dict[str, Estimate]
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()
    posterior: Posterior | None = None


class Protocol(ABC):
    """A named way of scoring a coreset; subclasses are frozen dataclasses of their settings.

    Attributes:
        name: what ``evaluate`` and the command call it. A subclass without one is for others to inherit.
    """

    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        name = vars(cls).get("name")
        if name is None:
            return
        known = PROTOCOLS.get(name)
        # The same class may be made anew, as by a cell of a notebook.
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"there is a protocol {name!r} already, {known.__module__}.{known.__qualname__}")
        PROTOCOLS[name] = cls

    @property
    def needs_validation(self) -> bool:
        """Whether it chooses settings on validation data, whatever is scored."""
        return False

    @abstractmethod
    def run(self, task: Task) -> Scored:
        """Score the coreset of a task."""


PROTOCOLS: dict[str, type[Protocol]] = {}


def resolve_protocol(protocol: Any, settings: Mapping[str, Any]) -> Protocol:
    """The configuration that ``protocol`` means, a name or a configuration, with some of its fields changed."""
    if isinstance(protocol, str):
        check_choice(protocol, "protocol", PROTOCOLS)
        protocol = PROTOCOLS[protocol]()
    if not isinstance(protocol, Protocol):
        raise TypeError(
            f"protocol must be one of {', '.join(map(repr, PROTOCOLS))} or a configuration from "
            f"pseudocoreset.evaluation; got {protocol!r}"
        )
    fields = [field.name for field in dataclasses.fields(protocol)]  # type: ignore[arg-type]  # subclasses are
    unknown = sorted(set(settings) - set(fields))
    if unknown:
        raise ValueError(
            f"protocol {protocol.name!r} has no {', '.join(map(repr, unknown))}; its settings are {', '.join(fields)}"
        )
    return dataclasses.replace(protocol, **settings)  # type: ignore[type-var]
