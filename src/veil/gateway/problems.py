"""Errors in the shape of the API that they belong to, and what the OpenAPI document says of them and of streams."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from veil.gateway.failures import ApiError
from veil.gateway.sending import Gone


def add_to(app: FastAPI) -> None:
    """Answer every error of the application in the shape of the API that was asked."""

    @app.exception_handler(ApiError)
    async def known(request: Request, error: ApiError) -> JSONResponse:
        return _error(error, request)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _error(_first_problem(error, request.headers.get("content-type", "")), request)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        code = "not_found" if error.status_code == 404 else None
        reply = _error(ApiError(error.status_code, str(error.detail), code=code), request)
        reply.headers.update(error.headers or {})
        return reply

    @app.exception_handler(Gone)
    async def gone(_: Request, __: Gone) -> Response:
        return Response(status_code=499)


def _error(error: ApiError, request: Request) -> JSONResponse:
    return JSONResponse(error.body_at(request.url.path), status_code=error.status, headers=error.headers)


def _first_problem(error: RequestValidationError, content_type: str) -> ApiError:
    """The first thing that is wrong, without the value that was sent: it may be a prompt."""
    problem = error.errors()[0]
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "json_invalid":
        return ApiError(400, "the body is not JSON")
    if isinstance(error.body, bytes) and "json" not in content_type:
        return ApiError(400, "the body has to be JSON, said to be so; send the header Content-Type: application/json")
    place = [str(part) for part in problem["loc"] if part not in ("body", "query", "path")]
    message = problem["msg"]
    if kind == "not_json":
        place, message = context["place"].split("."), context["message"]
    pairs = zip(place, [None, *place], strict=False)
    place = [part for part, before in pairs if part != before or part.isdecimal()]  # a kind may be called as its field
    where = ".".join(part for part in place if part.isidentifier() or part.isdecimal()) or "the body"
    param = place[0] if place and place[0].isidentifier() else None
    if kind == "extra_forbidden":
        name = ascii(place[-1][:64])
        return ApiError(400, f"{where}: the gateway has no parameter {name}", param=param, code="unknown_parameter")
    return ApiError(400, f"{where}: {message}", param=param)


_EVENT = {"type": "object", "required": ["data"], "properties": {"event": {"type": "string"}, "data": {"type": "string"}}}
_STREAMS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


def schema_of(app: FastAPI) -> dict[str, object]:
    """The OpenAPI document, with 400 where FastAPI says 422, and the streams beside the whole replies."""
    if app.openapi_schema:
        return app.openapi_schema
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for path, methods in schema["paths"].items():
        for method in methods.values():
            method["responses"].pop("422", None)
            if path in _STREAMS:
                method["responses"]["200"]["content"]["text/event-stream"] = {"itemSchema": _EVENT}
    app.openapi_schema = schema
    return schema
