"""Who may talk to the gateway: the Host that a request names, the page that it comes from, its key and its size."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from veil.gateway.failures import ApiError, from_error, stopping
from veil.gateway.keys import Keys

MOST_BODY_BYTES = 8 << 20

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_CSP = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "font-src 'self'",
        "worker-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify veil",
    )
)
_OPEN = frozenset({"/health"})
"""Paths that need no key: they say nothing but that somebody answers."""

_HEADERS = {
    "Content-Security-Policy": _CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), interest-cohort=()",
}


@dataclass(frozen=True, kw_only=True, repr=False)
class Access:
    """Where the gateway listens and whom it serves. ``hosts`` are further names by which it may be called.

    ``keys`` are those of ``api_key`` where nothing else is given. ``origins`` are pages elsewhere that may use it, as
    ``https://chat.example.org``; ``*`` is any. `ValueError` for an address, or any page, that comes in without an API key.
    """

    host: str = "127.0.0.1"
    api_key: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    keys: Keys = field(default_factory=Keys)

    def __post_init__(self) -> None:
        if self.api_key is not None:
            object.__setattr__(self, "keys", Keys(self.api_key))
        if not self.keys and self.host not in _LOOPBACK:
            raise ValueError(f"others can reach {self.host}; set --api-key or --api-keys, or listen on 127.0.0.1")
        for origin in self.origins:
            scheme, _, authority = origin.partition("://")
            if origin != "*" and (scheme not in ("http", "https") or _host_of(authority) is None):
                raise ValueError(f"--allow-origin {origin!r} is no origin; write it as https://HOST or https://HOST:PORT")
        if "*" in self.origins and not self.keys:
            raise ValueError("--allow-origin '*' lets any page that you open use this gateway; set --api-key as well")

    def names(self, host: str) -> bool:
        """Whether a Host header's value names this gateway; an attacker's domain that resolves to it does not."""
        name = _host_of(host)
        if name is None:
            return False
        everywhere = self.host in ("0.0.0.0", "::")  # noqa: S104
        return name in _LOOPBACK | {self.host, *self.hosts} or (everywhere and _is_address(name))

    def accepts(self, authorization: str | None) -> bool:
        """Whether an Authorization header carries a key; compared in constant time."""
        return self.owner(authorization) is not None

    def owner(self, authorization: str | None, x_api_key: str | None = None) -> str | None:
        """Whose key a request has, in either of the two headers that clients use; None for a wrong one or none."""
        scheme, _, key = (authorization or "").partition(" ")
        if x_api_key is not None and scheme.lower() != "bearer":
            return self.keys.owner(x_api_key)
        return self.keys.owner(key if scheme.lower() == "bearer" else "")

    def allows(self, origin: str) -> bool:
        """Whether a page from elsewhere may use the gateway."""
        return "*" in self.origins or origin.lower() in self.origins


class Guard:
    """ASGI middleware: refuses what may not come in, limits bodies, and adds the headers that protect the page.

    A request that is cancelled, because the gateway stops and has waited for it long enough, is told so. An error that
    nobody foresaw ends here: the client is told in OpenAI's shape, and no traceback is logged. HEAD is GET without a body.
    A path with a slash at its end is the one without: a redirect would cost a POST its body, or its key, with some clients.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        if scope["path"].endswith("/"):
            scope["path"] = scope["path"].rstrip("/") or "/"
        api = not _is_page(scope["path"])
        asked = Headers(scope=scope)
        origin = asked.get("origin")
        shared = origin if origin is not None and api and self._access.allows(origin) else None
        preflight = shared is not None and scope.get("method") == "OPTIONS" and "access-control-request-method" in asked
        refusal = self._refusal(asked, api, scope["path"] in _OPEN or preflight)
        scope["veil.owner"] = self._access.owner(asked.get("authorization"), asked.get("x-api-key")) or ""

        counted = _Counted(receive)
        begun = False

        async def protected(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers["Cache-Control"] = "no-store" if api else "no-cache"
                headers.update(_cors(shared, asked) if shared else {})
            await send(message)

        async def unless_too_large(message: Message) -> None:
            if not counted.exceeded:
                await protected(message)
            elif message["type"] == "http.response.start":
                await _refuse(_too_large(), protected, scope["path"])

        if refusal is not None:
            await _refuse(refusal, protected, scope["path"])
            return
        if preflight:
            await protected({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        if scope.get("method") == "HEAD":
            scope = {**scope, "method": "GET"}  # the web server, which has a scope of its own, leaves the body out
        try:
            await self._app(scope, counted, unless_too_large)
        except asyncio.CancelledError:
            if not begun:
                await _refuse(stopping(), protected, scope["path"])
        except ClientDisconnect:
            pass  # nobody is there to be told
        except Exception as error:
            known = from_error(error)
            if not begun:
                await _refuse(known, protected, scope["path"])

    def _refusal(self, headers: Headers, api: bool, is_open: bool) -> ApiError | None:
        host = headers.get("host", "")
        if not self._access.names(host):
            return ApiError(403, "this Host is not the gateway's; call it by 127.0.0.1 or localhost", code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and not _same_origin(origin, host) and not (api and self._access.allows(origin)):
            return ApiError(403, "pages from elsewhere may not use this gateway", code="wrong_origin")
        if origin is None and api and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return ApiError(403, "pages from elsewhere may not use this gateway", code="wrong_origin")
        if api and not is_open and self._access.owner(headers.get("authorization"), headers.get("x-api-key")) is None:
            return ApiError(401, "the API key is missing or wrong", code="invalid_api_key")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:12]) > MOST_BODY_BYTES:
            return _too_large()
        return None


class _Counted:
    """Receives a body and breaks off what is longer than allowed."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._bytes = 0
        self.exceeded = False

    async def __call__(self) -> Message:
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        if self._bytes <= MOST_BODY_BYTES:
            return message
        self.exceeded = True
        return {"type": "http.request", "body": b"", "more_body": False}


def _too_large() -> ApiError:
    return ApiError(413, f"a request has at most {MOST_BODY_BYTES:,} bytes", code="request_too_large")


def _cors(origin: str, asked: Headers) -> dict[str, str]:
    """What a browser has to read before it lets a page elsewhere use the gateway."""
    headers = {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": "Retry-After, X-Request-Id",
        "Vary": "Origin",
    }
    if "access-control-request-method" in asked:
        wanted = asked.get("access-control-request-headers", "")
        headers |= {"Access-Control-Allow-Methods": "GET, POST, DELETE", "Access-Control-Max-Age": "600"}
        headers |= {"Access-Control-Allow-Headers": wanted} if wanted.isascii() and wanted.isprintable() and wanted else {}
    return headers


async def _refuse(error: ApiError, send: Send, path: str) -> None:
    body = json.dumps(error.body_at(path)).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))} | error.headers
    raw: Iterable[tuple[bytes, bytes]] = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": list(raw)})
    await send({"type": "http.response.body", "body": body})


def _is_page(path: str) -> bool:
    """Static files, which hold nothing of anybody."""
    return path == "/" or path == "/favicon.ico" or path.startswith("/page/")


def _host_of(value: str) -> str | None:
    """The host of ``HOST[:PORT]`` in lower case; None for anything else."""
    try:
        parts = urlsplit(f"//{value}")
        _ = parts.port
    except ValueError:
        return None
    plain = not (parts.path or parts.query or parts.fragment or parts.username or parts.password)
    return parts.hostname if plain else None


def _same_origin(origin: str, host: str) -> bool:
    scheme, _, authority = origin.partition("://")
    return scheme in ("http", "https") and authority.lower() == host.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
