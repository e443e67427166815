"""Sealed messages: one bit that changed, a byte too few or another kind is noticed before anything is believed."""

from __future__ import annotations

import pytest

from veil.errors import CorruptMessage
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import CHECK_BYTES, seal, unseal

HELLO = pb.LaneHello(protocol=2, session="abc", ticket="def")


def test_a_sealed_message_comes_back() -> None:
    assert unseal(seal(HELLO), pb.LaneHello) == HELLO
    assert len(seal(HELLO)) == HELLO.ByteSize() + CHECK_BYTES


def test_an_empty_message_is_five_bytes() -> None:
    assert unseal(seal(pb.EvaluateReply()), pb.EvaluateReply) == pb.EvaluateReply()
    assert len(seal(pb.EvaluateReply())) == CHECK_BYTES


def test_every_bit_counts() -> None:
    data = seal(HELLO)
    for at in range(8 * len(data)):
        bent = bytearray(data)
        bent[at // 8] ^= 1 << at % 8
        with pytest.raises(CorruptMessage, match="LaneHello"):
            unseal(bytes(bent), pb.LaneHello)


def test_every_length_counts() -> None:
    data = seal(HELLO)
    for cut in [*(data[:end] for end in range(len(data))), data + b"\x00", data + data]:
        with pytest.raises(CorruptMessage):
            unseal(cut, pb.LaneHello)


def test_a_call_that_lost_its_message_is_corrupt() -> None:
    with pytest.raises(CorruptMessage, match="no OpenReply came"):
        unseal(None, pb.OpenReply)


def test_what_has_its_checksum_and_does_not_parse_is_corrupt() -> None:
    import zlib

    body = b"\x0a\x7fshort"  # field 1, of 127 bytes
    with pytest.raises(CorruptMessage, match="do not parse as a LaneHello"):
        unseal(body + b"\x7d" + zlib.crc32(body).to_bytes(4, "little"), pb.LaneHello)
