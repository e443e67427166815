"""The serving loops of a server: one for each GPU that has a copy of a bundle, and one where there is a single GPU or none.

Copies share nothing while they work: each has its own rounds, fronts and table of batches, and a connection stays with the
loop of its session's engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from veil.server.arrivals import Arrivals
from veil.server.batch_table import BatchTable
from veil.server.engine import Claim, Engine
from veil.server.hosted import HostedBundle
from veil.server.joined_rounds import can_join
from veil.server.row_loop import RowLoop
from veil.server.row_seat import Seat
from veil.server.stages import Stages
from veil.server.store import SessionStore


class RowLoops:
    """Serves seats, each by the loop of its session's engine, and `answer`.

    On the row lane there are ``places`` connections at once, with ``room`` bytes each for a message; 0 without a lane.
    """

    def __init__(
        self, bundles: Sequence[HostedBundle], store: SessionStore, stages: Stages, *, places: int, room: int
    ) -> None:
        self._loops: list[RowLoop] = []
        self._of: dict[Engine, RowLoop] = {}
        copies = list(zip_longest(*((served.engine, *served.copies) for served in bundles)))
        for found in copies:
            engines = [engine for engine in found if engine is not None]
            on_gpu = any(engine.on_gpu for engine in engines)
            joins = engines[0] if len(engines) == 1 and places and can_join(engines[0]) else None
            if joins is not None:
                store.tables[joins] = BatchTable(joins.kernels.address)
            loop = RowLoop(
                stages,
                threads=1 if on_gpu or joins is not None else None,
                arrivals=Arrivals(places, room, together=on_gpu),
                joins=None if joins is None else (joins, store),
                beside=len(copies),
            )
            self._loops.append(loop)
            self._of.update(dict.fromkeys(engines, loop))

    def start(self) -> None:
        """Begin to serve."""
        for loop in self._loops:
            loop.start()

    def stop(self) -> None:
        """End the threads; what waits is told that the server stops."""
        for loop in self._loops:
            loop.stop()

    def add(self, seat: Seat) -> None:
        """Serve a connection that has shown its ticket."""
        engine = seat.stream.engine
        loop = self._loops[0] if engine is None else self._of[engine]
        loop.add(seat)

    def answer(self, engine: Engine, claim: Claim, flow: str = "") -> bytes:
        """The packed results of a claim, for a thread that waits for them; raises what its product did."""
        return self._of[engine].answer(engine, claim, flow)
