"""Packages that a part of the library needs and that are installed with an extra of it."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

__all__ = ["check_installed", "import_extra"]


def check_installed(module: str, extra: str, what: str) -> None:
    """Nothing, if a module can be imported.

    Args:
        module: its name.
        extra: the extra of ``pseudocoreset`` that brings it.
        what: what needs it, as the error calls it.

    Raises:
        ModuleNotFoundError: with the line that installs it.
    """
    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(
            f"{what} needs {module}, which is not installed: pip install 'pseudocoreset[{extra}]'", name=module
        )


def import_extra(module: str, extra: str, what: str) -> ModuleType:
    """The module, imported; the error of ``check_installed`` where it is not there."""
    check_installed(module.partition(".")[0], extra, what)
    return importlib.import_module(module)
