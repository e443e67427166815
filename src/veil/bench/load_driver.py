"""Some of the load generator's users in one process and one thread, as fast as replies come.

    python -m veil.bench.load_driver < PLAN.json

The first line of standard input is a `LoadPlan` as JSON. It prints ``warm`` when each user has had its first token, measures
from the next line of input for the plan's seconds, and prints its `Seen`.
"""

from __future__ import annotations

import heapq
import json
import random
import select
import selectors
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from veil.bench.load_user import LoadFailed, LoadTraffic, User
from veil.client.connection import Address, Connection
from veil.errors import VeilError
from veil.network.ready_frames import ReadyFrames
from veil.network.timeouts import Timeouts
from veil.wire import methods
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal, unseal

_UPLOADS = 8
_REACH_S = 600.0
_SETTLE_S = 0.5
_TIMEOUTS = Timeouts(prepare_s=_REACH_S, connect_s=30.0)


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """What a process does: ``clients`` users of ``rows`` rows a message and, beside them, ``prompts`` of ``prompt_rows``."""

    server: str
    token: str | None
    tls: bool | str
    allow_no_tls: bool
    bundle: str
    clients: int
    rows: int
    rtt_s: float
    seconds: float
    kept: int = 2
    prompts: int = 0
    prompt_rows: int = 0


@dataclass(kw_only=True)
class Seen:
    """Seconds of messages, passes and first passes of the clients, passes of the prompts, and how long it was measured."""

    message_s: list[float] = field(default_factory=list)
    pass_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    prompt_s: list[float] = field(default_factory=list)
    starved_s: float = 0.0
    """Seconds that users waited for rows to be prepared."""

    measured_s: float = 0.0
    cpu_s: float = 0.0
    bundle: str = ""
    groups: int = 0
    messages_a_pass: int = 1


class _Seat:
    """A user with its connection and its times."""

    def __init__(self, user: User, frames: ReadyFrames, prompt: bool, began: float) -> None:
        self.user, self.frames, self.prompt, self.began = user, frames, prompt, began
        self.sent = self.pass_began = began
        self.passes = 0
        self.uploading: Future[list[int]] | None = None
        self.starved: float | None = None
        self.held = True


