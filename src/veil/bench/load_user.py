"""One user of the load generator: a session, batches that wait, and requests for one group after another. No model, no keys.

Its uploads are valid and its rows uniform, as ciphertexts are; a server does the same work for them. What comes back is
checked for its sequence, checksum and length.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from veil.bundle.fields import Header
from veil.bundle.header_file import parse_common
from veil.bundle.manifest import Manifest
from veil.errors import VeilError, WireError
from veil.kernels import reference
from veil.params import Params, packed_bytes
from veil.wire import codec, failures, methods
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal, unseal
from veil.wire.messages import Span


@dataclass(frozen=True, eq=False)
class LoadTraffic:
    """What every user of a bundle sends: its name and fingerprint, an upload's bytes, and rows of each group.

    A pass is of ``rows`` rows, and ``kept`` batches are kept ready, more where a pass takes them. ``turns`` are
    (group, first of these rows, rows of a message), in the order of a pass; the head's is of one row.
    """

    name: str
    fingerprint: str
    params: Params
    manifest: Manifest
    rows: int
    kept: int
    upload: bytes
    data: tuple[bytes, ...]
    turns: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, name: str, fingerprint: str, header: Header, rows: int, kept: int) -> LoadTraffic:
        """For a bundle as its server describes it."""
        params, _, manifest = parse_common(header)
        draw = np.random.default_rng(1)
        residues = [
            reference.pack(draw.integers(0, prime, (1, params.N), dtype=np.uint32), params.prime_bits).tobytes()
            for _ in range(params.terms)
            for prime in params.outer_primes
        ]
        data, turns = [], []
        for index, group in enumerate(manifest.groups):
            count = 1 if group.segment == "head" else rows
            data.append(draw.bytes(packed_bytes(group.width, group.input_bits)))
            step = methods.rows_in_message(manifest, index)
            turns += [(index, first, min(step, count - first)) for first in range(0, count, step)]
        return cls(name, fingerprint, params, manifest, rows, kept, b"".join(residues), tuple(data), tuple(turns))

    @property
    def batches(self) -> int:
        """Batches that a pass takes, from which every row is used once."""
        return -(-self.rows // self.params.T)


@dataclass(eq=False)
class User:
    """The state of one user. `request` is the next message, `reply` takes the answer to it; no time and no socket here."""

    traffic: LoadTraffic
    session: str
    ready: deque[int] = field(default_factory=deque)
    asked: int = 0
    """Batches that were uploaded, or are being uploaded."""

    turn: int = 0
    sequence: int = 0
    _row: int = 0
    _used: list[int] = field(default_factory=list)

    @property
    def can_begin(self) -> bool:
        """Whether there are rows for the message that comes next."""
        return self.turn > 0 or len(self.ready) >= self.traffic.batches

    @property
    def wants(self) -> int:
        """Batches to upload now, of those that are kept ready."""
        traffic, held = self.traffic, len(self.ready)
        most = max(traffic.kept, traffic.batches)
        return most - held if held <= most - traffic.batches else 0

    def upload(self, count: int) -> tuple[list[int], list[bytes]]:
        """Numbers and sealed messages of the next ``count`` batches."""
        numbers = list(range(self.asked, self.asked + count))
        self.asked += count
        header = pb.PrepareHeader(session=self.session, batches=count, segments=list(self.traffic.manifest.segments))
        parts = [seal(pb.PrepareRequest(header=header))]
        for number in numbers:
            parts.append(seal(pb.PrepareRequest(batch=pb.PrepareBatch(number=number, data=self.traffic.upload))))
        return numbers, parts

    def request(self) -> bytes:
        """The next message, sealed."""
        group, first, count = self.traffic.turns[self.turn]
        self.sequence += 1
        release, self._used = self._used, []
        return seal(
            pb.EvaluateRequest(
                session=self.session,
                sequence=self.sequence,
                group=group,
                spans=codec.flat_spans(self._spans(first, count)),
                release=release,
                rows=self.traffic.data[group] * count,
            )
        )

    def reply(self, data: bytes) -> bool:
        """Check a reply and go on; whether a pass ended with it. Raises what the server said, or `WireError`."""
        group, _, count = self.traffic.turns[self.turn]
        reply = unseal(data, pb.EvaluateReply)
        if reply.error:
            raise failures.named(reply.error, reply.details)
        info = self.traffic.manifest.groups[group]
        if reply.sequence != self.sequence:
            raise WireError(f"reply {reply.sequence} came where {self.sequence} was expected")
        codec.rows_from(reply.rows, count, info.rows, info.result_bits)
        self.turn = (self.turn + 1) % len(self.traffic.turns)
        if self.turn == 0:
            self._end_pass()
        return self.turn == 0

    def _spans(self, first: int, count: int) -> list[Span]:
        batch_rows = self.traffic.params.T
        at, left, spans = self._row + first, count, []
        while left:
            own = min(left, batch_rows - at % batch_rows)
            spans.append(Span(self.ready[at // batch_rows], at % batch_rows, own))
            at, left = at + own, left - own
        return spans

    def _end_pass(self) -> None:
        """Rows of the pass are spent; a batch that another pass does not fit into is given up."""
        batch_rows = self.traffic.params.T
        self._row += self.traffic.rows
        while self.ready and self._row and (self._row >= batch_rows or self._row + self.traffic.rows > batch_rows):
            self._used.append(self.ready.popleft())
            self._row = max(0, self._row - batch_rows)


class LoadFailed(VeilError):
    """The load generator could not go on: what the server said, or that a driver of it ended."""
