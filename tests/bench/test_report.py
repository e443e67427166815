"""Tables hold the record's figures."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from veil.bench import report
from veil.bench.files import AnyRecord
from veil.bench.record import Peer, PeerLayer, Record, SignalPoint, SignalSeries


def shown(record: AnyRecord) -> str:
    file = io.StringIO()
    for table in report.tables(record):
        Console(width=160, file=file).print(table)
    return file.getvalue()


def test_the_tables_say_what_the_record_says(tiny_record: Record) -> None:
    text = shown(tiny_record)
    assert f"{tiny_record.bytes_per_token.total:,.0f}" in text
    assert all(phase.name in text for phase in tiny_record.phases)
    assert "9 round trips" in text and "20 ms, 100 Mbit/s" in text and "busy" not in text
    assert "a row of a 5-row prompt" in text and f"{tiny_record.prompts[1].ratio:.2f} × plaintext" in text
    assert f"{tiny_record.bytes_per_token.up_online:,.0f}" in text
    assert f"{tiny_record.ratio.clear_bytes:.2f} × clear float32" in text
    assert f"{tiny_record.ratio.plaintext_offline:.2f} × plaintext" in text
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


def test_what_ran_beside_it_is_in_the_title(tiny_record: Record) -> None:
    text = shown(replace(tiny_record, settings=replace(tiny_record.settings, busy=2)))
    assert "beside 2 busy processes" in text


def test_signal_is_shown_by_width() -> None:
    point = SignalPoint(
        width=512,
        slots=64,
        rows=64,
        input_bits=22,
        result_bits=12,
        measured_db=46.13,
        predicted_db=46.02,
        largest_slot_db=47.3,
        error_ratio=0.998,
    )
    text = shown(SignalSeries(commit="c", versions={}, device="cpu", parameters={}, points=(point,)))
    assert "46.1 dB" in text and "46.0 dB" in text and "47.3 dB" in text and "0.998" in text and "22 / 12" in text


def test_milliseconds_have_three_digits() -> None:
    assert [report.milliseconds(s) for s in (0.00004567, 0.0123, 0.1234, 12.3456)] == [
        "0.0457 ms",
        "12.3 ms",
        "123 ms",
        "12,346 ms",
    ]
