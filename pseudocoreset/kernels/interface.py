"""XLA's structures, as the header of its foreign function interface declares them (``c_api.h``, shipped with jaxlib).

Routines read and write these structures by byte offsets. The offsets come from the header of the installed jaxlib, and
only if it declares each member as the routines expect it: a jaxlib that does not is refused before anything is called.
"""

from __future__ import annotations

import ctypes
import functools
import pathlib
import re

import jax

__all__ = ["Interface", "of_jaxlib"]

_KINDS: dict[str, type] = {
    "size_t": ctypes.c_size_t,
    "int64_t": ctypes.c_int64,
    "uint32_t": ctypes.c_uint32,
    "int": ctypes.c_int,
}


# Version 0.5 gave other names to what stayed where it was; the longer of two that begin alike comes first.
_RENAMED = {
    "XLA_FFI_InternalExtension_Type": "XLA_FFI_Extension_Type",
    "XLA_FFI_InternalExtension": "XLA_FFI_Extension_Base",
    "XLA_FFI_InvokeContext": "XLA_FFI_ExecutionContext",
}


class Interface:
    """The interface that a header declares, by the names of its version 0.3.

    Attributes:
        version: its major and minor version.
    """

    def __init__(self, header: str):
        """Of the text of a header in C; raises LookupError if it is of another major version than 0."""
        text = re.sub(r"//[^\n]*", "", header)
        for new, old in _RENAMED.items():
            text = re.sub(rf"\b{new}\b", old, text)
        self._text = re.sub(r"_XLA_FFI_API_STRUCT_FIELD\((\w+)\);", r"\1* \1;", text)
        self.version = self._number("MAJOR"), self._number("MINOR")
        if self.version[0] != 0:  # a minor version adds members to the ends of structures
            raise LookupError(f"XLA's interface has version {self.version[0]}, and routines know version 0")

    def _number(self, name: str) -> int:
        found = re.search(rf"#define XLA_FFI_API_{name} (\d+)", self._text)
        if found is None:
            raise LookupError(f"XLA's header says nothing of XLA_FFI_API_{name}")
        return int(found[1])

    def offset(self, structure: str, member: str) -> int:
        """Where a member lies, in bytes from the beginning of its structure.

        Args:
            structure: its name in C, such as ``"XLA_FFI_Buffer"``.
            member: the declaration in C, such as ``"int64_t* dims"``.

        Raises:
            LookupError: if the header does not declare it so.
        """
        if member not in self.members(structure):
            raise LookupError(f"XLA's header has no member '{member}' in {structure}")
        return getattr(self._layout(structure), member.split()[-1]).offset

    def members(self, structure: str) -> list[str]:
        """The declarations of all members of a structure."""
        body = re.search(rf"struct {structure} \{{(.*?)\}}", self._text, re.DOTALL)
        if body is None:
            raise LookupError(f"XLA's header declares no structure {structure}")
        return [" ".join(member.split()) for member in body[1].split(";") if member.strip()]

    def _layout(self, structure: str) -> type[ctypes.Structure]:
        members = (member.rpartition(" ") for member in self.members(structure))
        fields = [(name, self._kind(kind)) for kind, _, name in members]
        return type(structure, (ctypes.Structure,), {"_fields_": fields})

    def _kind(self, name: str) -> type:
        if name.endswith("*"):
            return ctypes.c_void_p
        if name in _KINDS:
            return _KINDS[name]
        alias = re.search(rf"typedef (\w+) {name};", self._text)
        if alias is not None:
            return self._kind(alias[1])
        is_enumeration = re.search(rf"typedef enum \{{[^}}]*\}} {name};", self._text)
        return ctypes.c_int if is_enumeration else self._layout(name)


def of_jaxlib() -> Interface:
    """The interface of the installed jaxlib."""
    return _read(pathlib.Path(jax.ffi.include_dir()) / "xla/ffi/api/c_api.h")


@functools.cache
def _read(path: pathlib.Path) -> Interface:
    return Interface(path.read_text())
