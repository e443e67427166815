"""Every decoder of bytes that another party chose, as a function that fails for anything but the documented errors.

Used by ``test_decoders.py`` (Hypothesis, in `make test`) and ``run.py`` (atheris, as long as one likes).
"""

from __future__ import annotations

import json
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from veil.bundle import header_file
from veil.bundle.fields import Header
from veil.bundle.fingerprint import fingerprint_of
from veil.bundle.manifest import Group, Layer, Manifest
from veil.bundle.server_half import ServerModel
from veil.client.connection import Address, offered_bundle
from veil.commands.pull import safe_path
from veil.errors import VeilError
from veil.kernels.backend import kernels_for
from veil.kernels.ring import ring_of
from veil.network.frames import Frames
from veil.network.tokens import Tokens
from veil.params import Params, packed_bytes
from veil.seed import PublicSeed
from veil.server.admission import Admission
from veil.server.engine import Engine
from veil.server.hosted import HostedBundle
from veil.server.metrics import Metrics
from veil.server.row_loop import RowLoop
from veil.server.rows import RowAnswers
from veil.server.scheduler import PreparationWorker
from veil.server.service import Service, Shared
from veil.server.store import Limits, SessionStore
from veil.wire import codec, failures, methods
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal, unseal
from veil.wire.messages import rows_of

PARAMS = Params.insecure_tiny()
KERNELS = kernels_for("cpu")
LAYER = Layer("a", "linear", 70, 9, 8, False)
MANIFEST = Manifest(
    (
        Group((LAYER,), "body"),
        Group((Layer("b", "linear", 9, 12, 8, False),), "head", input_bits=23, result_bits=15),
    )
)
MEMORY = 1 << 20

refusals: deque[VeilError] = deque(maxlen=8)
"""The latest errors that were right answers."""

KINDS: tuple[type, ...] = (
    pb.DescribeRequest,
    pb.DescribeReply,
    pb.OpenRequest,
    pb.OpenReply,
    pb.PrepareRequest,
    pb.PrepareReply,
    pb.EvaluateRequest,
    pb.EvaluateReply,
    pb.LaneHello,
    pb.CloseRequest,
    pb.CloseReply,
    pb.FetchRequest,
    pb.FetchReply,
)


@lru_cache(maxsize=1)
def server() -> Service:
    """A server's calls, no network, over a model of two small groups."""
    draw = np.random.default_rng(5)
    weights = tuple(draw.integers(-127, 128, (g.rows, g.width), dtype=np.int8) for g in MANIFEST.groups)
    store = SessionStore(Limits(memory_bytes=MEMORY, max_batches_per_session=6))
    model = ServerModel(PARAMS, PublicSeed(bytes(32)), MANIFEST, weights)
    engine = Engine.build(model, KERNELS)
    size = methods.largest_message([(PARAMS, MANIFEST)])
    admission = Admission(store)
    loop = RowLoop(threads=1)
    loop.start()
    shared = Shared(
        {"m": HostedBundle(engine, "0" * 64)},
        admission,
        PreparationWorker(admission),
        loop,
        Metrics(),
        None,
        size,
        5.0,
        8,
    )
    return Service(shared)


def new_session() -> str:
    """A session of the server; sessions of earlier inputs are closed."""
    shared = server().shared
    for session in list(shared.store.sessions.values()):
        shared.store.close(session)
    return shared.store.open("", shared.bundles["m"].engine).name


def pieces(data: bytes) -> Iterator[bytes]:
    """Cut at lengths that the data itself gives, two bytes each."""
    at = 0
    while at + 2 <= len(data):
        length = int.from_bytes(data[at : at + 2], "little")
        yield data[at + 2 : at + 2 + length]
        at += 2 + length


def reseal(body: bytes, kind: Any) -> bytes:
    """Give the bytes a right checksum, so that what lies behind it is reached, where they parse at all."""
    message = kind()
    try:
        message.ParseFromString(body)
    except Exception:
        return body
    message.check = 0
    message.ClearField("check")
    return seal(message)


def envelope(data: bytes) -> None:
    """Any bytes as each kind of message."""
    for kind in KINDS:
        unless_refused(partial(unseal, data, kind))
        unless_refused(lambda: unseal(reseal(data, kind), kind))  # noqa: B023  called at once


def batch(data: bytes) -> None:
    """A packed batch: residues in range, or an error."""

    def decode() -> None:
        points = KERNELS.decode_batches(np.frombuffer(data, dtype=np.uint8)[None], ring_of(PARAMS))
        for i, prime in enumerate(PARAMS.outer_primes):
            assert (points[:, :, i] < prime).all()

    unless_refused(decode)


