"""Machine code for the processor at hand, from Python functions that say it instruction by instruction.

A thin layer over llvmlite: integers, vectors and pointers with the operators of Python, and loops as functions of what
they carry. What is written with it is compiled for this very processor, with its widest vectors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence

import llvmlite.binding as llvm
from llvmlite import ir

from pseudocoreset.kernels.processor import Processor, engine, target_machine

__all__ = ["Emitter", "Integer", "Pointer", "Program", "Vector"]

_INTEGER = ir.IntType(64)
_ADDRESS = ir.PointerType()


class Integer:
    """A 64-bit integer of the program."""

    def __init__(self, emitter: Emitter, value: ir.Value):
        self.emitter, self.value = emitter, value

    def _of(self, operation: str, other: Integer | int) -> Integer:
        return Integer(self.emitter, getattr(self.emitter.builder, operation)(self.value, self.emitter.raw(other)))

    def __add__(self, other: Integer | int) -> Integer:
        return self._of("add", other)

    def __sub__(self, other: Integer | int) -> Integer:
        return self._of("sub", other)

    def __mul__(self, other: Integer | int) -> Integer:
        return self._of("mul", other)

    def __floordiv__(self, other: Integer | int) -> Integer:
        return self._of("udiv", other)

    def __mod__(self, other: Integer | int) -> Integer:
        return self._of("urem", other)

    def is_below(self, other: Integer | int) -> ir.Value:
        """Whether it is below ``other``, both without sign: what is below zero is above everything."""
        return self.emitter.builder.icmp_unsigned("<", self.value, self.emitter.raw(other))

    def at_most(self, other: Integer | int) -> Integer:
        """The smaller of the two."""
        return Integer(
            self.emitter, self.emitter.builder.select(self.is_below(other), self.value, self.emitter.raw(other))
        )


class Vector:
    """A vector of the program's numbers. A sum with a product is rounded once, where the processor has that."""

    def __init__(self, emitter: Emitter, value: ir.Value):
        self.emitter, self.value = emitter, value

    def _of(self, operation: str, other: Vector) -> Vector:
        made = getattr(self.emitter.builder, operation)(self.value, other.value, flags=("contract",))
        return Vector(self.emitter, made)

    def __add__(self, other: Vector) -> Vector:
        return self._of("fadd", other)

    def __sub__(self, other: Vector) -> Vector:
        return self._of("fsub", other)

    def __mul__(self, other: Vector) -> Vector:
        return self._of("fmul", other)

    def __rmul__(self, factor: float) -> Vector:
        return self.emitter.constant(factor) * self


class Pointer:
    """An address of the program's numbers."""

    def __init__(self, emitter: Emitter, value: ir.Value):
        self.emitter, self.value = emitter, value

    def __sub__(self, numbers: int) -> Pointer:
        return self + -numbers

    def __add__(self, numbers: Integer | int) -> Pointer:
        emitter = self.emitter
        moved = emitter.builder.gep(self.value, [emitter.raw(numbers)], source_etype=emitter.program.number)
        return Pointer(emitter, moved)

    def load(self) -> Vector:
        """The vector that begins here."""
        return Vector(self.emitter, self._loaded(self.emitter.program.vector))

    def spread(self) -> Vector:
        """The number that stands here, in all lanes."""
        return self.emitter.in_all_lanes(self._loaded(self.emitter.program.number))

    def _loaded(self, kind: ir.Type) -> ir.Value:
        return self.emitter.builder.load(self.value, typ=kind, align=self.emitter.program.bytes)

    def store(self, vector: Vector) -> None:
        """Write a vector that begins here."""
        self.emitter.builder.store(vector.value, self.value, align=self.emitter.program.bytes)

    def where(self, condition: ir.Value, other: Pointer) -> Pointer:
        """This where the condition holds, else ``other``."""
        return Pointer(self.emitter, self.emitter.builder.select(condition, self.value, other.value))


