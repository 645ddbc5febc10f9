"""Kernels by their names."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pseudocoreset.arguments import checked
from pseudocoreset.inference.engine.kernel import Kernel, option_names
from pseudocoreset.validation import check_choice

__all__ = ["KERNELS", "register", "resolve_kernel"]

K = TypeVar("K", bound=type[Kernel])

KERNELS: dict[str, type[Kernel]] = {}


def register(kernel: K) -> K:
    """Let ``sample(kernel=NAME)`` find a kernel by its name, and check the types of its options.

    Raises:
        ValueError: if another kernel has the name.
    """
    if kernel.name in KERNELS:
        raise ValueError(f"there is a kernel {kernel.name!r} already, {KERNELS[kernel.name].__qualname__}")
    # Annotations of inherited options are names of the modules that they come from.
    hints = typing.get_type_hints(kernel)
    kernel.__init__.__annotations__.update({name: hints[name] for name in option_names(kernel)})
    # Its other methods are called inside compiled functions.
    kernel.__init__ = checked(kernel.__init__)  # type: ignore[method-assign]
    KERNELS[kernel.name] = kernel
    return kernel


def resolve_kernel(kernel: str | Kernel, options: Mapping[str, Any]) -> Kernel:
    """A kernel, by its name and options, or as it is.

    Args:
        kernel: name or kernel.
        options: by name, for a kernel that is given by its own.

    Raises:
        TypeError, ValueError: naming the kernel or the option.
    """
    if isinstance(kernel, Kernel):
        return _complete(kernel, options)
    of_name = KERNELS[check_choice(kernel, "kernel", KERNELS)]
    names = option_names(of_name)
    if unknown := sorted(set(options) - set(names)):
        valid = ", ".join(names) or "none"
        raise ValueError(f"kernel {kernel!r} has no option {', '.join(map(repr, unknown))}; its options are: {valid}")
    return of_name(**options)


def _complete(kernel: Kernel, options: Mapping[str, Any]) -> Kernel:
    kind = type(kernel)
    if options:
        given = ", ".join(map(repr, sorted(options)))
        raise ValueError(f"{given}: kernel is a {kind.__name__}, which holds its own options; give them to it")
    parameters = getattr(kind, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen or not hasattr(kind, "name"):
        raise TypeError(f"kernel: {kind.__name__} must be a frozen dataclass with a name; see docs/add-a-kernel.md")
    if KERNELS.get(kernel.name, kind) is not kind:
        raise ValueError(f"kernel: {kind.__name__} has the name {kernel.name!r} of another kernel; give it its own")
    return kernel
