"""``fit_fbpc`` and its sisters: ``fit`` with the method chosen, the settings among the arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from pseudocoreset.fitting.door import METHODS, fit
from pseudocoreset.fitting.outcome import FitResult
from pseudocoreset.methods import Learned, Method

__all__ = ["ALIASES"]

HOW = ("fixed", "callbacks", "checkpoint_dir", "mesh")  # that and what every method takes come last
ALWAYS = ("progress", "verdict")


def _alias(cls: type[Method]) -> Callable[..., FitResult]:
    """``fit_<name>``: its signature and documentation are those of ``fit`` and of the method, put together."""
    signature = _signature(cls)
    settings = {field.name for field in fields(cls)}

    def call(*args: Any, **kwargs: Any) -> FitResult:
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"fit_{cls.name}() {error}") from None
        mine = {name: value for name, value in arguments.items() if name in settings}
        others = {name: value for name, value in arguments.items() if name not in settings}
        return fit(others.pop("model"), others.pop("data"), cls(**mine), **others)

    call.__name__ = call.__qualname__ = f"fit_{cls.name}"
    call.__module__ = "pseudocoreset"
    call.__doc__ = _documentation(cls, signature)
    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__annotations__ = {
        **{name: parameter.annotation for name, parameter in signature.parameters.items()},
        "return": "FitResult",
    }
    call.method = cls  # type: ignore[attr-defined]
    return call


def _signature(cls: type[Method]) -> inspect.Signature:
    of_fit = inspect.signature(fit).parameters
    taken = [name for name in of_fit if name in cls.takes]
    first = ["model", "data", "images_per_class", "size", "key", *(name for name in taken if name not in HOW)]
    last = [*(name for name in taken if name in HOW), *ALWAYS]
    mine = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=field.type,
        )
        for field in fields(cls)
    ]
    parameters = [*(of_fit[name] for name in first), *mine, *(of_fit[name] for name in last)]
    return inspect.Signature(parameters, return_annotation="FitResult")


def _documentation(cls: type[Method], signature: inspect.Signature) -> str:
    known = dict(_entries(fit, "Args:"))
    for home in reversed(cls.__mro__):
        known |= _entries(home, "Attributes:")
    text = inspect.getdoc(cls) or ""
    body = text.split("\nAttributes:\n")[0].rstrip()
    lines = [f"    {name}: {known[name]}" for name in signature.parameters if name in known]
    returns = "Returns:\n    ``FitResult``."
    raises = "Raises:\n    TypeError, ValueError: for arguments out of range or that do not go together."
    what = "a method that learns" if issubclass(cls, Learned) else "a method that chooses"
    same = f"The same as ``fit(model, data, {cls.__name__}(...), ...)``, {what}."
    return "\n\n".join([body, same, "Args:\n" + "\n".join(lines), returns, raises])


def _entries(documented: Any, header: str) -> Mapping[str, str]:
    """The entries of a section of a docstring, by name, each with its line breaks."""
    text = (
        inspect.cleandoc(vars(documented).get("__doc__") or "")
        if isinstance(documented, type)
        else inspect.getdoc(documented)
    )
    _, _, section = (text or "").partition(f"{header}\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break
        if line.startswith("    ") and not line.startswith("     "):
            name, _, rest = line.strip().partition(": ")
            found[name] = rest
        elif name and line.strip():
            found[name] += "\n" + line
    return found


ALIASES = {f"fit_{name}": _alias(cls) for name, cls in METHODS.items()}
