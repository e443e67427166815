"""What a message costs the server besides its product, in processor time: the serving loop with products that are ready.

    python -m bench messages llama-1b [--clients 1,4,12,64] [--passes 4]

Clients of `veil.bench.load_user` and the loop take turns in one thread, over loopback connections, so that nothing else is
counted; the clients are at the same group. Messages are received and answered together, and each by itself, as with TLS and
on other systems than Linux.
"""

from __future__ import annotations

import argparse
import hashlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from veil.bench.load_shapes import MODELS, manifest_of
from veil.bench.load_user import LoadTraffic, User
from veil.bundle.header_file import common_fields
from veil.bundle.server_half import ServerModel
from veil.crypto.hint import ServerHint
from veil.kernels.backend import kernels_for
from veil.network.frames import Frames
from veil.network.ready_frames import ReadyFrames
from veil.params import packed_bytes
from veil.seed import PublicSeed
from veil.server import row_io, store
from veil.server.admission import Admission
from veil.server.arrivals import Arrivals, room_for
from veil.server.engine import Claim, Engine
from veil.server.metrics import Metrics
from veil.server.row_loop import RowLoop
from veil.server.row_seat import Seat
from veil.server.rows import RowAnswers
from veil.server.stages import Stages
from veil.server.store import Limits, SessionStore

_BATCHES = 64
_BUFFER = 1 << 20


class Instant(Engine):
    """An engine whose results are zeros."""

    def product(self, claims: Sequence[Claim], *, serial: bool = False) -> NDArray[np.uint8]:
        """Zeros of the right shape, made once."""
        group, rows = self.model.manifest.groups[claims[0].group], sum(claim.count for claim in claims)
        key = claims[0].group, claims[0].slots, rows
        if key not in _ZEROS:
            _ZEROS[key] = np.zeros((rows, packed_bytes(claims[0].slots, group.result_bits)), np.uint8)
        return _ZEROS[key]

    def prefetch_after(self, group: int) -> Iterator[object]:
        """Nothing."""
        return iter(())


_ZEROS: dict[tuple[int, int, int], NDArray[np.uint8]] = {}


def instant(name: str) -> Instant:
    """An engine of a model's shapes; its weights take no memory, because nobody reads them."""
    shapes = MODELS[name]
    sizes = [*shapes.body, shapes.head]
    weights = tuple(np.zeros((rows, width), np.int8) for width, rows in sizes)
    model = ServerModel(shapes.params, PublicSeed(bytes(32)), manifest_of(shapes.params, sizes), weights)
    return Instant(model, cast(ServerHint, None), weights, kernels_for("cpu"))


@dataclass
class Client:
    """A user with its end of a connection and, to have rows, its session."""

    user: User
    frames: Frames
    fill: Callable[[], None]


class Counted(Stages):
    """How many messages were answered."""

    answers = 0

    def answered(self, seconds: tuple[float, float, float, float], messages: int, rows: int, computed_s: float) -> None:
        """See `Stages.answered`."""
        self.answers += messages
        super().answered(seconds, messages, rows, computed_s)


def clients_of(engine: Engine, loop: RowLoop, count: int) -> list[Client]:
    """Connected clients, whose messages the loop reads."""
    sessions, metrics = SessionStore(Limits()), Metrics()
    admission, model = Admission(sessions), engine.model
    traffic = LoadTraffic.of("", "", common_fields(model.params, model.seed, model.manifest), 1, _BATCHES)
    shares = {name: np.zeros((model.params.T, slots), np.uint32) for name, slots in model.manifest.segments.items()}
    made = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(count):
            session = sessions.open("", engine)
            user = User(traffic, session.name)
            mine = socket.create_connection(listener.getsockname())
            its, _ = listener.accept()
            for end in (mine, its):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            stream = RowAnswers(admission, loop, metrics, "", lambda: None)
            stream.adopt(session.name)
            loop.add(Seat(ReadyFrames(its, 1 << 30), stream, lambda *_: None))

            def fill(user: User = user, session: Any = session) -> None:
                if not user.ready:
                    numbers, _ = user.upload(_BATCHES)
                    sessions.reserve(session, numbers, 0)
                    sessions.keep(session, dict.fromkeys(numbers, shares), 0)
                    user.ready.extend(numbers)

            made.append(Client(user, Frames(mine, 1 << 30), fill))
    return made


def turn(loop: RowLoop, counted: Counted, clients: Sequence[Client]) -> float:
    """One message of each client, and its reply; the loop's seconds."""
    for client in clients:
        client.fill()
        client.frames.send(client.user.request())
    begun, end = time.thread_time(), counted.answers + len(clients)
    while counted.answers < end:
        pieces = loop.gather()
        if pieces:
            loop.serve(pieces)
    spent = time.thread_time() - begun
    for client in clients:
        client.user.reply(client.frames.receive() or b"")
    return spent


def message_s(engine: Engine, count: int, passes: int, together: bool) -> tuple[float, dict[str, float]]:
    """Seconds of a message with so many clients, and those of its parts that hold no interpreter."""
    groups, counted = engine.model.manifest.groups, Counted()
    room = room_for(max(packed_bytes(group.width, group.input_bits) for group in groups))
    loop = RowLoop(counted, threads=1, arrivals=Arrivals(count if together else 0, room))
    clients = clients_of(engine, loop, count)
    turns = len(clients[0].user.traffic.turns)
    for _ in range(turns):
        turn(loop, counted, clients)
    with timed() as parts:
        spent = sum(turn(loop, counted, clients) for _ in range(passes * turns))
    messages = passes * turns * count
    return spent / messages, {name: own / messages for name, own in parts.items()}


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Thread seconds of the calls without the interpreter while the block runs."""
    spent = {"receive": 0.0, "digest": 0.0, "reply": 0.0}

    def clocked(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            begun = time.thread_time()
            result = call(*arguments)
            spent[name] += time.thread_time() - begun
            return result

        return called

    digest = SimpleNamespace(sha256=clocked("digest", hashlib.sha256))
    with (
        mock.patch.object(row_io, "receive", clocked("receive", row_io.receive)),
        mock.patch.object(row_io, "reply", clocked("reply", row_io.reply)),
        mock.patch.object(store, "hashlib", digest),
    ):
        yield spent


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the microseconds of a message for each number of clients, together and each by itself, in turns."""
    parser = argparse.ArgumentParser(prog="python -m bench messages", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", choices=tuple(MODELS))
    parser.add_argument("--clients", default="1,4,12,64")
    parser.add_argument("--passes", type=int, default=4)
    given = parser.parse_args(arguments)
    engine = instant(given.model)
    print("clients  by itself  together  of which receive, digest, reply  (µs of processor time a message, least of three)")
    for count in map(int, given.clients.split(",")):
        runs = [[message_s(engine, count, given.passes, together) for together in (False, True)] for _ in range(3)]
        apart, joint = (min((run[place] for run in runs), key=lambda own: own[0]) for place in (0, 1))
        parts = ", ".join(f"{1e6 * own:.1f}" for own in joint[1].values())
        print(f"{count:7}  {1e6 * apart[0]:9.1f}  {1e6 * joint[0]:8.1f}  {parts}", flush=True)


if __name__ == "__main__":
    main()
