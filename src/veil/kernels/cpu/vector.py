"""Pieces of LLVM code for kernels that Numba's own vectoriser does not find: vectors, loops with sums in registers.

LLVM lowers the same code to whatever vectors the machine has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from llvmlite import ir
from numba import types
from numba.core.typing.templates import Signature as NumbaSignature
from numba.extending import intrinsic

I32, I64 = ir.IntType(32), ir.IntType(64)
_BYTES = ir.IntType(8).as_pointer()
_LOW = 0xFFFFFFFF

Value: TypeAlias = ir.Value
Kind: TypeAlias = ir.Type
Builder: TypeAlias = ir.IRBuilder
Values: TypeAlias = Sequence[ir.Value]


class TargetCode(Protocol):
    """The machine that code is made for."""

    def magic_tuple(self) -> tuple[str, str, str]:
        """Its triple, its processor and what that can do."""


class Context(Protocol):
    """What intrinsics ask of Numba's code generator for a target."""

    def codegen(self) -> TargetCode:
        """LLVM for this machine."""

    def get_dummy_value(self) -> Value:
        """What an intrinsic without a result gives."""

    def make_array(self, kind: types.Array) -> Callable[[Context, Builder, Value], object]:
        """How the fields of an array are read."""


Signature: TypeAlias = NumbaSignature

vector_code: Callable[..., Callable[..., Any]] = intrinsic
"""Numba's, whose type counts the typing context among the arguments."""


@vector_code
def lanes(typing_context):  # type: ignore[no-untyped-def]
    """The 32-bit words of the vectors that the machine computes with best: 16 with AVX-512, 8 otherwise."""

    def code(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        return I64(vector_words(context))

    return types.intp(), code


def vector_words(context: Context) -> int:
    """`lanes` for the machine that code is made for."""
    return 16 if "+avx512f" in context.codegen().magic_tuple()[2] else 8


class Loop:
    """``for index in range(0, count, step)`` with sums in registers; ``values`` are their new values, then the results.

    The sums begin at zero, or at ``initial``.
    """

    def __init__(
        self, builder: Builder, count: Value, step: int, kinds: list[Kind], initial: list[Value] | None = None
    ) -> None:
        self._builder, self._count, self._step, self._kinds = builder, count, step, kinds
        self._initial = [_zero(kind) for kind in kinds] if initial is None else initial

    def __enter__(self) -> Loop:
        builder, before = self._builder, self._builder.block
        self._head, self._body, self._after = (builder.append_basic_block(name) for name in ("head", "body", "after"))
        builder.branch(self._head)
        builder.position_at_end(self._head)
        self.index = builder.phi(I64)
        self.index.add_incoming(I64(0), before)
        self._sums = [builder.phi(kind) for kind in self._kinds]
        for total, value in zip(self._sums, self._initial, strict=True):
            total.add_incoming(value, before)
        builder.cbranch(builder.icmp_signed("<", self.index, self._count), self._body, self._after)
        builder.position_at_end(self._body)
        self.values = list(self._sums)
        return self

    def __exit__(self, *error: object) -> None:
        builder = self._builder
        self.index.add_incoming(plus(builder, self.index, self._step), builder.block)
        for total, value in zip(self._sums, self.values, strict=True):
            total.add_incoming(value, builder.block)
        builder.branch(self._head)
        builder.position_at_end(self._after)
        self.values = list(self._sums)


def _zero(kind: Kind) -> Value:
    return ir.Constant(kind, None if isinstance(kind, ir.VectorType) else 0)


def has_feature(context: Context, name: str) -> bool:
    """Whether the machine that code is made for has a feature, by LLVM's name for it."""
    return f"+{name}" in context.codegen().magic_tuple()[2].split(",")


def array(context: Context, builder: Builder, signature: Signature, args: Values, place: int) -> Value:
    return context.make_array(signature.args[place])(context, builder, args[place])


def plus(builder: Builder, value: Value, number: int) -> Value:
    return builder.add(value, I64(number))


def constant(kind: Kind, value: int) -> Value:
    return ir.Constant(kind, [value] * kind.count)


def read(builder: Builder, pointer: Value, kind: Kind) -> Value:
    """A vector or word from bytes that may begin anywhere."""
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=1)


def load(builder: Builder, pointer: Value, kind: Kind) -> Value:
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=4)


def store(builder: Builder, pointer: Value, value: Value) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=8)


def transposed(builder: Builder, rows: list[Value]) -> list[Value]:
    """A square of vectors transposed, by exchanging halves of blocks of 2, 4, ... rows."""
    size = len(rows)
    half = 1
    while half < size:
        low = [c if not c & half else size + c - half for c in range(size)]
        high = [c + half if not c & half else size + c for c in range(size)]
        done = list(rows)
        for r in range(size):
            if not r & half:
                for place, order in ((r, low), (r + half, high)):
                    lanes = ir.Constant(ir.VectorType(I32, size), order)
                    done[place] = builder.shuffle_vector(rows[r], rows[r + half], lanes)
        rows, half = done, 2 * half
    return rows


def splat(builder: Builder, word: Value, kind: Kind) -> Value:
    nothing = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(nothing, word, I32(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count))


def declare(builder: Builder, name: str, result: Kind, kinds: list[Kind]) -> Value:
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(result, kinds), name)


def prefetch(builder: Builder, pointer: Value) -> None:
    """Ask for a line of data to be read, to all cache levels."""
    ask = declare(builder, "llvm.prefetch.p0", ir.VoidType(), [_BYTES, I32, I32, I32])
    builder.call(ask, [builder.bitcast(pointer, _BYTES), I32(0), I32(3), I32(1)])


@vector_code
def read_word64(typing_context, data, at):  # type: ignore[no-untyped-def]
    """Eight bytes of a flat uint8 array as a little-endian uint64, from any place."""

    def code(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        data = array(context, builder, signature, args, 0)
        return read(builder, builder.gep(data.data, [args[1]]), I64)

    return types.uint64(data, types.intp), code


@vector_code
def write_word64(typing_context, data, at, word):  # type: ignore[no-untyped-def]
    """Write a uint64 as eight little-endian bytes of a flat uint8 array, at any place."""

    def code(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        data = array(context, builder, signature, args, 0)
        place = builder.bitcast(builder.gep(data.data, [args[1]]), I64.as_pointer())
        builder.store(args[2], place, align=1)
        return context.get_dummy_value()

    return types.void(data, types.intp, types.uint64), code


@vector_code
def low_bits(typing_context, value):  # type: ignore[no-untyped-def]
    """The low 32 bits of a float64's representation."""

    def code(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        return builder.trunc(builder.bitcast(args[0], I64), I32)

    return types.uint32(types.float64), code


@vector_code
def float_of_bits(typing_context, word):  # type: ignore[no-untyped-def]
    """The float32 whose representation is an int32."""

    def code(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), code
