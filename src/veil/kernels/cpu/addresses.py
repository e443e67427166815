"""Memory at an address, inside kernels: for tables that say where things are, and words that threads hand to each other."""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

copy_bytes: Any = types.ExternalFunction("memcpy", types.voidptr(types.uintp, types.uintp, types.uintp))
"""``copy_bytes(to, source, count)``, by the C library; the addresses are unsigned."""

_WORD = ir.IntType(64)
_ALIGNED = 8


@intrinsic
def _pointer(context, address):  # type: ignore[no-untyped-def]
    """An address (int64) as what ``numba.carray`` takes."""

    def made(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), made


@intrinsic
def _load(context, address):  # type: ignore[no-untyped-def]
    """The int64 at an address, and with it everything that was written before it was stored by `store_word`."""

    def made(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.load_atomic(builder.inttoptr(arguments[0], _WORD.as_pointer()), "seq_cst", _ALIGNED)

    return types.int64(types.int64), made


@intrinsic
def _store(context, address, value):  # type: ignore[no-untyped-def]
    """Store an int64 at an address after everything that was written before."""

    def made(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        builder.store_atomic(arguments[1], builder.inttoptr(arguments[0], _WORD.as_pointer()), "seq_cst", _ALIGNED)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), made


carray: Any = numba.carray  # type: ignore[attr-defined]
pointer: Any = _pointer
load_word: Any = _load
store_word: Any = _store
