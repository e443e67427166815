"""Which HTTP statuses the API answers with, for its OpenAPI document."""

from __future__ import annotations

from veil.gateway.schemas import ErrorReply

_STATUSES = {
    400: "A parameter that cannot be used",
    401: "The API key is missing or wrong",
    403: "A Host or an Origin that is not the gateway's",
    404: "A model that is not served",
    413: "A request that is too large",
    429: "Too many requests wait",
    500: "The generation failed",
    502: "The server refused or sent what it should not",
    503: "The server cannot be reached",
}
ERRORS: dict[int | str, dict[str, object]] = {
    status: {"model": ErrorReply, "description": text} for status, text in _STATUSES.items()
}