def spans(data: bytes) -> None:
    """Any whole numbers as spans of rows."""
    numbers = np.frombuffer(data[: len(data) // 8 * 8], dtype="<u8").tolist()
    unless_refused(lambda: codec.flat_spans(codec.spans_from(numbers)))


def rows(data: bytes) -> None:
    """Packed rows of any length."""
    for count, width, bits in ((0, 70, 24), (1, 70, 24), (2, 9, 18), (1, 1, 1)):
        unless_refused(partial(codec.rows_from, data, count, width, bits))


def upload(data: bytes) -> None:
    """A stream of upload messages of one session: at most what was promised is held, and the server goes on."""
    name = new_session()
    store = server().shared.store

    def named(piece: bytes) -> bytes:
        message = pb.PrepareRequest()
        try:
            message.ParseFromString(piece)
        except Exception:
            return piece
        if message.WhichOneof("part") == "header":
            message.header.session = name
        if message.WhichOneof("part") == "batch" and not message.batch.data:
            message.batch.data = bytes(PARAMS.batch_bytes)
        message.ClearField("check")
        return seal(message)

    unless_refused(lambda: server().prepare(map(named, pieces(data)), ""))
    assert 0 <= store.used_bytes <= MEMORY


def evaluate(data: bytes) -> None:
    """A stream of row messages of a session with two batches: each answered, or one error that ends the stream."""
    name, shared = new_session(), server().shared
    parts = [pb.PrepareRequest(header=pb.PrepareHeader(session=name, batches=2, segments=["body"]))]
    zeros = bytes(PARAMS.batch_bytes)
    parts += [pb.PrepareRequest(batch=pb.PrepareBatch(number=number, data=zeros)) for number in range(2)]
    server().prepare(iter([seal(part) for part in parts]), "")
    stream = RowAnswers(shared.admission, shared.loop, shared.metrics, "", lambda: None)

    def run() -> None:
        for piece in pieces(data):
            message = pb.EvaluateRequest()
            try:
                message.ParseFromString(piece)
            except Exception:
                stream.answer(piece)
                continue
            message.session = message.session or name
            message.ClearField("check")
            reply = unseal(stream.answer(seal(message)), pb.EvaluateReply)
            group = MANIFEST.groups[message.group]
            rows = rows_of(codec.spans_from(message.spans))
            assert len(reply.rows) == rows * packed_bytes(message.slots or group.rows, group.result_bits)

    unless_refused(run)


def calls(data: bytes) -> None:
    """The single calls, as any bytes that parse."""
    service = server()
    unless_refused(lambda: service.open(unseal(reseal(data, pb.OpenRequest), pb.OpenRequest), ""))
    unless_refused(lambda: service.close(unseal(reseal(data, pb.CloseRequest), pb.CloseRequest), ""))
    unless_refused(lambda: list(service.fetch(unseal(reseal(data, pb.FetchRequest), pb.FetchRequest), "")))


def frames(data: bytes) -> None:
    """Any bytes on the row lane: messages within the limit, the end, or an error."""
    near, far = socket.socketpair()

    def send() -> None:
        far.sendall(data)
        far.shutdown(socket.SHUT_WR)

    with near, far:
        near.settimeout(5)
        writer = threading.Thread(target=send)
        writer.start()
        reader = Frames(near, 4096)
        try:
            while (message := reader.receive()) is not None:
                assert len(message) <= 4096
        except (VeilError, ConnectionResetError):
            while near.recv(65536):
                pass
        writer.join()
        reader.close()


def header(data: bytes) -> None:
    """A bundle's header file, from the other party's half."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / header_file.HEADER).write_bytes(data)
        for half in ("client", "server"):
            unless_refused(lambda: header_file.parse_common(header_file.read_header(Path(name), half)))  # noqa: B023
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(value, dict):
        unless_refused(lambda: header_file.parse_common(cast(Header, value)))
    unless_refused(lambda: Manifest.from_json(value))


def description(data: bytes) -> None:
    """What a server says that it serves, as a client reads it."""

    def read() -> None:
        for bundle in unseal(reseal(data, pb.DescribeReply), pb.DescribeReply).bundles:
            served = offered_bundle(bundle)
            assert served.name.isprintable() and served.fingerprint.isprintable() and len(served.digest) == 64

    unless_refused(read)


def path(data: bytes) -> None:
    """A path that a server offers: below the folder, or refused."""

    def check() -> None:
        made = safe_path(data.decode("utf-8", "surrogateescape"))
        assert not made.is_absolute() and ".." not in made.parts

    unless_refused(check)


def status(data: bytes) -> None:
    """An error that the other side names."""
    name, _, details = data.decode("utf-8", "replace").partition("\0")
    failure: Any = SimpleNamespace(
        details=lambda: details, code=lambda: None, trailing_metadata=lambda: ((failures.ERROR_KEY, name),)
    )
    for error in (failures.error_from(failure), failures.named(name, details)):
        assert isinstance(error, VeilError)
        assert str(error).isprintable() and len(str(error)) < 500


def token_file(data: bytes) -> None:
    """A file of digests; an error does not repeat the line, which may be a token."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "tokens"
        file.write_bytes(data)
        try:
            Tokens.read(file)
        except ValueError as error:
            assert "is not" in str(error) or "no token" in str(error) or isinstance(error, UnicodeDecodeError)  # noqa: PT017


def address(data: bytes) -> None:
    """HOST:PORT as a user may type it."""
    try:
        made = Address(target=data.decode("utf-8", "replace"))
    except ValueError:
        return
    assert 0 < int(made.target.rpartition(":")[2]) < 65536


def unless_refused(call: Callable[[], object]) -> None:
    """Documented errors are right answers; anything else is a finding."""
    try:
        call()
    except VeilError as error:
        assert len(str(error)) < 5000  # noqa: PT017
        refusals.append(error)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        envelope, batch, spans, rows, upload, evaluate, calls, frames, header, description, path, status, token_file,
        address,
    )
}  # fmt: skip


