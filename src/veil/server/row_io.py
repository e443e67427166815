"""Sealed requests received, checked and taken apart, replies formed and sent: many connections in one call, no interpreter.

What is not of the usual form (several spans, released batches, another session, a wrong checksum, part of a message) is left
to `veil.server.rows`, which says what is wrong with it; a reply has the very bytes that it would form. See ``veil.proto``.
"""

from __future__ import annotations

import sys

import numpy as np
from numba import prange, types

from veil.kernels.cpu.addresses import copy_bytes, external
from veil.kernels.cpu.checksum import crc32
from veil.kernels.cpu.kept import jitted
from veil.kernels.cpu.parallel import parallel
from veil.kernels.cpu.siphash import siphash
from veil.network.frames import LENGTH_BYTES
from veil.wire.envelope import CHECK_BYTES, CHECK_TAG

NAME_BYTES = 32
"""Of a session's name."""

FILE, HAVE, STATE, SEQUENCE, GROUP, BATCH, FIRST, COUNT, SLOTS, ROWS_AT, ROWS_BYTES, DIGEST, RECEIVED = range(13)
"""Columns of a table with a row for each connection: its file, the bytes that are there; then what its message says.

The digest is the message's rows' `siphash`.
"""

SESSION, RESULTS, RESULT_BYTES, SENT, GIVEN, CAME, MESSAGES, ROWS_SUM, BYTES_IN, BYTES_OUT, CHECK_NS, REPLY_NS, NAME = range(
    13, 26
)
"""More, for `veil.server.fronts`: its session's number in a `veil.server.batch_table`; where its reply's results are, how
many bytes, how many of the reply went; when it was given them and when its message came, in ns; and sums of what was
answered."""

COLUMNS = NAME + NAME_BYTES // 8

PART, WHOLE, OTHER = range(3)
"""States of a connection: part of a message is there, a usual one, anything else (also an end, or an error)."""

AVAILABLE = sys.platform == "linux" and sys.byteorder == "little"

_HEAD = 40  # bytes of a reply before its rows, at most
_NOW = 0x40  # MSG_DONTWAIT
_QUIET = 0x4000  # MSG_NOSIGNAL
_MOST_VARINT = 9

_receive = external("recv", types.intp(types.intc, types.uintp, types.uintp, types.intc))
_send = external("send", types.intp(types.intc, types.uintp, types.uintp, types.intc))


@jitted(nogil=True)
def _varint(data, at, end):  # type: ignore[no-untyped-def]
    """A number and where it ends; -1 for one that is cut off or has more than 63 bits."""
    value, shift = np.int64(0), 0
    while at < end and shift < 7 * _MOST_VARINT:
        byte = np.int64(data[at])
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
    return np.int64(-1), at


@jitted(nogil=True)
def _take_apart(data, first, end, own, name):  # type: ignore[no-untyped-def]
    """Note the fields of a request; whether it has each usual one once, and no other."""
    own[SEQUENCE] = own[GROUP] = own[SLOTS] = own[ROWS_BYTES] = 0
    own[COUNT] = 0
    at, seen, named = first, 0, False
    while at < end:
        tag, at = _varint(data, at, end)
        field = tag >> 3
        if tag < 0 or field < 1 or field > 7 or seen >> field & 1:
            return False
        seen |= 1 << field
        value, at = _varint(data, at, end)
        if value < 0:
            return False
        if field in (2, 3, 7):
            if tag & 7 != 0 or (field != 2 and value >= 1 << 32):
                return False
            own[SEQUENCE if field == 2 else GROUP if field == 3 else SLOTS] = value
            continue
        if tag & 7 != 2 or value > end - at:
            return False
        stop = at + value
        if field == 1:
            if value != name.size:
                return False
            for j in range(name.size):
                if data[at + j] != name[j]:
                    return False
            named = True
        elif field == 4:
            own[BATCH], at = _varint(data, at, stop)
            own[FIRST], at = _varint(data, at, stop)
            own[COUNT], at = _varint(data, at, stop)
            if at != stop or own[BATCH] < 0 or own[FIRST] < 0 or own[COUNT] < 0:
                return False
        elif field == 6:
            own[ROWS_AT], own[ROWS_BYTES] = at, value
        else:
            return False
        at = stop
    return named and own[SEQUENCE] > 0 and own[COUNT] > 0 and own[ROWS_BYTES] > 0