class Driver:
    """Runs a plan; ``begin_measuring`` is polled, and tells when everybody everywhere is warm."""

    def __init__(self, plan: LoadPlan) -> None:
        tls = Path(plan.tls) if isinstance(plan.tls, str) else plan.tls
        address = Address(target=plan.server, token=plan.token, tls=tls, allow_no_tls=plan.allow_no_tls)
        self._plan = plan
        self._connection = Connection(address, _TIMEOUTS)
        self._traffic = self._describe(plan.rows)
        self._pool = ThreadPoolExecutor(_UPLOADS, thread_name_prefix="veil-load")
        self._selector = selectors.DefaultSelector()
        self._later: list[tuple[float, int, _Seat]] = []
        self._count = 0
        self._measuring = False
        traffic = self._traffic
        self.seen = Seen(bundle=traffic.name, groups=len(traffic.manifest.groups), messages_a_pass=len(traffic.turns))

    def run(self, warm: Callable[[], object], begin: Callable[[], bool]) -> Seen:
        """All of it. ``warm`` is called once when each user has had its first token, then ``begin`` until it is true."""
        seats = [self._seat(self._traffic, False) for _ in range(self._plan.clients)]
        if self._plan.prompts:
            traffic = self._describe(self._plan.prompt_rows)
            seats += [self._seat(traffic, True) for _ in range(self._plan.prompts)]
        while not all(seat.passes and seat.uploading is None for seat in seats):
            self._step(seats, time.perf_counter())
        warm()
        while not begin():
            self._step(seats, time.perf_counter())
        self._let_go(seats)
        self._run_for(seats, _SETTLE_S)
        self._measuring, start, cpu = True, time.perf_counter(), time.process_time()
        self._run_for(seats, self._plan.seconds)
        self.seen.measured_s, self.seen.cpu_s = time.perf_counter() - start, time.process_time() - cpu
        self._close(seats)
        return self.seen

    def _let_go(self, seats: list[_Seat]) -> None:
        """After their first passes they waited for each other; they do not go on in step."""
        now = time.perf_counter()
        for seat in seats:
            seat.held = False
            self._after(now + random.uniform(0.0, _SETTLE_S / 2), seat)  # noqa: S311

    def _run_for(self, seats: list[_Seat], seconds: float) -> None:
        end = time.perf_counter() + seconds
        while (now := time.perf_counter()) < end:
            self._step(seats, now)
        for seat in seats:
            if self._measuring and seat.starved is not None:
                self.seen.starved_s += end - max(seat.starved, end - seconds)

    def _after(self, when: float, seat: _Seat) -> None:
        self._count += 1
        heapq.heappush(self._later, (when, self._count, seat))

    def _close(self, seats: list[_Seat]) -> None:
        self._pool.shutdown(wait=True)
        for seat in seats:
            seat.frames.close()
            self._connection.unary("Close", pb.CloseRequest(session=seat.user.session), pb.CloseReply, 10.0)
        self._connection.close()
        self._selector.close()

    def _describe(self, rows: int) -> LoadTraffic:
        for bundle in self._connection.describe():
            if not self._plan.bundle or bundle.name == self._plan.bundle:
                return LoadTraffic.of(bundle.name, bundle.fingerprint, bundle.header, rows, self._plan.kept)
        raise LoadFailed(f"the server has no bundle named {self._plan.bundle!r}")

    def _seat(self, traffic: LoadTraffic, prompt: bool) -> _Seat:
        began = time.perf_counter()
        request = pb.OpenRequest(protocol=methods.PROTOCOL, bundle=traffic.name, fingerprint=traffic.fingerprint)
        reply = self._connection.unary("Open", request, pb.OpenReply, 30.0)
        if not reply.rows_port:
            raise LoadFailed("the server has no row lane; start it with --rows-port")
        frames = ReadyFrames(self._connection.address.socket(reply.rows_port, 30.0), 1 << 30)
        frames.connection.setblocking(True)
        hello = pb.LaneHello(protocol=methods.PROTOCOL, session=reply.session, ticket=reply.rows_ticket)
        frames.send(seal(hello))
        answer = unseal(frames.receive(), pb.EvaluateReply)
        if answer.error:
            raise LoadFailed(f"the server refused a row lane connection: {answer.details}")
        frames.connection.setblocking(False)
        seat = _Seat(User(traffic, reply.session), frames, prompt, began)
        self._selector.register(frames.connection, selectors.EVENT_READ, seat)
        self._refill(seat)
        seat.starved = began
        return seat

    def _step(self, seats: list[_Seat], now: float) -> None:
        """Send what is due, take what came."""
        for seat in seats:
            if seat.uploading is not None and seat.uploading.done():
                seat.user.ready.extend(seat.uploading.result())
                seat.uploading = None
                self._refill(seat)
            if seat.starved is not None and seat.user.can_begin:
                self.seen.starved_s += now - seat.starved if self._measuring else 0.0
                seat.starved = None
                self._send(seat, now)
        while self._later and self._later[0][0] <= now:
            self._send(heapq.heappop(self._later)[2], now)
        wait = 0.002 if not self._later else min(0.002, max(0.0, self._later[0][0] - now))
        for key, _ in self._selector.select(wait):
            self._take(key.data)

    def _send(self, seat: _Seat, now: float) -> None:
        if not seat.user.can_begin:
            seat.starved = now
            self._refill(seat)
            return
        if seat.user.turn == 0:
            seat.pass_began = now
        seat.sent = now
        if not seat.frames.send(seat.user.request()):
            self._flush(seat)

    def _flush(self, seat: _Seat) -> None:
        """A large message that the socket does not take at once: nothing else of this user can go meanwhile."""
        while not seat.frames.flush():
            select.select([], [seat.frames.connection], [], 1.0)

    def _take(self, seat: _Seat) -> None:
        while (data := seat.frames.receive()) is not None:
            ended = seat.user.reply(data)
            now = time.perf_counter() + self._plan.rtt_s
            if self._measuring and not seat.prompt:
                self.seen.message_s.append(now - seat.sent)
            if ended:
                self._ended(seat, now)
            if seat.held and ended:
                continue
            if self._plan.rtt_s:
                self._after(now, seat)
            else:
                self._send(seat, now)

    def _ended(self, seat: _Seat, now: float) -> None:
        seat.passes += 1
        if seat.passes == 1 and not seat.prompt:
            self.seen.first_s.append(now - seat.began)
        elif self._measuring:
            (self.seen.prompt_s if seat.prompt else self.seen.pass_s).append(now - seat.pass_began)
        self._refill(seat)

    def _refill(self, seat: _Seat) -> None:
        """Upload what the user wants, in a thread of its own, one upload at a time."""
        count = seat.user.wants
        if seat.uploading is None and count:
            count = min(count, 8)
            numbers, parts = seat.user.upload(count)
            seat.uploading = self._pool.submit(self._upload, numbers, parts)

    def _upload(self, numbers: list[int], parts: list[bytes]) -> list[int]:
        self._connection.upload("Prepare", parts, pb.PrepareReply, _REACH_S)
        return numbers


def main() -> None:
    """The program above; the last line it prints is a JSON object with ``error`` or what it saw."""
    plan = LoadPlan(**json.loads(sys.stdin.readline()))

    def begin() -> bool:
        return bool(select.select([sys.stdin], [], [], 0)[0])

    try:
        seen = Driver(plan).run(lambda: print("warm", flush=True), begin)
        answer: dict[str, object] = asdict(seen)
    except (VeilError, OSError, EOFError, ValueError) as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
