"""One run of `veil bench`: plaintext, encrypted, links and the peer, one after the other, into one `Record`."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from veil.bench import limits, machine, peer, subjects
from veil.bench.generation import Times, generate, random_prompt
from veil.bench.link import Link, delayed, token_seconds
from veil.bench.phases import ROWS, Meter, Samples
from veil.bench.record import (
    FORMAT,
    BytesPerToken,
    LinkSample,
    Machine,
    Memory,
    Peer,
    Prompt,
    Ratio,
    Record,
    Settings,
    Timing,
    TokenSeconds,
)
from veil.bench.sides import Sides, opened
from veil.bench.subjects import Loaded
from veil.kernels.backend import kernels_for
from veil.params import Params
from veil.progress import Progress

LINKS = (
    Link(rtt_s=0.001, bytes_per_s=125e6),
    Link(rtt_s=0.005, bytes_per_s=125e6),
    Link(rtt_s=0.02, bytes_per_s=125e6),
    Link(rtt_s=0.005, bytes_per_s=12.5e6),
    Link(rtt_s=0.02, bytes_per_s=12.5e6),
)
"""Links whose delays are added in process: 1 Gbit/s and 100 Mbit/s."""

_LINK_TOKENS = 2


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure.

    ``peer`` needs its environment, or ``install_peer``. ``links`` may be empty. ``rows``, made and evaluated
    at once, grow from 1. ``params`` are the default set if None.
    """

    model: str = "smollm2"
    mode: str = "execute"
    device: str = "cpu"
    prompt_rows: int = 64
    new_tokens: int = 32
    repeats: int = 3
    plaintext: bool = False
    peer: bool = False
    install_peer: bool = False
    links: Sequence[Link] = LINKS
    rows: Sequence[int] = ROWS
    fold_norms: str = "off"
    params: Params | None = None


def measure(request: Request, progress: Progress, loaded: Loaded | None = None) -> Record:
    """Measure one model (``loaded``, or the one that the request names).

    Raises `ValueError` for rows that the model cannot take or folded norms on a card, `DeviceUnavailable`,
    `PeerUnavailable`, `ModelSourceError`.
    """
    device = kernels_for(request.device).name
    if device == "cuda" and request.mode == "execute" and request.fold_norms != "off":
        raise ValueError("folded norms have no kernels on a card; leave out --fold-norms, or use --mode remote")
    python = peer.require(install=request.install_peer, progress=progress) if request.peer else None
    loaded = loaded or subjects.load(request.model, progress)
    if device == "cuda" and request.mode == "execute":
        loaded.model.to("cuda")
    rows = request.prompt_rows + request.new_tokens + 1
    if loaded.most_rows is not None and rows > loaded.most_rows:
        raise ValueError(
            f"a prompt of {request.prompt_rows} rows and {request.new_tokens} new tokens exceed the model's "
            f"{loaded.most_rows} positions; lower --prompt-rows or --new-tokens"
        )
    progress("memory bandwidth and multiply-add peak", 0, 1)
    this = machine.describe(device)
    shapes = subjects.layer_shapes(loaded.model)
    plain = _plaintext(loaded, request, progress) if request.plaintext else []
    machine.reset_high_water()
    with opened(loaded, request.mode, device, progress, request.params, request.fold_norms) as sides:
        part = _encrypted(sides, loaded, request, this, progress)
    gc.collect()
    other = peer.measure(shapes, python, progress) if python else None
    return _with_comparisons(part, plain, other)


def _plaintext(loaded: Loaded, request: Request, progress: Progress) -> list[Times]:
    prompt, runs = random_prompt(loaded.model, request.prompt_rows), []
    for repeat in range(1 + request.repeats):
        progress("plaintext float32 generation", repeat, 1 + request.repeats)
        runs.append(generate(loaded.model, prompt, request.new_tokens))
    progress("plaintext float32 generation", 1 + request.repeats, 1 + request.repeats)
    return runs[1:]


def _encrypted(sides: Sides, loaded: Loaded, request: Request, this: Machine, progress: Progress) -> Record:
    """The record without plaintext and peer."""
    hybrid = sides.hybrid
    params, manifest = hybrid.params, hybrid.manifest
    subject = subjects.describe(loaded, manifest)
    building_bytes = machine.resident_peak_bytes()
    meter = Meter(sides, request.prompt_rows, request.new_tokens)
    machine.reset_high_water()
    samples = meter.generations(request.repeats, progress)
    memory = _memory(sides, request, subject.remote_weights, building_bytes)
    by_rows, passes = meter.by_rows(request.rows, request.repeats, progress)
    sizes = _bytes(sides, manifest.total_inputs + manifest.total_slots)
    links = () if sides.on_card else _links(sides, request.links, Timing.of(samples.online).median_s, sizes, progress)
    this = machine.better(this, machine.describe(sides.device))
    online, ahead = Timing.of(samples.online), Timing.of(samples.ahead)
    token = TokenSeconds(total=online.median_s + ahead.median_s, online=online.median_s)
    below = limits.floor(params, manifest, subject, this)
    return Record(
        format=FORMAT,
        commit=machine.commit(),
        versions=machine.versions(),
        machine=this,
        settings=Settings(
            mode=request.mode,
            device=sides.device,
            prompt_rows=request.prompt_rows,
            new_tokens=request.new_tokens,
            repeats=request.repeats,
            threads=torch.get_num_threads(),
            masks_at_once=params.masks_per_epoch,
            fold_norms=request.fold_norms,
        ),
        parameters=params.spec.to_dict() | {"security_bits": params.security_bits},
        model=subject,
        token_s=token,
        ratio=Ratio(floor=token.total / below.seconds),
        bytes_per_token=sizes,
        phases=samples.phases(),
        token_spread={"online": online, "ahead": ahead},
        prompt=_prompt(samples, request.prompt_rows, ahead.median_s),
        by_rows=by_rows,
        limits=limits.limits(params, manifest, subject, this, samples, passes),
        floor=below,
        memory=memory,
        link=links,
    )


