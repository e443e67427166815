"""Memory at an address, inside kernels: for tables that say where things are, and words that threads hand to each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import Signature
from numba.extending import intrinsic
from numpy.typing import NDArray

Native = Callable[..., int]
"""What kernels call and Python does not: its arguments are of the machine's types."""


def external(name: str, signature: Signature) -> Native:
    """A function of the C library or of another that is loaded, for kernels; ``signature`` is Numba's."""
    return cast(Native, types.ExternalFunction(name, signature))


copy_bytes = external("memcpy", types.voidptr(types.uintp, types.uintp, types.uintp))
"""``copy_bytes(to, source, count)``; the addresses are unsigned."""

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


carray = cast(Callable[..., NDArray[np.generic]], vars(numba)["carray"])
"""The array at a pointer: ``carray(pointer(address), shape, dtype)``."""

pointer = cast(Native, _pointer)
load_word = cast(Native, _load)
store_word = cast(Native, _store)