def escaped(name: str) -> list[bytes]:
    """Inputs of a target that once ended in another error than veil's."""
    deep = "[" * 60000
    described = [pb.DescribeReply(bundles=[pb.Bundle(name="m", header=text, digest="0" * 64)]) for text in (deep, "[]")]
    common = header_file.common_fields(PARAMS, PublicSeed(bytes(32)), MANIFEST)
    start = {"format": header_file.FORMAT_VERSION, "half": "client"}
    headers = [
        start | common | {"sha256": {}, "params": common["params"] | {"inner_sigma": 10**400}},
        start | common | {"sha256": [[1, "0"], ["config.json", "0"]]},
        start | common | {"sha256": {}, "manifest": [{"segment": "body", "layers": [asdict(LAYER) | {"name": []}]}]},
    ]
    return {
        "header": [deep.encode(), *(json.dumps(fields).encode() for fields in headers)],
        "description": [reply.SerializeToString() for reply in described],
    }.get(name, [])


def examples(name: str) -> list[bytes]:
    """Right inputs of a target, to start from."""

    def cut(*messages: Any) -> bytes:
        bodies = [message.SerializeToString() for message in messages]
        return b"".join(len(body).to_bytes(2, "little") + body for body in bodies)

    upload_header = pb.PrepareHeader(session="s", batches=1, segments=["body", "head"])
    described = pb.DescribeReply(protocol=methods.PROTOCOL, version="1")
    described.bundles.add(name="m", fingerprint="0" * 64, header="{}", digest="0" * 64)
    seed = PublicSeed(bytes(32))
    common = header_file.common_fields(PARAMS, seed, MANIFEST)
    whole = json.dumps({"format": header_file.FORMAT_VERSION, "half": "client", "sha256": {}, **common}).encode()
    return {
        "envelope": [seal(pb.EvaluateRequest(session="s", group=1, spans=[1, 0, 1], rows=b"rows")), seal(described)],
        "batch": [bytes(PARAMS.batch_bytes)],
        "spans": [np.arange(6, dtype="<u8").tobytes()],
        "rows": [bytes(210)],
        "upload": [
            cut(
                pb.PrepareRequest(header=upload_header),
                pb.PrepareRequest(batch=pb.PrepareBatch(number=1)),
            )
        ],
        "evaluate": [
            cut(
                pb.EvaluateRequest(sequence=1, group=0, spans=[0, 3, 1, 1, 0, 1], rows=bytes(420)),
                pb.EvaluateRequest(sequence=2, group=0, spans=[1, 1, 1], rows=bytes(210), release=[0], slots=4),
            )
        ],
        "calls": [
            pb.OpenRequest(
                protocol=methods.PROTOCOL, bundle="m", fingerprint=fingerprint_of(PARAMS, seed, MANIFEST)
            ).SerializeToString()
        ],
        "frames": [b"\x03\x00\x00\x00abc\x00\x00\x00\x00"],
        "header": [whole],
        "description": [described.SerializeToString()],
        "path": [b"a/b.json"],
        "status": [b"quota\0too many"],
        "token_file": [b"0" * 64 + b" # mine\n"],
        "address": [b"localhost:8471", b"[::1]:1"],
    }[name]
