"""What a network link costs, by formula; `bench/trips.py` measures it over links that hold bytes back.

A token makes one round trip for each group of remote layers, one after the other, so

    seconds = online + round trips · rtt + (bytes up + bytes down) / bandwidth

when its row was made offline. Making a batch of rows sends more bytes and waits for nothing.
"""

from __future__ import annotations

from veil.network.link import Link


def token_seconds(online_s: float, round_trips: float, nbytes: float, link: Link) -> float:
    """The formula: a token whose row is ready."""
    return online_s + round_trips * link.rtt_s + link.transfer_s(nbytes)
