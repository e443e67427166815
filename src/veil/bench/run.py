"""One run of `veil bench`: plaintext, encrypted and the peer, one after the other, into one `Record`."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from veil.bench import busy, limits, machine, peer, subjects
from veil.bench.generation import generate, prefill, random_prompt
from veil.bench.phases import PassCounts, PhaseMeter
from veil.bench.record import (
    BytesPerToken,
    Machine,
    Memory,
    Peer,
    Ratio,
    Record,
    RunSettings,
    Timing,
    TokenSeconds,
)
from veil.bench.sides import MeasuredSides, opened
from veil.bench.subjects import Loaded
from veil.crypto.hint import share_bytes
from veil.kernels.backend import kernels_for
from veil.params import Params
from veil.progress import Progress

PROMPTS = (64, 512)


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What to measure.

    The first of ``prompts`` (rows of each) is that of the generations too. ``peer`` needs its environment, or
    ``install_peer``. ``busy`` processes run beside it. ``params`` are the default set if None.
    """

    model: str = "smollm2"
    mode: str = "execute"
    device: str = "cpu"
    prompts: Sequence[int] = PROMPTS
    new_tokens: int = 64
    repeats: int = 3
    plaintext: bool = False
    peer: bool = False
    install_peer: bool = False
    fuse_norms: str = "off"
    busy: int = 0
    params: Params | None = None


@dataclass
class Plain:
    """Seconds of the float32 model: each token after the first, and a pass over each prompt, a row."""

    tokens_s: list[float] = field(default_factory=list)
    prompt_rows_s: dict[int, float] = field(default_factory=dict)


def measure(request: RunRequest, progress: Progress, loaded: Loaded | None = None) -> Record:
    """Measure one model (``loaded``, or the one that the request names).

    Raises `ValueError` for rows that the model cannot take, `DeviceUnavailable`, `PeerUnavailable`, `ModelSourceError`.
    """
    device = kernels_for(request.device).name
    python = peer.require(install=request.install_peer, progress=progress) if request.peer else None
    loaded = loaded or subjects.load(request.model, progress)
    _check_rows(request, loaded)
    if device == "cuda" and request.mode == "execute":
        loaded.model.to("cuda")
    progress("memory bandwidth and multiply-add peak", 0, 1)
    this = machine.describe(device)
    shapes = subjects.layer_shapes(loaded.model)
    with busy.beside(request.busy):
        plain = _plaintext(loaded, request, progress) if request.plaintext else None
        machine.reset_high_water()
        with opened(loaded, request.mode, device, progress, request.params, request.fuse_norms) as sides:
            part = _encrypted(sides, loaded, request, this, progress)
    gc.collect()
    part = _against(part, machine.better(this, machine.describe(device)))
    other = peer.measure(shapes, python, progress) if python else None
    return _with_comparisons(part, plain, other)


def _check_rows(request: RunRequest, loaded: Loaded) -> None:
    rows = max(request.prompts[0] + request.new_tokens + 1, *request.prompts)
    if loaded.most_rows is not None and rows > loaded.most_rows:
        raise ValueError(
            f"prompts of {', '.join(map(str, request.prompts))} rows and {request.new_tokens} new tokens exceed the model's "
            f"{loaded.most_rows} positions; lower --prompt-rows or --new-tokens"
        )


def _plaintext(loaded: Loaded, request: RunRequest, progress: Progress) -> Plain:
    found, prompt, repeats = Plain(), random_prompt(loaded.model, request.prompts[0]), request.repeats
    for repeat in range(1 + repeats):
        progress("plaintext float32 generation", repeat, 1 + repeats)
        times = generate(loaded.model, prompt, request.new_tokens)
        found.tokens_s += times.tokens_s if repeat else ()
    for rows in request.prompts:
        ids, seconds = random_prompt(loaded.model, rows), []
        for repeat in range(1 + repeats):
            progress(f"plaintext float32 prompt of {rows} rows", repeat, 1 + repeats)
            seconds.append(prefill(loaded.model, ids))
        found.prompt_rows_s[rows] = Timing.of(seconds[1:]).median_s / rows
    progress("plaintext float32", 1, 1)
    return found


