"""Tiny bundles on disk, and servers for them that live in the test's own process."""

from __future__ import annotations

import datetime
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from bench.ports import own_port
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from remote.processes import Listening
from remote.proxy import Proxy
from veil.bundle.header_file import half_digest
from veil.bundle.terms import Terms
from veil.client.session import OfflineRows
from veil.hybrid.model import HybridFHEModel
from veil.network.timeouts import Timeouts
from veil.params import Params
from veil.runtime.modules import select_modules
from veil.server.config import ServerConfig, server_limits
from veil.server.engine import Engine
from veil.server.hosted import HostedBundle
from veil.server.listen import Server
from veil.server.offer import Offer
from veil.server.store import Limits, SessionStore
from veil.wire import methods

WEAK = Terms(no_cryptography=True)
PROMPT = torch.arange(3, 12).unsqueeze(0)
NEW_TOKENS = 6
PRECISE = Params.insecure_tiny(signal_db=70.0)
"""So little noise that it decides no near tie: every run of a tiny model gives the same tokens."""

QUICK = Timeouts(connect_s=3.0, reply_s=3.0, prepare_s=5.0, retry_s=6.0, pause_s=0.02, keepalive_s=1.0)


def tokens_of(hybrid: HybridFHEModel, count: int = NEW_TOKENS, **options: Any) -> list[int]:
    """Greedy, or as ``options`` say, from the fixed prompt."""
    settings: dict[str, Any] = {"do_sample": False, "pad_token_id": 2, "max_new_tokens": count} | options
    model: Any = hybrid.model
    output = model.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), **settings)
    return [int(token) for token in output[0, PROMPT.shape[1] :]]


@dataclass
class Bundle:
    """A compiled tiny model: its folder, the model in process, and an engine to serve it with."""

    name: str
    path: Path
    local: HybridFHEModel
    engine: Engine

    def served(self, offer: bool = False) -> HostedBundle:
        half = self.path / "client"
        return HostedBundle(self.engine, half_digest(half), Offer(half) if offer else None)

    def connect(self, target: int | str, **options: Any) -> HybridFHEModel:
        address = f"127.0.0.1:{target}" if isinstance(target, int) else target
        settings: dict[str, Any] = {"timeouts": QUICK, "offline_rows": OfflineRows(tokens=4, prompt_rows=4), "terms": WEAK}
        return HybridFHEModel.connect(address, self.path / "client", **(settings | options))


@pytest.fixture(scope="session")
def bundle(
    tmp_path_factory: pytest.TempPathFactory, new_model: Callable[[str], Any], tiny_tokenizer: Any
) -> Callable[[str], Bundle]:
    """The tiny ``llama`` or ``gpt2`` as a bundle; made once."""
    made: dict[str, Bundle] = {}

    def make(name: str = "llama") -> Bundle:
        if name not in made:
            model = new_model(name)
            hybrid = HybridFHEModel(model, select_modules(model, "linear"))
            hybrid.compile_model(torch.arange(1, 9).unsqueeze(0), params=PRECISE, device="cpu")
            path = tmp_path_factory.mktemp("bundles") / name
            hybrid.save(path, tokenizer=tiny_tokenizer)
            hybrid.set_fhe_mode("execute")
            assert hybrid.sides.engine is not None
            made[name] = Bundle(name, path, hybrid, hybrid.sides.engine)
        return made[name]

    return make


@pytest.fixture
def llama(bundle: Callable[[str], Bundle]) -> Bundle:
    return bundle("llama")


@pytest.fixture(scope="session")
def expected(bundle: Callable[[str], Bundle]) -> list[int]:
    """What the tiny Llama generates in process, through encryption."""
    return tokens_of(bundle("llama").local)


@contextmanager
def running(
    *bundles: Bundle,
    limits: Limits | None = None,
    offer: bool = False,
    clock: Callable[[], float] = time.monotonic,
    **options: Any,
) -> Iterator[Server]:
    """A server on the loopback interface, on ports that are nobody's after it: a client that it leaves meets no other."""
    store = SessionStore(limits or server_limits(), clock)
    settings: dict[str, Any] = {"port": own_port(), "rows_port": own_port(), "limits": store.limits, "sweep_s": 0.2}
    config = ServerConfig(**(settings | options))
    server = Server({bundle.name: bundle.served(offer) for bundle in bundles}, store, config)
    try:
        server.start()
        yield server
    finally:
        server.stop(0.5)


@pytest.fixture
def serve() -> Callable[..., Any]:
    """`running`, for tests that cannot import it."""
    return running


@pytest.fixture
def generated() -> Callable[..., list[int]]:
    """`tokens_of`, for tests that cannot import it."""
    return tokens_of


@pytest.fixture
def raw() -> Callable[[int], RawClient]:
    return RawClient


class RawClient:
    """Calls a server with any bytes; an answer that nobody reads stays with the server beyond 64 KiB."""

    def __init__(self, port: int) -> None:
        options = [("grpc.max_send_message_length", -1), ("grpc.http2.bdp_probe", 0)]  # a probe would widen the window
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options)

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def unary(self, name: str, data: bytes, **options: Any) -> bytes:
        call = self.channel.unary_unary(f"/{methods.SERVICE}/{name}")
        reply: bytes = call(data, timeout=5, **options)
        return reply

    def upload(self, parts: list[bytes]) -> bytes:
        reply: bytes = self.channel.stream_unary(f"/{methods.SERVICE}/Prepare")(iter(parts), timeout=5)
        return reply

    def rows(self, parts: list[bytes]) -> list[bytes]:
        return list(self.channel.stream_stream(f"/{methods.SERVICE}/Evaluate")(iter(parts), timeout=5))


@pytest.fixture
def describe_as() -> Callable[[Server, int], None]:
    """Makes a server claim another protocol version."""

    def change(server: Server, version: int) -> None:
        server.service.described.protocol = version

    return change


@pytest.fixture
def other_grpc_server() -> Iterator[int]:
    """A gRPC server without any service."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(0).wait()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for ``localhost`` that signs itself, and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def proxy_to() -> Iterator[Callable[..., Proxy]]:
    """Makes proxies to ports."""
    made: list[Proxy] = []

    def make(port: int, plain: bool = False) -> Proxy:
        made.append(Proxy(port, plain))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Listening]]:
    """Starts `veil` commands that listen: ``start("serve", half, "--port", "0")``."""
    made: list[Listening] = []

    def one(*arguments: str | Path) -> Listening:
        made.append(Listening(*arguments))
        return made[-1]

    yield one
    for process in made:
        process.end(signal.SIGKILL)
