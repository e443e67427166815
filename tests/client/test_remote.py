"""What the network transport keeps between calls belongs to one session, whichever thread opens the next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from veil.client import remote as remote_module
from veil.client.connection import Address
from veil.client.remote import RemoteTransport
from veil.client.stats import Stats
from veil.client.stream import GrpcStream
from veil.network.timeouts import Timeouts
from veil.wire import veil_pb2 as pb
from veil.wire.codec import spans_from
from veil.wire.envelope import unseal
from veil.wire.messages import Span


@pytest.fixture
def transport(pair: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteTransport]:
    """Its sessions are called 1, 2, …; each has a lane with a ticket of that name."""
    opened = iter(range(1, 10))

    def reply(self: RemoteTransport) -> pb.OpenReply:
        name = str(next(opened))
        return pb.OpenReply(session=name, rows_port=9, rows_ticket=name)

    monkeypatch.setattr(RemoteTransport, "_open", reply)
    made = RemoteTransport(pair.client_model, Address(target="127.0.0.1:9"), pair.kernels, Stats(), Timeouts(), "0" * 64)
    yield made
    made._online.close()
    made.offline.close()


def released(transport: RemoteTransport, session: str) -> list[int]:
    (request,) = transport._requests(session, 0, [Span(0, 0, 1)], np.zeros((1, 210), np.uint8), 51)[1]
    return list(unseal(request, pb.EvaluateRequest).release)


def test_released_batches_are_told_once_and_to_their_session(transport: RemoteTransport) -> None:
    first = transport.open()
    transport.release(first, [3, 4])
    transport.release(first, [5])
    assert released(transport, first) == [3, 4, 5]
    assert released(transport, first) == []
    transport.release(first, [6])
    second = transport.open()
    transport.release(first, [7])
    transport.release(second, [0])
    assert released(transport, first) == []
    assert released(transport, second) == [0]


@pytest.mark.parametrize(("opens", "lane"), [(False, None), (True, (9, "2"))])
def test_a_lane_that_fails_is_given_up_but_not_the_next_sessions(
    opens: bool, lane: object, transport: RemoteTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        if opens:
            transport.open()
        raise OSError

    monkeypatch.setattr(remote_module, "LaneStream", fail)
    stream = transport._open_stream(transport.open(), 1)
    assert isinstance(stream, GrpcStream)
    assert transport.lane == lane
    stream.close()


def test_a_lane_that_works_does_not_replace_the_next_sessions(
    transport: RemoteTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "LaneStream", lambda *_: transport.open())
    assert transport._open_stream(transport.open(), 1) == "2"  # type: ignore[comparison-overlap]
    assert transport.lane == (9, "2")


def test_rows_are_cut_into_messages_and_say_what_they_ask_for(
    transport: RemoteTransport, pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row goes once, in order, with the batch and row that it is of; all outputs are the default."""
    name, step = transport.open(), 3
    monkeypatch.setattr(transport, "_row_sizes", [(210, step)] * 3)
    spans, data = [Span(5, 6, 2), Span(6, 0, 5), Span(9, 1, 1)], np.arange(8 * 210, dtype=np.uint32).astype(np.uint8)
    for slots, told in ((51, 0), (30, 30)):
        _, requests = transport._requests(name, 0, spans, data.reshape(8, 210), slots)
        messages = [unseal(request, pb.EvaluateRequest) for request in requests]
        assert [len(message.rows) for message in messages] == [630, 630, 420]
        assert b"".join(message.rows for message in messages) == data.tobytes()
        assert {message.slots for message in messages} == {told}
        parts = [span for message in messages for span in spans_from(message.spans)]
        rows = [(span.batch, row) for span in parts for row in range(span.first, span.first + span.count)]
        assert rows == [(5, 6), (5, 7), (6, 0), (6, 1), (6, 2), (6, 3), (6, 4), (9, 1)]
    sequences = [message.sequence for message in messages]
    assert sequences == list(range(sequences[0], sequences[0] + 3))