@jitted(nogil=True)
def _read(data, own, key):  # type: ignore[no-untyped-def]
    """Receive what is there on a connection; its state."""
    have = own[HAVE]
    got = _receive(
        types.intc(own[FILE]), types.uintp(data.ctypes.data) + types.uintp(have), data.size - have, types.intc(_NOW)
    )
    if got <= 0:
        return OTHER
    have += got
    own[HAVE] = have
    if have < LENGTH_BYTES:
        return PART
    length = np.int64(data[0]) | np.int64(data[1]) << 8 | np.int64(data[2]) << 16 | np.int64(data[3]) << 24
    if have < LENGTH_BYTES + length <= data.size:
        return PART
    end = have - CHECK_BYTES
    if have != LENGTH_BYTES + length or length < CHECK_BYTES or data[end] != CHECK_TAG:
        return OTHER
    check = np.uint32(0)
    for j in range(4):
        check |= np.uint32(data[end + 1 + j]) << np.uint32(8 * j)
    if check != crc32(data, LENGTH_BYTES, end):
        return OTHER
    own[RECEIVED] = length
    if not _take_apart(data, LENGTH_BYTES, end, own, own[NAME:].view(np.uint8)):
        return OTHER
    own[DIGEST] = np.int64(siphash(data, own[ROWS_AT], own[ROWS_AT] + own[ROWS_BYTES], key))
    return WHOLE


@jitted(nogil=True)
def receive_one(arena, table, place, key):  # type: ignore[no-untyped-def]
    """`receive` from one connection."""
    own = table[place]
    own[STATE] = _read(arena[place], own, key)
    if own[STATE] == WHOLE:
        own[HAVE] = 0


@jitted(nogil=True)
def receive(arena, table, places, key):  # type: ignore[no-untyped-def]
    """Receive from the connections in ``places`` [n] into their rows of the arena [connections, bytes]; sets their states.

    ``key`` is that of the digests. A whole message is forgotten here: its bytes stay until the next call for its connection.
    """
    for place in places:
        receive_one(arena, table, place, key)


@parallel()
def receive_together(arena, table, places, key):  # type: ignore[no-untyped-def]
    """`receive` by several threads."""
    for n in prange(len(places)):
        receive_one(arena, table, places[n], key)


@jitted(nogil=True)
def _put_varint(out, at, value):  # type: ignore[no-untyped-def]
    while value > 127:
        out[at] = value & 127 | 128
        value >>= 7
        at += 1
    out[at] = value
    return at + 1


@jitted(nogil=True)
def _form(sequence, rows, out):  # type: ignore[no-untyped-def]
    """A sealed reply with its length before it; how many bytes."""
    size = rows.size
    out[LENGTH_BYTES] = 8
    at = _put_varint(out, LENGTH_BYTES + 1, sequence)
    out[at] = 18
    at = _put_varint(out, at + 1, size)
    copy_bytes(
        types.uintp(out.ctypes.data + at), types.uintp(rows.ctypes.data), types.uintp(size)
    )  # a slice goes byte by byte
    at += size
    check = np.int64(crc32(out, LENGTH_BYTES, at))
    out[at] = CHECK_TAG
    for j in range(4):
        out[at + 1 + j] = check >> (8 * j) & 255
    at += CHECK_BYTES
    for j in range(4):
        out[j] = (at - LENGTH_BYTES) >> (8 * j) & 255
    return at


@jitted(nogil=True)
def _reply_one(packed, table, turn):  # type: ignore[no-untyped-def]
    own = table[turn[0]]
    turn[3] = send_results(own, packed[turn[1] : turn[2]])


@jitted(nogil=True)
def send_results(own, rows):  # type: ignore[no-untyped-def]
    """Reply to a connection's message with these packed rows: the bytes that went, ``-1 - n`` where only n of them did."""
    out = np.empty(_HEAD + rows.size, np.uint8)
    size = _form(own[SEQUENCE], rows, out)
    sent = _send(types.intc(own[FILE]), types.uintp(out.ctypes.data), types.uintp(size), types.intc(_NOW | _QUIET))
    return size if sent == size else -1 - max(0, sent)


@jitted(nogil=True)
def reply(packed, table, turns):  # type: ignore[no-untyped-def]
    """Answer usual messages with parts of the results [bytes] uint8; ``turns`` [n, 4] are (place, first byte, end, 0).

    The 0 becomes the bytes that went, less than none for an error. A connection without a file (-1) is passed over.
    """
    for n in range(len(turns)):
        _reply_one(packed, table, turns[n])


@parallel()
def reply_together(packed, table, turns):  # type: ignore[no-untyped-def]
    """`reply` by several threads."""
    for n in prange(len(turns)):
        _reply_one(packed, table, turns[n])
