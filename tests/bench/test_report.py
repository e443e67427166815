"""Tables hold the record's figures."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from veil.bench import report
from veil.bench.phases import PHASES
from veil.bench.record import Peer, PeerLayer, Record


def shown(record: Record) -> str:
    file = io.StringIO()
    for table in report.tables(record):
        Console(width=160, file=file).print(table)
    return file.getvalue()


def test_the_tables_say_what_the_record_says(tiny_record: Record) -> None:
    text = shown(tiny_record)
    assert f"{tiny_record.bytes_per_token.total:,.0f}" in text
    assert all(name in text for name in PHASES)
    assert "9 round trips" in text and "3 ms, 8 Mbit/s" in text and "20 ms, 100 Mbit/s" in text
    assert f"{tiny_record.ratio.plaintext_total:.2f} × plaintext" in text
    assert "the peer" not in text


def test_the_peer_and_what_was_scaled_are_shown(tiny_record: Record) -> None:
    layer = PeerLayer(
        width=8, outputs=50257, count=1, measured_outputs=4096, encrypt_s=0.001, multiply_s=300.0, decrypt_s=0.01,
        up_bytes=1, down_bytes=1, relative_error=0.0,
    )  # fmt: skip
    peer = Peer(name="other", version="1.2", token_s=301.0, bytes_per_token=2, key_bytes=3, layers=(layer,))
    record = replace(
        tiny_record,
        peer=peer,
        token_s=replace(tiny_record.token_s, peer=301.0),
        ratio=replace(tiny_record.ratio, peer=12345.6),
    )
    text = shown(record)
    assert "12,346 times faster" in text and "4096 outputs, scaled" in text and "other 1.2: 301 s a token" in text


def test_milliseconds_have_three_digits() -> None:
    assert [report.milliseconds(s) for s in (0.00004567, 0.0123, 0.1234, 12.3456)] == [
        "0.0457 ms",
        "12.3 ms",
        "123 ms",
        "12,346 ms",
    ]