def _with_comparisons(record: Record, plain: list[Times], other: Peer | None) -> Record:
    token, ratio, spread = record.token_s, record.ratio, dict(record.token_spread)
    prompt, sizes, memory = record.prompt, record.bytes_per_token, record.memory
    if plain:
        spread["plaintext"] = Timing.of([seconds for times in plain for seconds in times.tokens_s])
        clear = spread["plaintext"].median_s
        token = replace(token, plaintext=clear)
        ratio = replace(ratio, plaintext_total=token.total / clear, plaintext_online=token.online / clear)
        row_s = Timing.of([times.prompt_s for times in plain]).median_s / prompt.rows
        prompt = replace(prompt, plaintext_s=row_s)
        memory = replace(memory, plaintext_bytes=4 * record.model.parameters)
    if other is not None:
        token = replace(token, peer=other.token_s)
        ratio = replace(ratio, peer=other.token_s / token.total)
        sizes = replace(sizes, peer=other.bytes_per_token)
    return replace(
        record,
        token_s=token, ratio=ratio, token_spread=spread, prompt=prompt, bytes_per_token=sizes, memory=memory, peer=other,
    )  # fmt: skip


def _prompt(samples: Samples, rows: int, mask_s: float) -> Prompt:
    """All but the last row of a prompt have masks without the head."""
    body_s = Timing.of(samples.prompt_masks_s).median_s if samples.prompt_masks_s else mask_s
    prepare_s = (body_s * (rows - 1) + mask_s) / rows
    online_s = Timing.of(samples.prompt_s).median_s
    return Prompt(rows=rows, row_s=prepare_s + online_s, prepare_s=prepare_s, online_s=online_s)


def _bytes(sides: Sides, values: int) -> BytesPerToken:
    """Counted at the transport: a forward pass of one row, and the masks of one epoch."""
    hybrid, epoch = sides.hybrid, sides.hybrid.params.masks_per_epoch
    left = -hybrid.stats.masks % epoch
    hybrid.reserve(rows_full=hybrid.masks_ready.tokens + left)
    before = hybrid.stats.copy()
    hybrid.reserve(rows_full=hybrid.masks_ready.tokens + epoch)
    ahead = hybrid.stats - before
    before = hybrid.stats.copy()
    with torch.no_grad():
        hybrid.model(random_prompt(hybrid.model, 1), use_cache=False)
    online = hybrid.stats - before
    up_ahead, down_ahead = ahead.bytes_up_ahead / epoch, ahead.bytes_down_ahead / epoch
    return BytesPerToken(
        total=float(up_ahead + down_ahead + online.bytes_up_online + online.bytes_down_online),
        up_ahead=up_ahead,
        down_ahead=down_ahead,
        up_online=float(online.bytes_up_online),
        down_online=float(online.bytes_down_online),
        clear_float32=4.0 * values,
    )


def _memory(sides: Sides, request: Request, weights: int, building_bytes: int) -> Memory:
    hybrid = sides.hybrid
    masks = request.prompt_rows + request.new_tokens + 1
    arrays = hybrid.hint_bytes + weights + masks * 4 * hybrid.manifest.total_slots
    if sides.on_card:
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


def _links(
    sides: Sides, links: Sequence[Link], online_s: float, sizes: BytesPerToken, progress: Progress
) -> tuple[LinkSample, ...]:
    """Short generations with delays, beside the formula."""
    hybrid, found = sides.hybrid, []
    prompt = random_prompt(hybrid.model, 1)
    online_bytes = sizes.up_online + sizes.down_online
    for number, link in enumerate(links):
        progress("links with delays", number, len(links))
        short = 1 + _LINK_TOKENS - hybrid.masks_ready.tokens
        if short > 0:
            hybrid.reserve(rows_full=1 + _LINK_TOKENS)
        with sides.watch() as watch, delayed(sides.transport, link):
            times = generate(hybrid.model, prompt, _LINK_TOKENS)
            trips = watch.take()["round trip"].calls / (1 + _LINK_TOKENS)
        found.append(
            LinkSample(
                rtt_s=link.rtt_s,
                bytes_per_s=link.bytes_per_s,
                token_s=sum(times.tokens_s) / _LINK_TOKENS,
                formula_s=token_seconds(online_s, trips, online_bytes, link),
                round_trips=trips,
            )
        )
    return tuple(found)
