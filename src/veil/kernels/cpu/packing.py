"""Words of 1 to 32 bits, one after the other without gaps in rows of bytes, little-endian bit order; eight at a time."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import prange, types
from numpy.typing import NDArray

from veil.kernels.cpu.kept import ZERO, jitted
from veil.kernels.cpu.parallel import parallel
from veil.kernels.cpu.vector import (
    I32,
    I64,
    Builder,
    Context,
    Loop,
    Signature,
    Value,
    Values,
    array,
    constant,
    declare,
    has_feature,
    read,
    read_word64,
    splat,
    vector_code,
    write_word64,
)

_VECTOR_BITS = 25  # a word of so many bits lies within four bytes from the byte in which it begins
_PIECE = 1024  # words of a row that one job of a thread handles: whole bytes


@jitted()
def pack_words(words, count, bits, out, at):  # type: ignore[no-untyped-def]
    """Pack the first words, each below 2^bits, into bytes from ``at`` on: ceil(count·bits/8) of the flat array ``out``."""
    done = 0
    if bits < 32:
        half, rest = (4 * bits) >> 3, np.uint64((4 * bits) & 7)
        up, twice, down = np.uint64(bits), np.uint64(2 * bits), np.uint64(64 - 2 * bits)
        left = np.uint64(8 * half & 63)
        one, back = np.uint64(1), np.uint64(63) - rest
        most = at + ((count * bits + 7) >> 3) - half - 16  # another thread may write what comes after
        while done + 8 <= count and at <= most:
            a = np.uint64(words[done]) | np.uint64(words[done + 1]) << up
            b = np.uint64(words[done + 2]) | np.uint64(words[done + 3]) << up
            c = np.uint64(words[done + 4]) | np.uint64(words[done + 5]) << up
            d = np.uint64(words[done + 6]) | np.uint64(words[done + 7]) << up
            a, b = a | b << twice, b >> down
            c, d = c | d << twice, d >> down
            write_word64(out, at, a)
            write_word64(out, at + 8, b)
            write_word64(out, at + half, c << rest | (b if half >= 8 else a) >> left)
            write_word64(out, at + half + 8, d << rest | c >> one >> back)
            done += 8
            at += bits
    buffer, filled = np.uint64(0), 0
    for j in range(done, count):
        buffer |= np.uint64(words[j]) << np.uint64(filled)
        filled += bits
        while filled >= 8:
            out[at] = np.uint8(buffer & np.uint64(0xFF))
            buffer >>= np.uint64(8)
            filled -= 8
            at += 1
    if filled > 0:
        out[at] = np.uint8(buffer & np.uint64(0xFF))


@vector_code
def _has_shuffle(typing_context):  # type: ignore[no-untyped-def]
    """Whether `_unpack_eights` may be called on this machine."""

    def code(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        return ir.Constant(ir.IntType(1), has_feature(context, "avx2"))

    return types.boolean(), code


@vector_code
def _unpack_eights(typing_context, data, at, bits, down, groups, words):  # type: ignore[no-untyped-def]
    """Words of up to `_VECTOR_BITS` bits, eight in each group, from bytes from ``at`` on, of which 16 more are read.

    They come at the top of 32 bits, then ``down`` bits lower.
    """

    def code(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        if not has_feature(context, "avx2"):
            return context.get_dummy_value()
        data, words = (array(context, builder, signature, args, place) for place in (0, 5))
        _, at, bits, down, groups, _ = args
        kind, sixteen = ir.VectorType(I32, 8), ir.VectorType(ir.IntType(8), 16)
        small = ir.VectorType(ir.IntType(8), 32)
        shuffle = declare(builder, "llvm.x86.avx2.pshuf.b", small, [small] * 2)

        def every(value: Value) -> Value:
            return splat(builder, builder.trunc(value, I32), kind)

        half_bits = builder.shl(bits, I64(2))
        half = builder.lshr(half_bits, I64(3))
        begins = builder.mul(ir.Constant(kind, [0, 1, 2, 3] * 2), every(bits))
        upper = ir.Constant(kind, [0] * 4 + [-1] * 4)
        begins = builder.add(begins, builder.and_(every(builder.and_(half_bits, I64(7))), upper))
        bytes_of = builder.mul(builder.lshr(begins, constant(kind, 3)), constant(kind, 0x01010101))
        order = builder.bitcast(builder.add(bytes_of, constant(kind, 0x03020100)), small)
        up = builder.sub(every(builder.sub(I64(32), bits)), builder.and_(begins, constant(kind, 7)))
        kept = builder.shl(constant(kind, -1), every(builder.sub(I64(32), bits)))
        low = every(down)
        start = builder.gep(data.data, [at])
        with Loop(builder, groups, 1, []) as loop:
            place = builder.gep(start, [builder.mul(loop.index, bits)])
            parts = [read(builder, p, sixteen) for p in (place, builder.gep(place, [half]))]
            joined = builder.shuffle_vector(*parts, ir.Constant(ir.VectorType(I32, 32), list(range(32))))
            lanes = builder.bitcast(builder.call(shuffle, [joined, order]), kind)
            value = builder.lshr(builder.and_(builder.shl(lanes, up), kept), low)
            target = builder.gep(words.data, [builder.shl(loop.index, I64(3))])
            builder.store(value, builder.bitcast(target, kind.as_pointer()), align=4)
        return context.get_dummy_value()

    size = types.intp
    return types.void(data, size, size, size, size, words), code


@jitted()
def unpack_words(data, at, bits, count, top, words):  # type: ignore[no-untyped-def]
    """Inverse of `pack_words` for the flat array ``data``; where ``top``, the words come at the top of their 32 bits."""
    done = 0
    down = 0 if top else 32 - bits
    if bits <= _VECTOR_BITS and _has_shuffle():
        room = data.size - at - 16 - ((4 * bits) >> 3)
        done = min(count // 8, room // bits + 1) if room >= 0 else 0
        _unpack_eights(data, at, bits, down, done, words)
        done *= 8
    mask = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    up = np.uint32(32 - bits if top else 0)
    for j in range(done, count):
        place = at + ((j * bits) >> 3)
        if place + 8 <= data.size:
            window = read_word64(data, place)
        else:
            window = np.uint64(0)
            for byte in range(data.size - place):
                window |= np.uint64(data[place + byte]) << np.uint64(8 * byte)
        words[j] = np.uint32(window >> np.uint64((j * bits) & 7) & mask) << up


@jitted()
def _pack_piece(values, t, first, last, bits, out):  # type: ignore[no-untyped-def]
    pack_words(values[t, first:last], last - first, bits, out[t], first * bits // 8)


@jitted()
def _unpack_piece(data, t, first, last, bits, out):  # type: ignore[no-untyped-def]
    unpack_words(data[t], first * bits // 8, bits, last - first, False, out[t, first:last])


@jitted(nogil=True)
def _pack(values, bits, out):  # type: ignore[no-untyped-def]
    for t in range(values.shape[0]):
        _pack_piece(values, t, ZERO, values.shape[1], bits, out)


@jitted(nogil=True)
def _unpack(data, bits, out):  # type: ignore[no-untyped-def]
    for t in range(out.shape[0]):
        _unpack_piece(data, t, ZERO, out.shape[1], bits, out)


@parallel()
def _pack_together(values, bits, out):  # type: ignore[no-untyped-def]
    rows, count = values.shape
    pieces = -(-count // _PIECE)
    for job in prange(rows * pieces):
        first = job % pieces * _PIECE
        _pack_piece(values, job // pieces, first, min(count, first + _PIECE), bits, out)


@parallel()
def _unpack_together(data, bits, out):  # type: ignore[no-untyped-def]
    rows, count = out.shape
    pieces = -(-count // _PIECE)
    for job in prange(rows * pieces):
        first = job % pieces * _PIECE
        _unpack_piece(data, job // pieces, first, min(count, first + _PIECE), bits, out)


def pack(values: NDArray[np.uint32], bits: int, threads: int, out: NDArray[np.uint8]) -> None:
    """Words [T, count] below 2^bits → bytes [T, ceil(count·bits/8)], each row padded with zeros."""
    if threads > 1 and values.size:
        _pack_together(values, bits, out)
    else:
        _pack(values, bits, out)


def unpack(data: NDArray[np.uint8], bits: int, threads: int, out: NDArray[np.uint32]) -> None:
    """Inverse of `pack`: bytes [T, ceil(count·bits/8)] → words [T, count]."""
    if threads > 1 and out.size:
        _unpack_together(data, bits, out)
    else:
        _unpack(data, bits, out)


def compiled_now() -> bool:
    """Whether this process had to compile `pack`, because no cache on disk had it."""
    return bool(_pack.stats.cache_misses)