class Emitter:
    """Writes the instructions of one function."""

    def __init__(self, program: Program, function: ir.Function):
        self.program = program
        self.function = function
        self.builder = ir.IRBuilder(function.append_basic_block())

    def raw(self, value: Integer | int) -> ir.Value:
        """As LLVM has it."""
        return value.value if isinstance(value, Integer) else _INTEGER(value)

    def integer(self, value: int) -> Integer:
        """A constant."""
        return Integer(self, _INTEGER(value))

    def constant(self, value: float) -> Vector:
        """A constant in all lanes."""
        kind = self.program.vector
        return Vector(self, ir.Constant(kind, [ir.Constant(kind.element, value)] * kind.count))

    def in_all_lanes(self, number: ir.Value) -> Vector:
        """A vector of equal numbers."""
        count = self.program.lanes
        nothing = ir.Constant(self.program.vector, ir.Undefined)
        first = self.builder.insert_element(nothing, number, ir.IntType(32)(0))
        places = ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count)
        return Vector(self, self.builder.shuffle_vector(first, nothing, places))

    def repeat(
        self,
        count: Integer | int,
        body: Callable[..., Sequence[Vector] | None],
        carried: Sequence[Vector] = (),
    ) -> list[Vector]:
        """Run ``body(index, *carried)`` for every index below ``count``; each returns what the next is given."""
        builder, function = self.builder, self.function
        before = builder.block
        head, inside, after = (function.append_basic_block() for _ in range(3))
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(_INTEGER)
        index.add_incoming(_INTEGER(0), before)
        held = [builder.phi(self.program.vector) for _ in carried]
        for phi, vector in zip(held, carried, strict=True):
            phi.add_incoming(vector.value, before)
        here = Integer(self, index)
        builder.cbranch(here.is_below(count), inside, after)
        builder.position_at_end(inside)
        made = body(here, *(Vector(self, phi) for phi in held)) or ()
        index.add_incoming((here + 1).value, builder.block)
        for phi, vector in zip(held, made, strict=True):
            phi.add_incoming(vector.value, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return [Vector(self, phi) for phi in held]

    def choose(self, number: Integer, cases: Sequence[Callable[[], None]]) -> None:
        """Do the first of ``cases`` at one, the second at two and so on, and nothing at any other number."""
        builder = self.builder
        after = self.function.append_basic_block()
        switch = builder.switch(number.value, after)
        for value, case in enumerate(cases, start=1):
            block = self.function.append_basic_block()
            switch.add_case(_INTEGER(value), block)
            builder.position_at_end(block)
            case()
            builder.branch(after)
        builder.position_at_end(after)

    def call(self, function: ir.Function, *arguments: Pointer | Integer | int) -> None:
        """Call another function of the program."""
        self.builder.call(function, [a.value if isinstance(a, Pointer) else self.raw(a) for a in arguments])

    def load_integer(self, address: ir.Value, offset: int) -> Integer:
        """The 64-bit integer at a number of bytes from an address."""
        return Integer(self, self.builder.load(self._at(address, offset), typ=_INTEGER, align=8))

    def load_address(self, address: ir.Value, offset: int) -> ir.Value:
        """The address at a number of bytes from an address."""
        return self.builder.load(self._at(address, offset), typ=_ADDRESS, align=8)

    def copy(self, target: Pointer, source: Pointer, numbers: Integer | int) -> None:
        """Copy this count of numbers."""
        copy = self.program.module.declare_intrinsic("llvm.memcpy", [_ADDRESS, _ADDRESS, _INTEGER])
        size = Integer(self, self.raw(numbers)) * self.program.bytes
        self.builder.call(copy, [target.value, source.value, size.value, ir.IntType(1)(0)])

    def clear(self, target: Pointer, numbers: Integer | int) -> None:
        """Make this count of numbers zero."""
        clear = self.program.module.declare_intrinsic("llvm.memset", [_ADDRESS, _INTEGER])
        size = Integer(self, self.raw(numbers)) * self.program.bytes
        self.builder.call(clear, [target.value, ir.IntType(8)(0), size.value, ir.IntType(1)(0)])

    def store_integer(self, value: Integer | int, address: ir.Value, offset: int, *, bits: int = 64) -> None:
        """Write an integer at a number of bytes from an address."""
        raw = ir.IntType(bits)(value) if isinstance(value, int) else value.value
        self.builder.store(raw, self._at(address, offset), align=bits // 8)

    def store_address(self, value: ir.Value, address: ir.Value, offset: int) -> None:
        """Write an address at a number of bytes from another."""
        self.builder.store(value, self._at(address, offset), align=8)

    def add_atomically(self, address: ir.Value, offset: int, value: int) -> Integer:
        """Add to the 64-bit integer at a number of bytes from an address; what it was, all threads agreeing."""
        place = self._at(address, offset)
        return Integer(self, self.builder.atomic_rmw("add", place, _INTEGER(value), "seq_cst"))

    def wait(self, address: ir.Value, offset: int, value: Integer) -> None:
        """Wait until other threads have made the integer at a number of bytes from an address as large as ``value``."""
        again, after = (self.function.append_basic_block() for _ in range(2))
        self.builder.branch(again)
        self.builder.position_at_end(again)
        now = self.builder.load_atomic(self._at(address, offset), "acquire", 8, typ=_INTEGER)
        self.builder.cbranch(Integer(self, now).is_below(value), again, after)
        self.builder.position_at_end(after)

    def allocate(self, size: int) -> ir.Value:
        """The address of ``size`` bytes of the C library's memory."""
        return self.builder.call(self._library("malloc", _ADDRESS, _INTEGER), [_INTEGER(size)])

    def free(self, address: ir.Value) -> None:
        """Give them back."""
        self.builder.call(self._library("free", ir.VoidType(), _ADDRESS), [address])

    def _library(self, name: str, gives: ir.Type, takes: ir.Type) -> ir.Function:
        known = self.program.module.globals
        return known.get(name) or ir.Function(self.program.module, ir.FunctionType(gives, [takes]), name)

    def call_with_structure(self, function: ir.Value, members: Mapping[int, ir.Value]) -> ir.Value:
        """Call a function with the address of a structure of these words, by their offsets in bytes."""
        words = max(members) // 8 + 1
        with self.builder.goto_entry_block():
            structure = self.builder.alloca(_INTEGER, words)
        structure.type = _ADDRESS  # as all addresses here, of nothing in particular
        for offset, member in members.items():
            self.store_address(member, structure, offset)
        function.type = ir.FunctionType(_ADDRESS, [_ADDRESS]).as_pointer()
        return self.builder.call(function, [structure])

    def holds(self, bits: int, value: int, address: ir.Value, offset: int) -> ir.Value:
        """Whether this integer stands at a number of bytes from an address."""
        kind = ir.IntType(bits)
        return self.builder.icmp_unsigned(
            "==", self.builder.load(self._at(address, offset), typ=kind, align=bits // 8), kind(value)
        )

    def _at(self, address: ir.Value, offset: int) -> ir.Value:
        return self.builder.gep(address, [_INTEGER(offset)], source_etype=ir.IntType(8))


class Program:
    """Functions that are compiled together.

    Attributes:
        bytes: of a number.
        lanes: numbers in a vector.
        registers: vectors that the processor holds.
        number: type of a number, ``vector`` of a vector.
    """

    def __init__(self, bits: int, processor: Processor) -> None:
        """Of numbers of 32 or 64 bits, in vectors that the processor has."""
        self.bytes = bits // 8
        self.lanes, self.registers = processor.vector_bits // bits, processor.registers
        self.module = ir.Module()
        self.module.triple = llvm.get_process_triple()
        self.module.data_layout = str(target_machine().target_data)
        self.number = {32: ir.FloatType(), 64: ir.DoubleType()}[bits]
        self.vector = ir.VectorType(self.number, self.lanes)

    def function(self, name: str, pointers: int, integers: int) -> tuple[Emitter, list[Pointer], list[Integer]]:
        """A function of addresses, and of integers after them, that nothing outside calls."""
        kind = ir.FunctionType(ir.VoidType(), [_ADDRESS] * pointers + [_INTEGER] * integers)
        made = ir.Function(self.module, kind, name)
        made.linkage = "internal"
        emitter = Emitter(self, made)
        given = [Pointer(emitter, a) for a in made.args[:pointers]]
        return emitter, given, [Integer(emitter, a) for a in made.args[pointers:]]

    def entry(self, name: str) -> tuple[Emitter, ir.Value]:
        """The function that is called from outside: one address in, one out."""
        emitter = Emitter(self, ir.Function(self.module, ir.FunctionType(_ADDRESS, [_ADDRESS]), name))
        return emitter, emitter.function.args[0]

    def zeros(self, name: str, count: int) -> ir.GlobalVariable:
        """Constant zeros."""
        kind = ir.ArrayType(self.number, count)
        made = ir.GlobalVariable(self.module, kind, name)
        made.global_constant = True
        made.linkage = "internal"
        made.initializer = ir.Constant(kind, None)
        return made

    def compiled(self, name: str) -> ctypes.c_void_p:
        """Compile all, and say where the function ``name`` is; it stays there as long as the process. One at a time."""
        module = llvm.parse_assembly(str(self.module))
        options = llvm.create_pipeline_tuning_options(speed_level=2)
        # Loops carry as many vectors as the processor holds: unrolled they would spill.
        options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False
        passes = llvm.create_pass_builder(target_machine(), options)
        passes.getModulePassManager().run(module, passes)
        engine().add_module(module)
        engine().finalize_object()
        return ctypes.c_void_p(engine().get_function_address(name))
