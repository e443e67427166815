"""The chat page: static files of this package, served as they are."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.exceptions import HTTPException

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def add_to(app: FastAPI) -> None:
    """Serve the page at ``/`` and its parts under ``/page/``. Nothing outside the package's list can be named."""
    parts = {
        entry.name: (entry.read_bytes(), _TYPES[suffix])
        for entry in files(__package__ or __name__).iterdir()
        if (suffix := "." + entry.name.rpartition(".")[2]) in _TYPES
    }

    def part(name: str) -> Response:
        if name not in parts:
            raise HTTPException(404, "there is no such part of the page")
        body, kind = parts[name]
        return Response(body, media_type=kind)

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return part("index.html")

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return part("icon.svg")

    @app.get("/page/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        return part(name)
