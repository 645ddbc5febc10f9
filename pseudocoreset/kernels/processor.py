"""The processor at hand: its vectors and threads, and LLVM's compiler for it."""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import dataclass

import jax
import llvmlite.binding as llvm

__all__ = ["Processor", "engine", "here", "target_machine", "threads_of_a_device"]

# What ``platform.machine()`` calls the kinds that routines are written for.
_ARM = ("aarch64", "arm64")
_X86 = ("x86_64", "amd64")


@dataclass(frozen=True)
class Processor:
    """What routines are compiled for.

    Attributes:
        vector_bits: width of its widest vector.
        registers: vectors that it holds.
    """

    vector_bits: int
    registers: int


def here() -> Processor:
    """The processor that this process runs on.

    Raises:
        RuntimeError: if routines know nothing of its kind.
    """
    kind = platform.machine().lower()
    if kind in _ARM:
        return Processor(vector_bits=128, registers=32)
    if kind not in _X86:
        raise RuntimeError(f"there are no routines for processors of the kind {kind!r}")
    if _has("avx512f"):
        return Processor(vector_bits=512, registers=32)
    return Processor(vector_bits=256 if _has("avx2", "fma") else 128, registers=16)


def threads_of_a_device() -> int:
    """Cores that each device of a CPU has to itself, if all devices are used."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jax.local_device_count("cpu"))


@functools.cache
def _has(*features: str) -> bool:
    found = llvm.get_host_cpu_features()
    return all(found.get(feature) for feature in features)


@functools.cache
def target_machine() -> llvm.TargetMachine:
    """LLVM's compiler for this processor."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    # The widest vectors, where LLVM of itself prefers half of them.
    features = llvm.get_host_cpu_features().flatten() + (",-prefer-256-bit" if _has("avx512f") else "")
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3, jit=True
    )


@functools.cache
def engine() -> llvm.ExecutionEngine:
    """Where compiled functions live, as long as the process."""
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), target_machine())