def _encrypted(sides: MeasuredSides, loaded: Loaded, request: RunRequest, this: Machine, progress: Progress) -> Record:
    """The record without plaintext and peer."""
    hybrid = sides.hybrid
    params, manifest = hybrid.params, hybrid.manifest
    subject = subjects.describe(loaded, manifest)
    building_bytes = machine.resident_peak_bytes()
    meter = PhaseMeter(sides, request.prompts[0], request.new_tokens)
    machine.reset_high_water()
    samples = meter.generations(request.repeats, progress)
    memory = _memory(sides, request, subject.remote_weights, building_bytes)
    online, offline = Timing.of(samples.online), Timing.of(samples.offline)
    prompts = tuple(meter.prompt_of(rows, request.repeats, offline.median_s, progress) for rows in request.prompts)
    sizes = _bytes(meter.counted(), params.T, manifest.total_inputs + manifest.total_slots)
    token = TokenSeconds(total=online.median_s + offline.median_s, offline=offline.median_s, online=online.median_s)
    below = limits.floor(params, manifest, subject, this)
    return Record(
        commit=machine.commit(),
        versions=machine.versions(),
        machine=this,
        settings=RunSettings(
            mode=request.mode,
            device=sides.device,
            prompt_rows=request.prompts[0],
            new_tokens=request.new_tokens,
            repeats=request.repeats,
            threads=torch.get_num_threads(),
            batch_rows=params.T,
            fuse_norms=request.fuse_norms,
            busy=request.busy,
        ),
        parameters={**params.spec.to_dict(), "security_bits": params.security_bits},
        model=subject,
        token_s=token,
        ratio=Ratio(floor=token.total / below.seconds, clear_bytes=sizes.total / sizes.clear_float32),
        bytes_per_token=sizes,
        phases=samples.phases(),
        token_spread={"online": online, "offline": offline},
        prompts=prompts,
        limits=limits.limits(params, manifest, subject, this, samples),
        floor=below,
        memory=memory,
    )


def _against(record: Record, better: Machine) -> Record:
    """The record with the machine's better figures, measured before and after."""
    seconds = record.floor.seconds * record.machine.read_bytes_per_s / better.read_bytes_per_s
    below, ratio = replace(record.floor, seconds=seconds), replace(record.ratio, floor=record.token_s.total / seconds)
    return replace(record, machine=better, floor=below, ratio=ratio)


def _with_comparisons(record: Record, plain: Plain | None, other: Peer | None) -> Record:
    token, ratio, spread = record.token_s, record.ratio, dict(record.token_spread)
    prompts, sizes, memory = record.prompts, record.bytes_per_token, record.memory
    if plain is not None:
        spread["plaintext"] = Timing.of(plain.tokens_s)
        clear = spread["plaintext"].median_s
        token = replace(token, plaintext=clear)
        ratio = replace(
            ratio,
            plaintext_total=token.total / clear,
            plaintext_offline=token.offline / clear,
            plaintext_online=token.online / clear,
        )
        rows_s = plain.prompt_rows_s
        prompts = tuple(replace(p, plaintext_s=rows_s[p.rows], ratio=p.row_s / rows_s[p.rows]) for p in prompts)
        memory = replace(memory, plaintext_bytes=4 * record.model.parameters)
    if other is not None:
        token = replace(token, peer=other.token_s)
        ratio = replace(ratio, peer=other.token_s / token.total)
        sizes = replace(sizes, peer=other.bytes_per_token)
    return replace(
        record,
        token_s=token, ratio=ratio, token_spread=spread, prompts=prompts, bytes_per_token=sizes, memory=memory, peer=other,
    )  # fmt: skip


def _bytes(counted: PassCounts, batch_rows: int, values: int) -> BytesPerToken:
    """As the session counted them: a whole batch, over its rows, and a forward pass of one row."""
    offline, online = counted
    up_offline, down_offline = offline.bytes_up_offline / batch_rows, offline.bytes_down_offline / batch_rows
    return BytesPerToken(
        total=float(up_offline + down_offline + online.bytes_up_online + online.bytes_down_online),
        up_offline=up_offline,
        down_offline=down_offline,
        up_online=float(online.bytes_up_online),
        down_online=float(online.bytes_down_online),
        clear_float32=4.0 * values,
    )


def _memory(sides: MeasuredSides, request: RunRequest, weights: int, building_bytes: int) -> Memory:
    """The server's arrays are its hint, its weights and the shares of the batches that a generation holds."""
    hybrid = sides.hybrid
    params, segments = hybrid.params, hybrid.manifest.segments
    full, body = -(-(1 + request.new_tokens) // params.T), -(-(request.prompts[0] - 1) // params.T)
    held = {name: full + (body if name == "body" else 0) for name in segments}
    shares = sum(held[name] * share_bytes(params, slots) for name, slots in segments.items())
    arrays = hybrid.hint_bytes + weights + shares
    if sides.on_gpu:
        here = torch.cuda.max_memory_allocated()
        return Memory(
            separate_processes=False,
            server_bytes=arrays,
            client_bytes=max(0, here - arrays),
            server_arrays_bytes=arrays,
            highest_bytes=here,
        )
    here = machine.resident_peak_bytes()
    server = sides.server.memory_bytes if sides.server else arrays
    return Memory(
        separate_processes=sides.server is not None,
        server_bytes=server,
        client_bytes=here if sides.server else max(0, here - arrays),
        server_arrays_bytes=arrays,
        highest_bytes=max(machine.high_water_bytes(), building_bytes, here),
    )
