"""Compiled kernels as calls of XLA, by its foreign function interface (``xla/ffi/api/c_api.h``, in jaxlib).

XLA hands a function one structure, the frame of the call, that says where arrays are and how large. When a function is
registered XLA asks, by a frame with an extension, which version of the interface it was written for.

The images of a call are shared out to threads of XLA's own pool, in as many parts as the scratch memory has rows. A
thread takes the next part that nobody has. The one that was called does so too, and at the end waits only for parts
that others have begun: nothing hangs where the pool has no thread to spare.
"""

from __future__ import annotations

import ctypes
import functools
import pathlib
import re
import threading
from dataclasses import dataclass

import jax
from llvmlite import ir

from pseudocoreset.kernels.emitter import Emitter, Integer, Pointer, Program
from pseudocoreset.kernels.programs import emit_correlation, emit_gradient
from pseudocoreset.kernels.sizes import Sizes

__all__ = ["target"]

# Offsets in bytes of what XLA's structures hold, all of words of eight bytes where nothing else is said.
_WORD = 8
_FRAME_EXTENSION, _FRAME_API, _FRAME_CONTEXT, _FRAME_ARGUMENTS, _FRAME_RESULTS = 8, 16, 24, 40 + 32, 80 + 32
_EXTENSION_TYPE, _EXTENSION_METADATA = 8, 24
_IS_METADATA = 1
_METADATA_MAJOR, _METADATA_MINOR = 24, 28  # of four bytes
_BUFFER_DATA, _BUFFER_DIMENSIONS = 24, 40
_API_FUNCTIONS = 48
# And of what threads share: the next part, parts that are done, threads that may still look here, parts, and the frame.
_NEXT, _DONE, _USERS, _PARTS, _FRAME = range(0, 5 * _WORD, _WORD)
_SHARED_BYTES = 5 * _WORD

_REGISTERING = threading.Lock()


def target(kind: str, sizes: Sizes) -> str:
    """The name under which XLA knows a kernel, compiled now if it is new to this process.

    Args:
        kind: ``"correlation"`` or ``"gradient"``.
        sizes: of images and weights.
    """
    with _REGISTERING:
        return _register(kind, sizes)


@functools.cache
def _register(kind: str, sizes: Sizes) -> str:
    # Programs that JAX has kept on disk know a kernel by this name: one that computes something else needs another.
    form = "tiled" if sizes.is_tiled else "plain"
    name = f"pseudocoreset_{kind}_{form}_f{sizes.bits}_{sizes.channels}_{sizes.filters}"
    name += "_bias" if sizes.bias else ""
    program = Program(sizes.bits)
    _Handler(program, name, kind, sizes).emit()
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    jax.ffi.register_ffi_target(name, capsule(program.compiled(name), None, None), platform="cpu")
    return name


@functools.cache
def _interface() -> str:
    return (pathlib.Path(jax.ffi.include_dir()) / "xla/ffi/api/c_api.h").read_text()


def _version() -> tuple[int, int]:
    # The structures are those of the major version 0; a minor one adds to them at their ends.
    return 0, int(re.findall(r"define XLA_FFI_API_MINOR (\d+)", _interface())[0])


def _offset_of(function: str) -> int:
    """Of an address in XLA's table of functions."""
    names = re.findall(r"^\s*_XLA_FFI_API_STRUCT_FIELD\((\w+)\);", _interface(), re.MULTILINE)
    return _API_FUNCTIONS + names.index(function) * _WORD


