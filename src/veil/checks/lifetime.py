"""The running test of a half's answers from one server, kept from session to session.

A server that adds little, and whose clients come and go, would otherwise add little for ever. Sums go on where they were:
an honest server makes them reach the limit with the same probability, however its rows are cut into sessions. They belong
to one set of sign vectors and to one address: another server does not answer for what this one did.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from veil.cache import data_folder
from veil.checks.files import path_of
from veil.checks.running import RunningTest
from veil.disk import digest, write_whole

F64 = NDArray[np.float64]

EVERY = 64
"""Passes between two writes: so many at most are forgotten with a client that is killed."""


class KeptTest:
    """Keeps ``running`` for the half with this digest and the server at this address. Not for several threads."""

    def __init__(self, half: str, server: str, running: RunningTest) -> None:
        name = hashlib.sha256(server.lower().encode()).hexdigest()[:16]
        self._path = data_folder() / "checks" / f"{half}.{name}.running"
        self._vectors = digest(path_of(half))
        self._running = running
        self._seen = self._read()
        self._passes = 0
        state = self._state(self._seen)
        if state is not None:
            running.sums[:], running.rows[:] = state

    def end_pass(self) -> None:
        """Count a pass, and write now and then."""
        self._passes += 1
        if self._passes % EVERY == 0:
            self.write()

    def write(self) -> None:
        """Write the sums; where another client wrote meanwhile, the mean of its and these, which is as fair a test."""
        running, found = self._running, self._read()
        if found != self._seen:
            state = self._state(found)
            if state is not None:
                running.sums[:] = (running.sums + state[0]) / 2
                np.maximum(running.rows, state[1], out=running.rows)
        self._seen = save({"sums": running.sums, "rows": running.rows, "vectors": _bytes(self._vectors)})
        write_whole(self._path, self._seen, mode=0o600)

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""

    def _state(self, data: bytes) -> tuple[F64, F64] | None:
        """Sums and rows, or None where there are none, or of other vectors, or of a file that was damaged."""
        if not data:
            return None
        try:
            arrays = load(data)
            sums, rows = arrays["sums"], arrays["rows"]
        except (SafetensorError, KeyError, ValueError):
            return None
        fits = sums.shape == self._running.sums.shape and rows.shape == self._running.rows.shape
        if not fits or not np.array_equal(arrays.get("vectors", rows), _bytes(self._vectors)):
            return None
        return sums, rows


def _bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), dtype=np.uint8).copy()
