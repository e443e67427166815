"""Every message on the network: protobuf bytes, then five bytes that say whether they arrived as they were sent."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from veil.errors import CorruptMessage

CHECK_TAG = 15 << 3 | 5
"""Field 15, wire type fixed32: the last field of every request and reply."""

CHECK_BYTES = 5

M = TypeVar("M", bound=Message)


def seal(message: Message) -> bytes:
    """The message's bytes and, as its field ``check``, their CRC-32."""
    data: bytes = message.SerializeToString()
    return data + bytes((CHECK_TAG,)) + zlib.crc32(data).to_bytes(4, "little")


def sealed_parts(head: bytes, parts: Sequence[bytes]) -> list[bytes]:
    """What `seal` makes of a message whose bytes are ``head`` and then ``parts``, without joining them."""
    check = zlib.crc32(head)
    for part in parts:
        check = zlib.crc32(part, check)
    return [head, *parts, bytes((CHECK_TAG,)) + check.to_bytes(4, "little")]


def unseal(data: bytes | None, kind: type[M]) -> M:
    """Inverse of `seal`; raises `CorruptMessage` for bytes that are not one whole message of this kind.

    gRPC hands over None where a call ended well and its message was lost.
    """
    if data is None:
        raise CorruptMessage(f"no {kind.__name__} came")
    end = len(data) - CHECK_BYTES
    if end < 0 or data[end] != CHECK_TAG:
        raise CorruptMessage(f"{len(data)} bytes are not a {kind.__name__}")
    body = memoryview(data)[:end]
    if zlib.crc32(body) != int.from_bytes(data[end + 1 :], "little"):
        raise CorruptMessage(f"a {kind.__name__} does not match its checksum")
    message = kind()
    try:
        message.ParseFromString(bytes(body))
    except DecodeError:
        raise CorruptMessage(f"{len(data)} bytes do not parse as a {kind.__name__}") from None
    return message
