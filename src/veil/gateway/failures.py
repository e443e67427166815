"""Errors in OpenAI's shape: what went wrong, of which kind, which parameter, and the HTTP status that clients act on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from veil.errors import (
    AccessDenied,
    IncompatibleServer,
    NotFiniteActivation,
    QuotaExceeded,
    RowReused,
    ServerUnreachable,
    WireError,
)

_RETRY_S = 5


@dataclass(eq=False)
class ApiError(Exception):
    """An error that a client is told of: HTTP ``status`` and the four fields of OpenAI's error object."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None

    def __post_init__(self) -> None:
        super().__init__(self.message)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the status: when to come again, how to authenticate."""
        if self.status in (429, 503):
            return {"Retry-After": str(_RETRY_S)}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}


def bad_parameter(param: str, message: str, code: str | None = None) -> ApiError:
    """A value that cannot be used (400)."""
    return ApiError(400, message, param=param, code=code)


def unknown_model(asked: str, served: str) -> ApiError:
    """A model that is not served here (404). The name is shortened: it is whatever a client sent."""
    return ApiError(
        404, f"the model {asked[:80]!r} is not served here; {served!r} is", param="model", code="model_not_found"
    )


def too_long(rows: int, limit: int, param: str) -> ApiError:
    """A prompt that leaves no room for an answer (400)."""
    return bad_parameter(
        param,
        f"the prompt has {rows} tokens and the model's context is {limit}, one of them for the answer; shorten it",
        "context_length_exceeded",
    )


def busy(waiting: int) -> ApiError:
    """The line is full (429)."""
    message = f"{waiting} requests wait already, the most that do; try again soon"
    return ApiError(429, message, kind="rate_limit_error", code="queue_full")


def from_generation(error: BaseException) -> ApiError:
    """What a failed generation is to the client. An error that veil did not raise says its type and no more."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ServerUnreachable):
        return ApiError(503, str(error), kind="server_error", code="server_unreachable")
    if isinstance(error, QuotaExceeded):
        return ApiError(503, str(error), kind="server_error", code="server_quota")
    if isinstance(error, AccessDenied | IncompatibleServer | WireError | RowReused):
        return ApiError(502, str(error), kind="server_error", code="server_refused")
    if isinstance(error, NotFiniteActivation):
        return ApiError(500, str(error), kind="server_error", code="not_finite")
    return ApiError(500, f"the generation failed inside ({type(error).__name__})", kind="server_error", code="internal")
