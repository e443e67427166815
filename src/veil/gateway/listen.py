"""The gateway's web server: its signals, and an orderly end."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from veil.gateway.prompt import PromptProtocol

_GRACE_S = 5


class Listener(uvicorn.Server):
    """Serves an application on an open socket until SIGTERM or SIGINT; running requests have five seconds more.

    Nothing is logged of a request: neither its path nor its body.
    """

    def __init__(self, app: FastAPI, opened: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_S,
            h11_max_incomplete_event_size=64 << 10,
            http=PromptProtocol,
            ws="none",
        )
        super().__init__(config)
        self._opened = opened

    def serve_until_told(self) -> None:
        """Return when everything has ended."""
        self.run(sockets=[self._opened])

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End on SIGTERM and SIGINT, and leave them at that: uvicorn would raise them once more afterwards."""
        numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
