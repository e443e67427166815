"""How close each step comes to what bounds it: memory bandwidth, the multiply-add peak, or a time that was aimed at."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from veil.bench.phases import OnePass, Samples
from veil.bench.record import Floor, Limit, Machine, Subject, Timing
from veil.model.manifest import Manifest
from veil.params import Params

WORD = 4

BANDWIDTH = "read bandwidth"
PEAK = "multiply-add peak"


def hint_matrix_bytes(params: Params, manifest: Manifest) -> int:
    """Bytes of Ĥ: two primes' words for each of n coefficients of a slot, blocks filled up."""
    return _slots(params, manifest) * params.n * 2 * WORD


def floor(params: Params, manifest: Manifest, subject: Subject, machine: Machine) -> Floor:
    """What must be read for one token, masks made a whole epoch at once, and the seconds it takes at full bandwidth.

    Weights once; Ĥ once for all masks of an epoch; a set's digits; and a mask's ``A·s + e``, h and μ.
    """
    blocks = sum(params.blocks(slots) for slots in manifest.segments.values())
    hint = hint_matrix_bytes(params, manifest) / params.masks_per_epoch
    digits = (params.leaves - 1 + blocks * (params.fold - 1)) * 6 * params.N * WORD
    masks = (sum(params.inner_chunks(width) for width in manifest.widths) * params.n + 2 * manifest.total_slots) * WORD
    total = subject.remote_weights + hint + digits + masks
    return Floor(
        weights_bytes=subject.remote_weights,
        hint_bytes=hint,
        digits_bytes=digits,
        masks_bytes=masks,
        seconds=total / machine.read_bytes_per_s,
    )


def limits(
    params: Params,
    manifest: Manifest,
    subject: Subject,
    machine: Machine,
    samples: Samples,
    passes: Sequence[OnePass],
) -> tuple[Limit, ...]:
    """The steps of a mask and of a token.

    Shares of bandwidth are of what the machine gave just before and after each step, not of the best moment of the run.
    """
    hint_bytes, count = hint_matrix_bytes(params, manifest), params.masks_per_epoch
    many = Timing.of([part["hint product"] * count for part in samples.ahead_parts])
    adds = 2 * params.n * _slots(params, manifest) * count
    found = [
        Limit(
            name="Ĥ product for one mask",
            timing=Timing.of([one.seconds for one in passes]),
            bound=BANDWIDTH,
            share=median([hint_bytes / one.seconds / _given(one.bytes_per_s, machine) for one in passes]),
            goal="≥ 85 %",
        )
    ]
    if machine.multiply_adds_per_s:
        found.append(
            Limit(
                name=f"Ĥ product for {count} masks",
                timing=many,
                bound=PEAK,
                share=adds / many.median_s / machine.multiply_adds_per_s,
                goal="≥ 60 %",
            )
        )
    expansion = [part["expand"] + part["combine"] for part in samples.ahead_parts]
    found.append(
        Limit(name="expansion and combination of a mask", timing=Timing.of(expansion), bound="time", goal="≤ 12 ms")
    )
    made = Timing.of([part["client masks"] for part in samples.ahead_parts])
    found.append(Limit(name="client's half of a mask, ahead", timing=made, bound="time", goal="≤ 5 ms"))
    if "whole pass" in samples.online_parts[0]:
        whole = Timing.of([part["whole pass"] for part in samples.online_parts])
        read = subject.remote_weights / whole.median_s / machine.read_bytes_per_s
        return (
            *found,
            Limit(name="a token's whole pass, against its int8 weights", timing=whole, bound=BANDWIDTH, share=read),
        )
    online = Timing.of([part["online product"] for part in samples.online_parts])
    client = [part["client encrypt"] + part["client decrypt"] for part in samples.online_parts]
    call = [part["transport"] / subject.remote_layers for part in samples.online_parts]
    return (
        *found,
        Limit(
            name="all online products of one row",
            timing=online,
            bound=BANDWIDTH,
            share=subject.remote_weights / online.median_s / _given(median(samples.online_bandwidths), machine),
            goal="≥ 75 %",
        ),
        Limit(name="client's encryption and decryption of a token", timing=Timing.of(client), bound="time"),
        Limit(name="a remote layer's call beside its kernels", timing=Timing.of(call), bound="time", goal="≤ 0.1 ms"),
    )


def _given(bytes_per_s: float, machine: Machine) -> float:
    """The bandwidth at that moment; a card's does not change."""
    return machine.read_bytes_per_s if machine.accelerator else bytes_per_s


def _slots(params: Params, manifest: Manifest) -> int:
    return sum(params.blocks(slots) for slots in manifest.segments.values()) * params.N
