"""A tiny model behind a gateway that really listens, in the test's own process."""

from __future__ import annotations

import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from veil.client.session import OfflineRows
from veil.gateway.app import Gateway, Settings, build_app
from veil.gateway.guard import Access
from veil.gateway.listen import Listener
from veil.gateway.sampling import Sampler
from veil.gateway.served import ServedModel
from veil.gateway.tools import Use
from veil.hybrid.model import HybridFHEModel
from veil.network.listening import listening as free_socket
from veil.params import Params
from veil.runtime.modules import select_modules
from veil.runtime.padding import Padding
from waiting import until

BYTE_TEMPLATE = (
    "{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|reply|>{% endif %}"
)


def make_byte_tokenizer(template: str = BYTE_TEMPLATE) -> Any:
    """A tokenizer whose first 256 tokens are bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>", "<|user|>", "<|reply|>", "<|mark|>"])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False), AddedToken("</tool_call>", special=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=template, eos_token="<|end|>", pad_token="<|end|>"
    )


def make_byte_llama() -> Any:
    """A Llama of one layer over `make_byte_tokenizer`, with random but fixed weights and two rows that have no token."""
    config = LlamaConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=256,
        eos_token_id=256,
        pad_token_id=256,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return LlamaForCausalLM(config).eval()


PRECISE = Params.insecure_tiny(signal_db=90.0)
"""Noise that decides no near tie in a hundred tokens: greedy answers are equal. With 60 dB one in four differs by ten."""


def without_an_end(model: Any) -> Any:
    """The model with an end whose logit is 0, which is never the likeliest: a greedy answer ends where it is told to."""
    head, end = model.get_output_embeddings(), getattr(model.config, "eos_token_id", None)
    if head is not None and end is not None:
        with torch.no_grad():
            head.weight[end] = 0
    return model


def make_served(model: Any, tokenizer: Any, name: str = "tiny", mode: str = "execute") -> ServedModel:
    """A tiny model `without_an_end`, encrypted with test parameters, rows made in the background."""
    hybrid = HybridFHEModel(without_an_end(model), select_modules(model, "linear"))
    hybrid.compile_model(torch.arange(1, 9).unsqueeze(0), params=PRECISE, device="cpu")
    hybrid.offline_rows = OfflineRows(tokens=8, prompt_rows=8)
    hybrid.set_fhe_mode(mode)
    return ServedModel(name, hybrid, tokenizer)


class Hold(threading.Event):
    """Set, it lets answers go on; ``reached`` says that one has stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()


@dataclass
class Running:
    """A gateway that listens."""

    port: int
    gateway: Gateway

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def idle(self, within_s: float = 60.0) -> bool:
        """Wait until everything has ended; whether it did, within a time that is long for busy machines too."""
        queue = self.gateway.queue
        until(lambda: queue.running == queue.waiting == 0, within_s, "an idle gateway", self.state)
        return True

    def state(self) -> str:
        """What runs and waits, for the error of a test that waits for another state."""
        queue, lock = self.gateway.queue, self.gateway.generator._lock
        left = [job.cancelled.is_set() for job in list(queue._active)]
        return f"running {queue.running} (left by their clients: {left}), waiting {queue.waiting}, turn wanted {lock.wanted}"

    def post(self, path: str, body: object) -> socket.socket:
        """A connection on which a request went; it leaves when the socket is closed."""
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        talk = socket.create_connection(("127.0.0.1", self.port))
        talk.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        return talk

    @contextmanager
    def held(self, after: int = 0) -> Iterator[Hold]:
        """Answers stop after so many remote layers until the event is set, at the latest at the block's end."""
        router = self.gateway.served.hybrid.sides.router
        assert router is not None
        go_on, passed = Hold(), itertools.count()

        def hold(*_: object) -> None:
            if next(passed) >= after:
                go_on.reached.set()
                go_on.wait(120)

        router.observer = hold
        try:
            yield go_on
        finally:
            go_on.set()
            router.observer = None

    @contextmanager
    def held_until_left(self, after: int) -> Iterator[None]:
        """Answers stop after so many remote layers until their clients are gone, at the latest at the block's end."""
        router, queue = self.gateway.served.hybrid.sides.router, self.gateway.queue
        assert router is not None
        over, passed = threading.Event(), itertools.count()

        def left() -> bool:
            return over.is_set() or any(job.cancelled.is_set() for job in list(queue._active))

        def hold(*_: object) -> None:
            if next(passed) >= after:
                until(left, 120)

        router.observer = hold
        try:
            yield
        finally:
            over.set()
            router.observer = None


