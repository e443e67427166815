"""The kernels of fronts and rounds: who receives, claims and sends when, without the interpreter.

A connection's word in ``hands`` says whose it is; whoever has it, and nobody else, touches its row of the table and its part
of the arena, and stores the word last. See `veil.server.fronts` and `veil.server.joined_rounds`.
"""

from __future__ import annotations

import platform

import numpy as np
from numba import types
from numpy.typing import NDArray

from veil.kernels import joined_rows as row
from veil.kernels.cpu.addresses import carray, external, load_word, pointer, store_word
from veil.kernels.cpu.kept import jitted
from veil.network.frames import LENGTH_BYTES
from veil.server import batch_table as batch
from veil.server.batch_table import find_batch
from veil.server.row_io import (
    BATCH,
    BYTES_IN,
    BYTES_OUT,
    CAME,
    CHECK_NS,
    COUNT,
    DIGEST,
    FIRST,
    GIVEN,
    GROUP,
    MESSAGES,
    PART,
    RECEIVED,
    REPLY_NS,
    RESULT_BYTES,
    RESULTS,
    ROWS_AT,
    ROWS_BYTES,
    ROWS_SUM,
    SENT,
    SESSION,
    SLOTS,
    STATE,
    WHOLE,
    receive_one,
    send_results,
)
from veil.server.spending import spend

I64 = NDArray[np.int64]

LOOP, FRONT, ARRIVED, ROUND, REPLY, UNSENT = range(6)
"""Whose a connection is: the serving loop's; its front's, which receives; a message is there; in a round; its front's, which
replies; part of a reply did not go."""

RESTING, STOPPING = range(2)
"""Words that all share: whether rounds rest, or may, and have to be rung for; whether fronts return."""

MOST_EVENTS = 256
"""Connections that one look finds."""

EVENT_WORDS = 3 if platform.machine() in ("x86_64", "AMD64") else 4
"""32-bit words of an event of epoll: packed on x86-64."""

_FILE_WORD = EVENT_WORDS - 2
_FEW = 8
"""Rows of a message: of more a GPU's matrix units make quicker work."""

_POLITE = 16
"""Looks without anything before the core is offered to others between two of them."""

_QUIET = 0x4000 | 0x40  # MSG_NOSIGNAL, MSG_DONTWAIT
_MONOTONIC = 1

_wait = external("epoll_wait", types.intc(types.intc, types.uintp, types.intc, types.intc))
_yield = external("sched_yield", types.intc())
_send = external("send", types.intp(types.intc, types.uintp, types.uintp, types.intc))
_clock = external("clock_gettime", types.intc(types.intc, types.uintp))

SEGMENT, COLUMN = row.COLUMNS, row.COLUMNS + 1
"""Columns of a group beside those of its rows: which of its model's segments it is of, and its first slot there."""

GROUP_COLUMNS = row.COLUMNS + 2


@jitted(nogil=True)
def now_ns(room):  # type: ignore[no-untyped-def]
    """Nanoseconds of the monotonic clock; ``room`` int64 [2]."""
    _clock(types.intc(_MONOTONIC), types.uintp(room.ctypes.data))
    return room[0] * 1000000000 + room[1]


@jitted(nogil=True)
def hand_of(hands, place):  # type: ignore[no-untyped-def]
    """Whose a connection is."""
    return load_word(np.int64(hands.ctypes.data) + 8 * place)


@jitted(nogil=True)
def give(hands, place, hand):  # type: ignore[no-untyped-def]
    """Hand a connection on, after everything that was done with it."""
    store_word(np.int64(hands.ctypes.data) + 8 * place, np.int64(hand))


@jitted(nogil=True)
def front(which, fronts, epoll, events, files, table, arena, hands, shared, wake, key, looks):  # type: ignore[no-untyped-def]
    """Receive from, and reply to, each connection of the front ``which`` of ``fronts``, while there is something to do.

    ``epoll`` is the file of the front's connections, ``files`` int64 their places and one, ``events`` int32
    [MOST_EVENTS * EVENT_WORDS]; ``wake`` is the file that rings for rounds. Back when nothing is under way after
    ``looks`` without anything, True, or when fronts have to return.
    """
    idle, room = 0, np.empty(2, np.int64)
    while load_word(np.int64(shared.ctypes.data) + 8 * STOPPING) == 0:
        worked = under_way = False
        for place in range(which, len(hands), fronts):
            hand = hand_of(hands, place)
            if hand == REPLY:
                _reply(place, table[place], hands, room)
                worked = True
            under_way |= hand in (ARRIVED, ROUND)
        count = _wait(types.intc(epoll), types.uintp(events.ctypes.data), types.intc(MOST_EVENTS), types.intc(0))
        for n in range(count):
            file = events[n * EVENT_WORDS + _FILE_WORD]
            place = files[file] - 1 if 0 <= file < len(files) else np.int64(-1)
            if place >= 0 and place % fronts == which and hand_of(hands, place) == FRONT:
                _receive(place, table, arena, hands, shared, wake, key, room)
                worked = True
        idle = 0 if worked else idle + 1
        if idle > looks and not under_way:
            return True
        if idle > _POLITE:
            _yield()
    return False


@jitted(nogil=True)
def _receive(place, table, arena, hands, shared, wake, key, room):  # type: ignore[no-untyped-def]
    """Receive what came; a message, or what is none, is handed over, with a ring if rounds rest."""
    own, start = table[place], now_ns(room)
    receive_one(arena, table, place, key)
    if own[STATE] == PART:
        return
    own[CAME] = now_ns(room)
    own[CHECK_NS] += own[CAME] - start
    give(hands, place, ARRIVED)
    if load_word(np.int64(shared.ctypes.data) + 8 * RESTING) != 0:
        _send(types.intc(wake), types.uintp(room.ctypes.data), types.uintp(1), types.intc(_QUIET))


