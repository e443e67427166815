"""How close each step comes to what bounds it: memory bandwidth, the multiply-add peak, or nothing but its time."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from veil.bench.phases import Parts, Samples
from veil.bench.record import Floor, Limit, Machine, Subject, Timing
from veil.bundle.manifest import Manifest
from veil.crypto.hint import hint_bytes
from veil.params import Params

WORD = 4

BANDWIDTH = "read bandwidth"
PEAK = "multiply-add peak"


def batch_multiply_adds(params: Params, manifest: Manifest) -> int:
    """Multiply-adds of a batch's shares h, with the head: ``terms`` for each point of both primes of every block."""
    return sum(params.blocks(slots) for slots in manifest.segments.values()) * params.terms * 2 * params.N


def floor(params: Params, manifest: Manifest, subject: Subject, machine: Machine) -> Floor:
    """What must be read for one token, its row one of a whole batch, and the seconds that takes at full bandwidth.

    Weights once; a row's share of G, and of the client's public tables (a' and the inner polynomials), which are read once a
    batch; and the row itself: pads, h and μ.
    """
    elements = sum(params.elements(width) for width in manifest.widths)
    hint = hint_bytes(params, list(manifest.segments.values())) / params.T
    public = WORD * (manifest.total_slots * params.T + elements * params.n) / params.T
    rows = WORD * (elements * params.r + 2 * manifest.total_slots)
    total = subject.remote_weights + hint + public + rows
    return Floor(
        weights_bytes=subject.remote_weights,
        hint_bytes=hint,
        public_bytes=public,
        rows_bytes=rows,
        seconds=total / machine.read_bytes_per_s,
    )


def limits(params: Params, manifest: Manifest, subject: Subject, machine: Machine, samples: Samples) -> tuple[Limit, ...]:
    """The steps of an offline row and of a token.

    Shares of bandwidth are of what the machine gave during the generations, not of the best moment of the run.
    """
    if "whole pass" in samples.online_parts[0]:
        rows, whole = (
            _of(parts, name) for parts, name in ((samples.offline_parts, "rows"), (samples.online_parts, "whole pass"))
        )
        read = subject.remote_weights / whole.median_s / machine.read_bytes_per_s
        return (
            Limit(name="offline rows, both sides, a row", timing=rows, bound="time"),
            Limit(name="a token's whole pass, against its int8 weights", timing=whole, bound=BANDWIDTH, share=read),
        )
    given = machine.read_bytes_per_s if machine.accelerator else median(samples.bandwidths)
    server, product = _of(samples.offline_parts, "rows, server"), _of(samples.online_parts, "product")
    batch_s = server.median_s * params.T
    read = hint_bytes(params, list(manifest.segments.values())) / batch_s / given
    found = [Limit(name="offline rows, server: G read once a batch", timing=server, bound=BANDWIDTH, share=read)]
    if machine.multiply_adds_per_s:
        share = batch_multiply_adds(params, manifest) / batch_s / machine.multiply_adds_per_s
        found.append(Limit(name="offline rows, server: multiply-adds", timing=server, bound=PEAK, share=share))
    client = _of(samples.offline_parts, "rows, client")
    cipher = Timing.of([part["encrypt"] + part["decrypt"] for part in samples.online_parts])
    share = subject.remote_weights / product.median_s / given
    return (
        *found,
        Limit(name="offline rows, client", timing=client, bound="time"),
        Limit(name="all online products of one row", timing=product, bound=BANDWIDTH, share=share),
        Limit(name="client's encryption and decryption of a token", timing=cipher, bound="time"),
    )


def _of(parts: Sequence[Parts], name: str) -> Timing:
    return Timing.of([part[name] for part in parts])
