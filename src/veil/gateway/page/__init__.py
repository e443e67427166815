"""The chat page: static files of this package, served as they are. ``vendor`` has libraries of others."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

_FOLDER = Path(__file__).parent
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
    ".bcmap": "application/octet-stream",
}


def add_to(app: FastAPI) -> None:
    """Serve the page at ``/`` and its parts under ``/page/``. Nothing outside the package's list can be named."""
    parts = {
        path.relative_to(_FOLDER).as_posix(): _part(path.read_bytes(), kind)
        for path in _FOLDER.rglob("*")
        if (kind := _TYPES.get(path.suffix)) is not None
    }

    def part(name: str, request: Request) -> Response:
        if name not in parts:
            raise HTTPException(404, "there is no such part of the page")
        body, kind, mark = parts[name]
        if request.headers.get("if-none-match") == mark:
            return Response(status_code=304, headers={"ETag": mark})
        return Response(body, media_type=kind, headers={"ETag": mark})

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return part("index.html", request)

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon(request: Request) -> Response:
        return part("icon.svg", request)

    @app.get("/page/{name:path}", include_in_schema=False)
    async def asset(name: str, request: Request) -> Response:
        return part(name, request)


def _part(body: bytes, kind: str) -> tuple[bytes, str, str]:
    """A file's bytes, its media type, and a mark that changes with the bytes."""
    return body, kind, f'"{hashlib.sha256(body).hexdigest()[:32]}"'