@jitted(nogil=True)
def _reply(place, own, hands, room):  # type: ignore[no-untyped-def]
    """Send the results that a round gave."""
    own[SENT] = send_results(own, carray(pointer(own[RESULTS]), (own[RESULT_BYTES],), np.uint8))
    own[MESSAGES] += 1
    own[ROWS_SUM] += own[COUNT]
    own[BYTES_IN] += own[RECEIVED]
    own[BYTES_OUT] += max(np.int64(0), own[SENT] - LENGTH_BYTES)
    own[REPLY_NS] += now_ns(room) - own[GIVEN]
    give(hands, place, FRONT if own[SENT] > 0 else UNSENT)


@jitted(nogil=True)
def look(epoll, events, hands, found, looks):  # type: ignore[no-untyped-def]
    """Look up to ``looks`` times, at least once, until a message is there: how many are in ``found``, and whether the bell
    was rung, whose poll is the file ``epoll``.
    """
    some, rung = 0, False
    for turn in range(max(1, looks)):
        for place in range(len(hands)):
            hand = hand_of(hands, place)
            if hand in (ARRIVED, UNSENT) and some < len(found):
                found[some] = place
                some += 1
        if some > 0 or turn % 8 == 0:
            rung = _wait(types.intc(epoll), types.uintp(events.ctypes.data), types.intc(1), types.intc(0)) > 0
        if some > 0 or rung:
            break
        if turn > _POLITE:
            _yield()
    return some, rung


@jitted()
def claim(  # type: ignore[no-untyped-def]
    table, arena, hands, found, groups, batches, expires, heads, names, now, most, rows, turns, left
):
    """Claim the rows of the messages of ``found``, ``most`` rows at most: how many are claimed, left, and wait.

    What is claimed is in ``rows`` [n, columns] of `veil.kernels.joined_rows`, its connections in ``turns`` [n, 3]. In
    ``left`` are those that the serving loop has now, to read their message by itself; ``found`` begins with those whose
    message waits for the next round.
    """
    count = total = others = waiting = 0
    for n in range(len(found)):
        place = found[n]
        own = table[place]
        if hand_of(hands, place) != UNSENT and own[STATE] == WHOLE:
            if total + own[COUNT] > most and own[COUNT] <= _FEW:
                give(hands, place, ROUND)
                found[waiting] = place
                waiting += 1
                continue
            if _claimed(own, arena[place], groups, batches, expires, heads, names, now, rows[count]):
                give(hands, place, ROUND)
                turns[count, row.PLACE] = place
                total += own[COUNT]
                count += 1
                continue
        if hand_of(hands, place) != UNSENT:
            give(hands, place, LOOP)
        left[others] = place
        others += 1
    return count, others, waiting


@jitted(nogil=True)
def _claimed(own, data, groups, batches, expires, heads, names, now, out):  # type: ignore[no-untyped-def]
    """Claim a message's rows if every check allows it."""
    group, count, first = own[GROUP], own[COUNT], own[FIRST]
    if group >= len(groups) or count > _FEW:
        return False
    info = groups[group]
    if own[ROWS_BYTES] != count * info[row.ROW_BYTES] or own[SLOTS] > info[row.OUTPUTS]:
        return False
    place = find_batch(batches, heads, names, own[SESSION], own[BATCH])
    if place < 0 or expires[place] < now:
        return False
    known, column = batches[place], batch.SHARES + 2 * info[SEGMENT]
    prepared = known[batch.ROWS]
    if known[column] == 0 or first > prepared - count:
        return False
    counts = carray(pointer(known[batch.COUNTS] + 2 * (prepared + 1) * group), (prepared + 1,), np.int16)
    digests = carray(pointer(known[batch.DIGESTS] + 8 * prepared * group), (prepared,), np.uint64)
    if not spend(counts, digests, first, count, np.uint64(own[DIGEST]), True):
        return False
    for n in range(row.COLUMNS):
        out[n] = info[n]
    if own[SLOTS] > 0:
        out[row.OUTPUTS] = own[SLOTS]
    words = known[column + 1]
    out[row.SHARES] = known[column] + 4 * (first * words + info[COLUMN])
    out[row.STRIDE] = 4 * words
    out[row.DATA] = np.int64(data.ctypes.data) + own[ROWS_AT]
    out[row.COUNT] = count
    return True


@jitted()
def hand_out(table, hands, turns, results):  # type: ignore[no-untyped-def]
    """Give the fronts a round's results [bytes] to send."""
    room = np.empty(2, np.int64)
    now = now_ns(room)
    for n in range(len(turns)):
        own = table[turns[n, row.PLACE]]
        own[RESULTS] = np.int64(results.ctypes.data) + turns[n, row.FIRST]
        own[RESULT_BYTES] = turns[n, row.END] - turns[n, row.FIRST]
        own[GIVEN] = now
        give(hands, turns[n, row.PLACE], REPLY)


@jitted()
def waited_ns(table, turns):  # type: ignore[no-untyped-def]
    """Nanoseconds since the messages of a round came, together."""
    room = np.empty(2, np.int64)
    now, total = now_ns(room), 0
    for n in range(len(turns)):
        total += now - table[turns[n, row.PLACE], CAME]
    return total


@jitted(nogil=True)
def await_sent(hands, turns, left):  # type: ignore[no-untyped-def]
    """Wait until a round's results were sent as far as they go; how many connections in ``left`` did not take all."""
    count = 0
    for n in range(len(turns)):
        place = turns[n, row.PLACE]
        while hand_of(hands, place) == REPLY:
            _yield()
        if hand_of(hands, place) == UNSENT:
            left[count] = place
            count += 1
    return count