@contextmanager
def listening(served: ServedModel, access: Access | None = None, settings: Settings | None = None) -> Iterator[Running]:
    app = build_app(served, access, settings)
    with free_socket("127.0.0.1", 0) as opened:
        listener = Listener(app, opened)
        thread = threading.Thread(target=listener.serve_until_told)
        thread.start()
        try:
            until(lambda: listener.started, what="a gateway that listens")
            yield Running(opened.getsockname()[1], app.state.gateway)
        finally:
            listener.should_exit = True
            thread.join(20)


@pytest.fixture(scope="session")
def served(new_model: Callable[[str], Any], tiny_tokenizer: Any) -> Iterator[ServedModel]:
    """The tiny Llama, encrypted, as the model ``tiny``."""
    made = make_served(new_model("llama"), tiny_tokenizer)
    yield made
    made.hybrid.close()


@pytest.fixture(scope="session")
def byte_tokenizer() -> Any:
    """A byte-level tokenizer as GPT-2's, without merges: 256 bytes, then special tokens and ``<tool_call>``."""
    return make_byte_tokenizer()


@pytest.fixture(scope="session")
def new_byte_tokenizer() -> Callable[[str], Any]:
    """`make_byte_tokenizer`, for tests that cannot import it."""
    return make_byte_tokenizer


@pytest.fixture(scope="session")
def new_byte_model() -> Callable[[], Any]:
    """`make_byte_llama`, for tests that cannot import it."""
    return make_byte_llama


@pytest.fixture(scope="session")
def byte_served(byte_tokenizer: Any) -> Iterator[ServedModel]:
    """A tiny Llama over bytes as the model ``bytes``, in integers and not encrypted: quick, its words random."""
    made = make_served(make_byte_llama(), byte_tokenizer, name="bytes", mode="disable")
    yield made
    made.hybrid.close()


@pytest.fixture(scope="session")
def bytes_running(byte_served: ServedModel) -> Iterator[Running]:
    """A gateway with the model ``bytes``."""
    with listening(byte_served) as made:
        yield made


@pytest.fixture(scope="session")
def llava_processor() -> Any:
    """What makes inputs of pictures for the model ``llava``."""
    from gateway.llava import TEMPLATE, make_processor

    return make_processor(make_byte_tokenizer(TEMPLATE))


@pytest.fixture(scope="session")
def seeing(llava_processor: Any) -> Iterator[Running]:
    """A gateway with the model ``llava``, in integers and not encrypted."""
    from gateway.llava import make_llava

    tokenizer = llava_processor.tokenizer
    model = make_llava(tokenizer.convert_tokens_to_ids("<image>"))
    made = make_served(model, tokenizer, name="llava", mode="disable")
    made.see(llava_processor)
    with listening(made) as running:
        yield running
    made.hybrid.close()


@pytest.fixture(scope="session")
def running(served: ServedModel) -> Iterator[Running]:
    """One gateway for many tests."""
    with listening(served) as made:
        yield made


@pytest.fixture(scope="session")
def listen() -> Callable[..., Any]:
    """`listening`, for tests that cannot import it."""
    return listening


@pytest.fixture(scope="session")
def serve_model() -> Callable[..., ServedModel]:
    """`make_served`, for tests that cannot import it."""
    return make_served


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The answers to come from a gateway, token by token, whatever a grammar allows: the texts, then the model's own."""

    grammar = Use.grammar

    def write(running: Running, *texts: str) -> None:
        tokenizer = running.gateway.served.tokenizer
        waiting = [iter(tokenizer(text + "<|end|>")["input_ids"]) for text in texts]
        call, mine = Sampler.__call__, "_scripted"

        def draw(self: Any, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            if not hasattr(self, mine):
                setattr(self, mine, waiting.pop(0) if waiting else None)
            if getattr(self, mine) is None:
                return call(self, input_ids, scores)
            token = next(getattr(self, mine))
            if self._matcher is not None:
                self._matcher.take(token)
            only = torch.full_like(scores, -torch.inf)
            only[0, token] = 0
            return only

        monkeypatch.setattr(Sampler, "__call__", draw)
        monkeypatch.setattr(Use, "grammar", lambda *given: None if waiting else grammar(*given))

    return write


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for ``localhost`` that signs itself, and its key, as PEM files."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(pem, pkcs8, plain))
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture(scope="module")
def padded(serve_model: Callable[..., Any], new_model: Callable[[str], Any], tiny_tokenizer: Any) -> Iterator[Any]:
    """A small Llama that hides lengths in steps of 8."""
    made = serve_model(new_model("llama"), tiny_tokenizer)
    made.hybrid.padding = Padding(step=8)
    yield made
    made.hybrid.close()