@dataclass
class _Handler:
    """Writes the function that XLA calls, for one kernel."""

    program: Program
    name: str
    kind: str
    sizes: Sizes

    def emit(self) -> None:
        """Write it, the kernel and all between."""
        self._part = self._emit_part()
        self._parts = self._emit_parts()
        task = self._emit_task()
        emitter, frame = self.program.entry(self.name)
        self._answer_version(emitter, frame)
        _, dimensions = self._results(emitter, frame)
        parts = emitter.load_integer(dimensions, 0)
        self._run(emitter, frame, parts, task)
        emitter.builder.ret(_nothing())

    def _answer_version(self, emitter: Emitter, frame: ir.Value) -> None:
        extension = emitter.load_address(frame, _FRAME_EXTENSION)
        builder = emitter.builder
        with (
            builder.if_then(builder.icmp_unsigned("!=", extension, _nothing())),
            builder.if_then(emitter.holds(32, _IS_METADATA, extension, _EXTENSION_TYPE)),
        ):
            metadata = emitter.load_address(extension, _EXTENSION_METADATA)
            for value, offset in zip(_version(), (_METADATA_MAJOR, _METADATA_MINOR), strict=True):
                emitter.store_integer(value, metadata, offset, bits=32)
            builder.ret(_nothing())

    def _results(self, emitter: Emitter, frame: ir.Value) -> tuple[list[Pointer], ir.Value]:
        """Where the result and the scratch memory are, and the dimensions of the latter."""
        results = emitter.load_address(frame, _FRAME_RESULTS)
        scratch = emitter.load_address(results, _WORD)
        return [_array(emitter, results, i) for i in range(2)], emitter.load_address(scratch, _BUFFER_DIMENSIONS)

    def _emit_part(self) -> ir.Function:
        """A function of a frame, and of a part and how many there are, that does this part."""
        emit = {"correlation": emit_correlation, "gradient": emit_gradient}[self.kind]
        kernel = emit(self.program, f"{self.name}_kernel", self.sizes)
        emitter, (given,), (part, parts) = self.program.function(f"{self.name}_part", 1, 2)
        frame = given.value
        arguments = emitter.load_address(frame, _FRAME_ARGUMENTS)
        dimensions = emitter.load_address(emitter.load_address(arguments, 0), _BUFFER_DIMENSIONS)
        n, height, width = (emitter.load_integer(dimensions, axis * _WORD) for axis in range(3))
        images, other = (_array(emitter, arguments, i) for i in range(2))
        (out, scratch), of_scratch = self._results(emitter, frame)
        size = emitter.load_integer(of_scratch, _WORD)
        scratch = scratch + part * size
        first = n * part // parts
        count = n * (part + 1) // parts - first
        pixels = first * height * width
        images = images + pixels * self.sizes.channels
        if self.kind == "correlation":
            out = out + pixels * self.sizes.filters
        else:
            other = other + pixels * self.sizes.filters
            # Sums of their own for all but the first, at the end of their scratch memory.
            out = out.where(part.is_below(1), scratch + (size - self.sizes.weights))
        emitter.call(kernel, images, other, out, scratch, count, height, width)
        emitter.builder.ret_void()
        return emitter.function

    def _emit_parts(self) -> ir.Function:
        """A function of what threads share that does parts until there are none left."""
        emitter, (given,), () = self.program.function(f"{self.name}_parts", 1, 0)
        builder, shared = emitter.builder, given.value
        parts, frame = emitter.load_integer(shared, _PARTS), emitter.load_address(shared, _FRAME)
        again, work, end = (emitter.function.append_basic_block() for _ in range(3))
        builder.branch(again)
        builder.position_at_end(again)
        part = emitter.add_atomically(shared, _NEXT, 1)
        builder.cbranch(part.is_below(parts), work, end)
        builder.position_at_end(work)
        emitter.call(self._part, Pointer(emitter, frame), part, parts)
        emitter.add_atomically(shared, _DONE, 1)
        builder.branch(again)
        builder.position_at_end(end)
        builder.ret_void()
        return emitter.function

    def _emit_task(self) -> ir.Function:
        """What another thread does: parts, if there are any left by then."""
        emitter, (shared,), () = self.program.function(f"{self.name}_task", 1, 0)
        emitter.call(self._parts, shared)
        self._leave(emitter, shared.value)
        emitter.builder.ret_void()
        return emitter.function

    def _leave(self, emitter: Emitter, shared: ir.Value) -> None:
        """The last who leaves frees what is shared."""
        users = emitter.add_atomically(shared, _USERS, -1)
        with emitter.builder.if_then(users.is_below(2)):
            emitter.free(shared)

    def _run(self, emitter: Emitter, frame: ir.Value, parts: Integer, task: ir.Function) -> None:
        builder = emitter.builder
        with builder.if_else(parts.is_below(2)) as (alone, together):
            with alone:
                emitter.call(self._part, Pointer(emitter, frame), 0, 1)
            with together:
                shared = emitter.allocate(_SHARED_BYTES)
                begin: dict[int, Integer | int] = {_NEXT: 0, _DONE: 0, _USERS: parts, _PARTS: parts}
                for offset, value in begin.items():
                    emitter.store_integer(value, shared, offset)
                emitter.store_address(frame, shared, _FRAME)
                emitter.repeat(parts - 1, lambda _: self._schedule(emitter, frame, task, shared))
                emitter.call(self._parts, Pointer(emitter, shared))
                emitter.wait(shared, _DONE, parts)
                if self.kind == "gradient":
                    self._add_up(emitter, frame, parts)
                self._leave(emitter, shared)

    def _schedule(self, emitter: Emitter, frame: ir.Value, task: ir.Function, shared: ir.Value) -> None:
        api, context = emitter.load_address(frame, _FRAME_API), emitter.load_address(frame, _FRAME_CONTEXT)
        error = emitter.call_with_structure(
            emitter.load_address(api, _offset_of("XLA_FFI_ThreadPool_Schedule")), [context, task, shared]
        )
        with emitter.builder.if_then(emitter.builder.icmp_unsigned("!=", error, _nothing())):
            # There is no pool: whoever was called does all the parts.
            emitter.call_with_structure(emitter.load_address(api, _offset_of("XLA_FFI_Error_Destroy")), [error])
            emitter.add_atomically(shared, _USERS, -1)

    def _add_up(self, emitter: Emitter, frame: ir.Value, parts: Integer) -> None:
        (out, scratch), dimensions = self._results(emitter, frame)
        size, lanes = emitter.load_integer(dimensions, _WORD), self.program.lanes

        def add(part: Integer, at: Integer) -> None:
            sums = scratch + (part + 2) * size - self.sizes.weights + at
            (out + at).store((out + at).load() + sums.load())

        emitter.repeat(
            parts - 1, lambda part: emitter.repeat(self.sizes.weights // lanes, lambda v: add(part, v * lanes))
        )


def _nothing() -> ir.Constant:
    return ir.Constant(ir.PointerType(), None)


def _array(emitter: Emitter, buffers: ir.Value, index: int) -> Pointer:
    buffer = emitter.load_address(buffers, index * _WORD)
    return Pointer(emitter, emitter.load_address(buffer, _BUFFER_DATA))
