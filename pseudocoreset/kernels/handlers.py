"""Routines as calls of XLA, by its foreign function interface (``interface``).

XLA hands a function one structure, the frame of the call, that says where arrays are and how large. When a function is
registered XLA asks, by a frame with an extension, which version of the interface it was written for.

The images of a call are shared out to threads of XLA's own pool, in as many parts as the scratch memory has rows. A
thread takes the next part that nobody has. The thread that was called does so too, and at the end waits only for parts
that others have begun: nothing hangs where the pool has no thread to spare.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from dataclasses import dataclass

import jax
from llvmlite import ir

from pseudocoreset.kernels import interface, processor
from pseudocoreset.kernels.emitter import Emitter, Integer, Pointer, Program
from pseudocoreset.kernels.processor import Processor
from pseudocoreset.kernels.routines import emit_correlation, emit_gradient
from pseudocoreset.kernels.sizes import Sizes

__all__ = ["target"]

_WORD = 8
_FRAME, _BUFFER, _VERSION = "XLA_FFI_CallFrame", "XLA_FFI_Buffer", "XLA_FFI_Api_Version"
_EXTENSION, _METADATA = "XLA_FFI_Extension_Base", "XLA_FFI_Metadata"
_IS_METADATA = 1
# What threads share: the next part, parts that are done, threads that may still look here, parts, and the frame.
_NEXT, _DONE, _USERS, _PARTS, _SHARED_FRAME = range(0, 5 * _WORD, _WORD)
_SHARED_BYTES = 5 * _WORD

_REGISTERING = threading.Lock()


def target(kind: str, sizes: Sizes) -> str:
    """The name under which XLA knows a routine, compiled now if it is new to this process.

    Args:
        kind: ``"correlation"`` or ``"gradient"``.
        sizes: of images and weights.
    """
    with _REGISTERING:
        return _register(kind, sizes, processor.here())


@functools.cache
def _register(kind: str, sizes: Sizes, here: Processor) -> str:
    # Programs that JAX has kept on disk know a routine by this name: one that computes something else needs another.
    form = "tiled" if sizes.is_tiled else "plain"
    name = f"pseudocoreset_{kind}_{form}_f{sizes.bits}_{sizes.channels}_{sizes.filters}"
    name += f"{'_bias' if sizes.bias else ''}_{here.registers}x{here.vector_bits}"
    program = Program(sizes.bits, here)
    _Handler(program, name, kind, sizes).emit()
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    jax.ffi.register_ffi_target(name, capsule(program.compiled(name), None, None), platform="cpu")
    return name


def _at(structure: str, member: str) -> int:
    return interface.of_jaxlib().offset(structure, member)


def _arguments() -> int:
    """Where a frame holds the array of its arguments."""
    return _at(_FRAME, "XLA_FFI_Args args") + _at("XLA_FFI_Args", "void** args")


def _results() -> int:
    return _at(_FRAME, "XLA_FFI_Rets rets") + _at("XLA_FFI_Rets", "void** rets")


@dataclass
class _Handler:
    """Writes the function that XLA calls, for one routine."""

    program: Program
    name: str
    kind: str
    sizes: Sizes

    def emit(self) -> None:
        """Write it, the routine and all between."""
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
        extension = emitter.load_address(frame, _at(_FRAME, "XLA_FFI_Extension_Base* extension_start"))
        builder = emitter.builder
        with (
            builder.if_then(builder.icmp_unsigned("!=", extension, _nothing())),
            builder.if_then(emitter.holds(32, _IS_METADATA, extension, _at(_EXTENSION, "XLA_FFI_Extension_Type type"))),
        ):
            metadata = emitter.load_address(extension, _at(f"{_METADATA}_Extension", f"{_METADATA}* metadata"))
            version = _at(_METADATA, f"{_VERSION} api_version")
            for value, member in zip(interface.of_jaxlib().version, ("major_version", "minor_version"), strict=True):
                emitter.store_integer(value, metadata, version + _at(_VERSION, f"int {member}"), bits=32)
            builder.ret(_nothing())

    def _results(self, emitter: Emitter, frame: ir.Value) -> tuple[list[Pointer], ir.Value]:
        """Where the result and the scratch memory are, and the dimensions of the latter."""
        results = emitter.load_address(frame, _results())
        return [_array(emitter, results, i) for i in range(2)], _dimensions(emitter, results, 1)

    def _emit_part(self) -> ir.Function:
        """A function of a frame, and of a part and how many there are, that does this part."""
        emit = {"correlation": emit_correlation, "gradient": emit_gradient}[self.kind]
        routine = emit(self.program, f"{self.name}_routine", self.sizes)
        emitter, (given,), (part, parts) = self.program.function(f"{self.name}_part", 1, 2)
        frame = given.value
        arguments = emitter.load_address(frame, _arguments())
        dimensions = _dimensions(emitter, arguments, 0)
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
        emitter.call(routine, images, other, out, scratch, count, height, width)
        emitter.builder.ret_void()
        return emitter.function

    def _emit_parts(self) -> ir.Function:
        """A function of what threads share that does parts until there are none left."""
        emitter, (given,), () = self.program.function(f"{self.name}_parts", 1, 0)
        builder, shared = emitter.builder, given.value
        parts, frame = emitter.load_integer(shared, _PARTS), emitter.load_address(shared, _SHARED_FRAME)
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
                emitter.store_address(frame, shared, _SHARED_FRAME)
                emitter.repeat(parts - 1, lambda _: self._schedule(emitter, frame, task, shared))
                emitter.call(self._parts, Pointer(emitter, shared))
                emitter.wait(shared, _DONE, parts)
                if self.kind == "gradient":
                    self._add_up(emitter, frame, parts)
                self._leave(emitter, shared)

    def _schedule(self, emitter: Emitter, frame: ir.Value, task: ir.Function, shared: ir.Value) -> None:
        context = emitter.load_address(frame, _at(_FRAME, "XLA_FFI_ExecutionContext* ctx"))
        given = {"XLA_FFI_ExecutionContext* ctx": context, "XLA_FFI_Task* task": task, "void* data": shared}
        error = _call_xla(emitter, frame, "XLA_FFI_ThreadPool_Schedule", given)
        with emitter.builder.if_then(emitter.builder.icmp_unsigned("!=", error, _nothing())):
            # There is no pool: the thread that was called does all the parts.
            _call_xla(emitter, frame, "XLA_FFI_Error_Destroy", {"XLA_FFI_Error* error": error})
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
    return Pointer(emitter, emitter.load_address(buffer, _at(_BUFFER, "void* data")))


def _dimensions(emitter: Emitter, buffers: ir.Value, index: int) -> ir.Value:
    buffer = emitter.load_address(buffers, index * _WORD)
    return emitter.load_address(buffer, _at(_BUFFER, "int64_t* dims"))


def _call_xla(emitter: Emitter, frame: ir.Value, function: str, given: dict[str, ir.Value]) -> ir.Value:
    """Call a function of XLA's table with these members of its structure."""
    api = emitter.load_address(frame, _at(_FRAME, "const XLA_FFI_Api* api"))
    address = emitter.load_address(api, _at("XLA_FFI_Api", f"{function}* {function}"))
    structure = f"{function}_Args"
    members = {_at(structure, member): value for member, value in given.items()}
    size = emitter.integer(max(members) + _WORD)
    begin = {_at(structure, "size_t struct_size"): size.value}
    begin[_at(structure, "XLA_FFI_Extension_Base* extension_start")] = _nothing()
    return emitter.call_with_structure(address, begin | members)
