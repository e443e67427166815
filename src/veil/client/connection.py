"""A connection to a server: where it is, how it is protected, single calls with deadlines, and what is served there."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from veil.bundle.fields import Header
from veil.errors import BundleError, CorruptMessage, IncompatibleServer, ServerUnreachable, VeilError
from veil.given import path_given, text_given
from veil.network.certificates import client_context, read_authority
from veil.network.grpc_options import client_options
from veil.network.listening import is_loopback
from veil.network.timeouts import Retries, Timeouts
from veil.wire import failures, methods
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal, unseal

M = TypeVar("M", bound=Message)
R = TypeVar("R")

_CLOSING_S = 2.0
"""Seconds that a channel's closing is waited for."""

_NO_TLS = "WRONG_VERSION_NUMBER"
"""In gRPC's details where the first bytes of the other side are no TLS."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Address:
    """Where a server is and how to reach it.

    ``tls`` is True for certificates that the system trusts, or a PEM file of the authority that signed the server's. A
    server elsewhere is reached over TLS, unless ``allow_no_tls`` says that the network is one's own. `ValueError` for
    anything else.
    """

    target: str
    token: str | None = None
    tls: bool | Path = False
    allow_no_tls: bool = False
    _authority: bytes | None = field(init=False, default=None, compare=False)

    def __post_init__(self) -> None:
        host, port = _split(text_given("the server", self.target, "HOST:PORT"))
        object.__setattr__(self, "target", f"{host}:{port}")
        if not self.tls and not self.allow_no_tls and not is_loopback(host):
            raise ValueError(
                f"{host} is not this machine, and there is no TLS: others on the way would see your traffic and could "
                "answer in the server's place; use --tls or --tls-ca, or --allow-no-tls if the network is yours alone"
            )
        if self.token is not None:
            text_given("token", self.token, "text, or None")
        if self.token and not (self.token.isascii() and self.token.isprintable()):
            raise ValueError("a token is printable ASCII")
        if not isinstance(self.tls, bool):
            object.__setattr__(self, "_authority", read_authority(path_given("tls", self.tls)))

    def channel(self, keepalive_s: float) -> grpc.Channel:
        """A new channel; connecting happens with the first call."""
        options = client_options(keepalive_s)
        if not self.tls:
            options.append(("grpc.enable_http_proxy", 0))  # one that the environment names would see what is in clear
        if not self.tls:
            return grpc.insecure_channel(self.target, options)
        return grpc.secure_channel(self.target, grpc.ssl_channel_credentials(self._authority), options)

    def socket(self, port: int, within_s: float) -> socket.socket:
        """A connection to another port of the same host, protected in the same way; `OSError` if there is none."""
        host = _split(self.target)[0].strip("[]")
        plain = socket.create_connection((host, port), within_s)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self.tls:
            return plain
        try:
            return client_context(self._authority).wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise

    def elsewhere(self, target: str) -> Address:
        """Another server, reached in the same way; `ValueError` for what is no address, or wants TLS that is not there."""
        return replace(self, target=target)

    @property
    def is_here(self) -> bool:
        """Whether the server is on this machine."""
        return is_loopback(_split(self.target)[0])

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def __repr__(self) -> str:
        return f"<Address {self.target}>"


@dataclass(frozen=True)
class OfferedBundle:
    """A bundle as a server describes it; ``files`` (path, bytes, SHA-256) are the client half, where it is offered.

    ``digest`` is that of the whole client half, offered or not (`veil.bundle.header_file.half_digest`).
    """

    name: str
    fingerprint: str
    digest: str
    files: tuple[tuple[str, int, str], ...]
    header: Header


class Connection:
    """One gRPC channel and its calls. Thread safe; a channel that went bad is replaced by `renew`, until `close`."""

    def __init__(self, address: Address, timeouts: Timeouts) -> None:
        self.address = address
        self.timeouts = timeouts
        self._lock = threading.Lock()
        self._closed = False
        self._channel = address.channel(timeouts.keepalive_s)

    def unary(self, name: str, request: Message, reply: type[M], timeout_s: float) -> M:
        """One request, one reply."""
        call = self._start(lambda channel: channel.unary_unary(_path(name)))
        return unseal(self._run(lambda: call(seal(request), timeout=timeout_s, metadata=self.address.metadata)), reply)

    def upload(self, name: str, requests: Iterable[bytes], reply: type[M], timeout_s: float) -> M:
        """Sealed requests, one reply."""
        call = self._start(lambda channel: channel.stream_unary(_path(name)))
        return unseal(self._run(lambda: call(iter(requests), timeout=timeout_s, metadata=self.address.metadata)), reply)

    def download(self, name: str, request: Message, reply: type[M], timeout_s: float) -> Iterator[M]:
        """One request, replies as they come."""
        call = self._start(lambda channel: channel.unary_stream(_path(name)))
        try:
            for data in call(seal(request), timeout=timeout_s, metadata=self.address.metadata):
                yield unseal(data, reply)
        except grpc.RpcError as error:
            raise self.error_from(error) from None

    def both_ways(self, name: str, requests: Iterator[bytes]) -> grpc.Call:
        """A stream of sealed requests and replies."""
        call = self._start(lambda channel: channel.stream_stream(_path(name)))
        return self._run(lambda: call(requests, metadata=self.address.metadata))

    def describe(self) -> list[OfferedBundle]:
        """What the server serves; `IncompatibleServer` for another protocol or something that is not a veil server."""
        try:
            request = pb.DescribeRequest(protocol=methods.PROTOCOL)
            reply = self.unary("Describe", request, pb.DescribeReply, self.timeouts.connect_s)
        except ServerUnreachable as error:
            if "(unimplemented" in str(error):
                raise IncompatibleServer(f"{self.address.target} answers, but is not a veil server") from None
            if _NO_TLS in str(error):
                raise IncompatibleServer(
                    f"{self.address.target} answers without TLS; if that is right, leave TLS out (--tls, --tls-ca)"
                ) from None
            raise
        if reply.protocol != methods.PROTOCOL:
            raise IncompatibleServer(
                f"the server speaks protocol {reply.protocol} (veil {failures.printable(reply.version)}), "
                f"this veil {methods.PROTOCOL}; update the older one"
            )
        return [offered_bundle(bundle) for bundle in reply.bundles]

    def retrying(self, call: Callable[[], R], tries: Retries) -> R:
        """``call`` until it gets through; `ServerUnreachable` with advice when the time is over."""
        while True:
            try:
                return call()
            except (ServerUnreachable, CorruptMessage):
                if not tries.again():
                    raise
                self.renew()

    def error_from(self, failure: grpc.RpcError) -> VeilError:
        """The error that a failed call stands for."""
        error = failures.error_from(failure)
        return self.unreachable(str(error)) if isinstance(error, ServerUnreachable) else error

    def unreachable(self, reason: str) -> ServerUnreachable:
        """What went wrong, and what to do."""
        return ServerUnreachable(
            f"no usable answer from {self.address.target} ({reason}); is 'veil serve' running there, "
            "and are address and TLS right?"
        )

    def renew(self) -> None:
        """Give the channel up for a new one; calls that run on it end."""
        with self._lock:
            if self._closed:
                return
            old, self._channel = self._channel, self.address.channel(self.timeouts.keepalive_s)
        _end(old)

    def close(self) -> None:
        """End every call, from any thread; later ones raise `ServerUnreachable`."""
        with self._lock:
            self._closed = True
        _end(self._channel)

    def _start(self, make: Callable[[grpc.Channel], R]) -> R:
        with self._lock:
            return make(self._channel)

    def _run(self, call: Callable[[], R]) -> R:
        try:
            return call()
        except grpc.RpcError as error:
            raise self.error_from(error) from None
        except ValueError as error:  # the channel was renewed or closed by another thread
            raise self.unreachable(str(error)) from None


def _end(channel: grpc.Channel) -> None:
    """Close a channel, which ends its calls; its own closing may wait for ever for one that Ctrl-C cut off as it began."""
    closing = threading.Thread(target=channel.close, name="veil-closing", daemon=True)
    closing.start()
    closing.join(_CLOSING_S)


def _path(name: str) -> str:
    return f"/{methods.SERVICE}/{name}"


def offered_bundle(bundle: pb.Bundle) -> OfferedBundle:
    """What a server says of a bundle; `BundleError` where its header or digest is none."""
    try:
        header: Header = json.loads(bundle.header)
    except (ValueError, RecursionError):
        raise BundleError("the server describes a bundle with something that is not JSON") from None
    if not isinstance(header, dict):
        raise BundleError("the server describes a bundle with something that is not a header")
    if not re.fullmatch("[0-9a-f]{64}", bundle.digest):
        raise BundleError("the server names a client half by something that is not a digest")
    files = tuple((file.path, file.size, file.sha256) for file in bundle.files)
    name, fingerprint = failures.printable(bundle.name), failures.printable(bundle.fingerprint)
    return OfferedBundle(name, fingerprint, bundle.digest, files, header)


def _split(target: str) -> tuple[str, int]:
    host, _, port = target.rpartition(":")
    if not host or target.endswith("]"):
        host, port = target, str(methods.DEFAULT_PORT)
    if ":" in host and not host.startswith("["):
        raise ValueError(f"{target!r} is not HOST:PORT; an IPv6 address goes in brackets")
    if not (port.isdigit() and 0 < int(port) < 65536) or not host or "/" in host:
        raise ValueError(f"{target!r} is not HOST:PORT")
    return host, int(port)
