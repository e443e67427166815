"""Errors in OpenAI's shape: what went wrong, of which kind, which parameter, and the HTTP status that clients act on."""

from __future__ import annotations

import logging
import secrets
import traceback
from dataclasses import dataclass
from pathlib import PurePath
from typing import TypedDict

from veil.errors import (
    AccessDenied,
    IncompatibleServer,
    NotFiniteActivation,
    QuotaExceeded,
    RowReused,
    ServerUnreachable,
    Unchecked,
    WireError,
    WrongAnswer,
)

LOGGER = logging.getLogger("veil.gateway")

_RETRY_S = 5
_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""What Anthropic's API calls a status."""


class ErrorFields(TypedDict):
    """What a reply says of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


@dataclass(eq=False)
class ApiError(Exception):
    """An error that a client is told of: HTTP ``status`` and the four fields of OpenAI's error object.

    ``id`` is that of an error which nobody foresaw; the log has it too.
    """

    status: int
    message: str
    kind: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        super().__init__(self.message)

    @property
    def body(self) -> dict[str, ErrorFields]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def body_at(self, path: str) -> dict[str, object]:
        """The JSON body in the shape of the API that a path belongs to."""
        if path != "/v1/messages" and not path.startswith("/v1/messages/"):
            return {**self.body}
        kind = _ANTHROPIC.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}, "request_id": self.id}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the status: when to come again, how to authenticate, what to look for in the log."""
        headers = {"X-Request-Id": self.id} if self.id else {}
        if self.status in (429, 503):
            headers["Retry-After"] = str(_RETRY_S)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


def bad_parameter(param: str, message: str, code: str | None = None) -> ApiError:
    """A value that cannot be used (400)."""
    return ApiError(400, message, param=param, code=code)


def too_long(rows: int, limit: int, param: str, *, at_least: bool = False) -> ApiError:
    """A prompt that leaves no room for an answer (400); ``rows`` may be where the counting stopped."""
    more = "more than " if at_least else ""
    return bad_parameter(
        param,
        f"the prompt has {more}{rows} tokens and the model's context is {limit}, one of them for the answer; shorten it",
        "context_length_exceeded",
    )


def busy(waiting: int) -> ApiError:
    """The queue is full (429)."""
    message = f"{waiting} requests wait already, the most that do; try again soon"
    return ApiError(429, message, kind="rate_limit_error", code="queue_full")


def server_lost(server: str, seconds: float) -> ApiError:
    """The server has not answered for a while (503)."""
    message = f"{server} has not answered for {seconds:.0f} s; the gateway goes on asking it, so try again soon"
    return ApiError(503, message, "server_error", code="server_unreachable")


def stopping() -> ApiError:
    """The gateway ends and takes its answers with it (503)."""
    return ApiError(503, "the gateway is stopping; try again later", "server_error", code="stopping")


def from_error(error: BaseException) -> ApiError:
    """What an error is to the client. One that nobody foresaw is its type and an id, and no more; the log has the place.

    Neither holds what was asked or answered: a message or a traceback might.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ServerUnreachable):
        return ApiError(503, str(error), kind="server_error", code="server_unreachable")
    if isinstance(error, QuotaExceeded):
        return ApiError(503, str(error), kind="server_error", code="server_quota")
    if isinstance(error, AccessDenied | IncompatibleServer | WireError | RowReused):
        return ApiError(502, str(error), kind="server_error", code="server_refused")
    if isinstance(error, WrongAnswer | Unchecked):
        return ApiError(502, str(error), kind="server_error", code="wrong_answer")
    if isinstance(error, NotFiniteActivation):
        return ApiError(500, str(error), kind="server_error", code="not_finite")
    name, where, id = type(error).__name__, _place(error), f"req-{secrets.token_hex(6)}"
    LOGGER.error("%s: %s in %s", id, name, where)
    message = f"the gateway failed inside ({name}); its log has the place under {id}"
    return ApiError(500, message, kind="server_error", code="internal", id=id)


def _place(error: BaseException) -> str:
    """File, function and line of an error; of the first one where several were raised together."""
    while inner := getattr(error, "exceptions", None):  # a group of errors
        error = inner[0]
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "an unknown place"
    last = frames[-1]
    return f"{PurePath(last.filename).name}, {last.name}, line {last.lineno}"
