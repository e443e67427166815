"""A server under clients that come, go, break off and stall, for minutes: what it keeps.

    python -m bench soak [--minutes 30] [--clients 16] [--model tiny] [--out bench/results/soak.json]

Each client draws what it does next: some passes and a goodbye; to vanish in the middle of a message; to stop reading
a reply;
to send half a message and wait; a connection that says nothing; bytes that are no message. Each minute the server's
memory, threads and files are noted, with nobody there. It fails if one of them grew by more than a twentieth, and by more
than one thread or file, between the end of the first quarter and the end, or if the server counted an internal error.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from bench.record import Measurement, Record
from veil.bench import machine
from veil.bench.load_user import LoadTraffic, User
from veil.client.connection import Address, Connection
from veil.errors import QuotaExceeded, VeilError
from veil.network.frames import Frames
from veil.network.timeouts import Timeouts
from veil.wire import methods
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal, unseal

_GROWTH = 0.05
_QUIET_S = 14.0


class Client:
    """One client's life: what it does follows from its draw; its errors are counted, not raised."""

    def __init__(self, port: int, draw: random.Random) -> None:
        self._address = Address(target=f"127.0.0.1:{port}")
        self._draw = draw
        self.passes = self.broken = 0

    def live(self, until: float) -> None:
        """Sessions one after the other."""
        while time.monotonic() < until:
            try:
                self._session()
            except QuotaExceeded:
                time.sleep(0.2)
            except (VeilError, OSError, EOFError):
                self.broken += 1

    def _session(self) -> None:
        connection = Connection(self._address, Timeouts())
        try:
            (bundle,) = connection.describe()
            traffic = LoadTraffic.of(bundle.name, bundle.fingerprint, bundle.header, self._draw.choice((1, 1, 3, 20)), 2)
            request = pb.OpenRequest(protocol=methods.PROTOCOL, bundle=bundle.name, fingerprint=bundle.fingerprint)
            opened = connection.unary("Open", request, pb.OpenReply, 10.0)
            user = User(traffic, opened.session)
            frames = Frames(self._address.socket(opened.rows_port, 10.0), 1 << 24)
            try:
                frames.send(seal(pb.LaneHello(protocol=methods.PROTOCOL, session=opened.session, ticket=opened.rows_ticket)))
                unseal(frames.receive(), pb.EvaluateReply)
                for _ in range(self._draw.randrange(1, 12)):
                    if count := min(user.wants, 8):
                        numbers, parts = user.upload(count)
                        connection.upload("Prepare", parts, pb.PrepareReply, 30.0)
                        user.ready.extend(numbers)
                    self._one_pass(user, frames)
                self._leave(user, frames, opened.rows_port)
            finally:
                frames.close()
            if self._draw.random() < 0.7:
                connection.unary("Close", pb.CloseRequest(session=opened.session), pb.CloseReply, 10.0)
        finally:
            connection.close()

    def _one_pass(self, user: User, frames: Frames) -> None:
        while True:
            frames.send(user.request())
            data = frames.receive()
            if data is None:
                raise EOFError
            if user.reply(data):
                self.passes += 1
                return

    def _leave(self, user: User, frames: Frames, port: int) -> None:
        way = self._draw.randrange(6)
        if way and not user.can_begin:
            return
        if way == 1:  # vanishes in the middle of a message
            frames.connection.sendall(user.request()[:-3])
        elif way == 2:  # does not read the reply
            frames.send(user.request())
            time.sleep(self._draw.random())
        elif way == 3:  # half a message, then nothing for a while
            frames.connection.sendall(b"\x40\x00\x00\x00half")
            time.sleep(self._draw.random())
        elif way == 4:  # a connection that says nothing
            with socket.create_connection(("127.0.0.1", port), 5.0):
                time.sleep(self._draw.random())
        elif way == 5:  # no message at all
            frames.send(bytes(self._draw.randrange(256) for _ in range(40)))
            with suppress(OSError):
                frames.receive()


def state_of(process: int) -> dict[str, float]:
    """Resident bytes, threads and open files of a process."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":" in line)
    files = len(list(Path(f"/proc/{process}/fd").iterdir()))
    return {"resident": 1024.0 * int(fields["VmRSS"].split()[0]), "threads": float(fields["Threads"]), "files": float(files)}


def internal_errors(port: int) -> float:
    """How many calls and streams ended with an error that no client caused."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10.0) as reply:
        lines = reply.read().decode().splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith("veil_calls_total") and 'result="internal"' in line
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--out", type=Path, default=Path("bench/results/soak.json"))
    options = parser.parse_args()
    command = [
        sys.executable,
        "-m",
        "veil.bench.load_server",
        options.model,
        "cpu",
        str(64 * options.clients),
        "2",
        "1",
        "cut",
        "10",
    ]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None and server.stdout is not None
    ports = json.loads(server.stdout.readline())
    clients = [Client(ports["port"], random.Random(seed)) for seed in range(options.clients)]  # noqa: S311
    rounds = max(8, round(options.minutes))
    seconds, seen = 60 * options.minutes / rounds, []
    for number in range(rounds):
        until = time.monotonic() + seconds - _QUIET_S
        threads = [threading.Thread(target=client.live, args=(until,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(_QUIET_S)  # what was broken off is noticed, and sessions without a goodbye expire
        seen.append(state_of(server.pid))
        print(f"{number + 1}/{rounds}", seen[-1], sum(client.passes for client in clients), flush=True)
    errors = internal_errors(ports["metrics_port"])
    server.stdin.close()
    server.wait(60.0)
    parameters = {"minutes": options.minutes, "clients": options.clients, "model": options.model}
    record = Record(benchmark="soak", parameters=parameters, machine=machine.name())
    early, failed = rounds // 4, errors > 0
    for name, unit in (("resident", "MB"), ("threads", ""), ("files", "")):
        first, last = seen[early][name], seen[-1][name]
        most = first * (1 + _GROWTH) + 1
        failed |= last > most
        scale = 1e6 if unit else 1.0
        text = f"≤ {most / scale:.4g}"
        record.add(Measurement(name=f"{name}, at the end", value=last / scale, unit=unit, target=text))
    record.add(Measurement(name="passes", value=float(sum(client.passes for client in clients)), unit=""))
    record.add(Measurement(name="sessions that clients broke", value=float(sum(c.broken for c in clients)), unit=""))
    record.add(Measurement(name="errors that no client caused", value=errors, unit="", target="0"))
    record.write(options.out)
    record.show()
    if failed:
        raise SystemExit("the server kept something, or failed; see above")


if __name__ == "__main__":
    main()
