"""Models small enough to make in a moment, the two halves of the scheme, and a client and a server, shared by the tests."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from veil.bench import machine, run
from veil.bench.link import Link
from veil.bench.record import Record
from veil.bench.subjects import Loaded
from veil.client.session import ClientModel, ClientSession
from veil.client.stats import Stats
from veil.crypto import public
from veil.crypto.hint import Hint, HintRows, MaskHalf, prepare_keys
from veil.crypto.mask import ClientMask, MaskMaker
from veil.crypto.secret import OuterKey, inner_secret
from veil.kernels import cpu
from veil.kernels.ring import ring_of
from veil.model.manifest import Group, Layer, Manifest
from veil.model.quantize import row_norms, target_norm
from veil.params import Params
from veil.random import SecretRng
from veil.seed import PublicSeed
from veil.server.engine import Engine, ServerModel

_COUNT = itertools.count()
WORDS = ["<unk>", "<s>", "</s>", "<user>", "<reply>"] + [f"w{index}" for index in range(59)]
CHAT_TEMPLATE = (
    "{% for m in messages %}<user> {{ m['content'] }} </s> {% endfor %}{% if add_generation_prompt %}<reply>{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of 64 words, w0 to w58 and five special ones, with a chat template."""
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE, **special)


def make_llama() -> LlamaForCausalLM:
    """A Llama of two layers, width 32, with random but fixed weights; its head is not tied."""
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def make_gpt2() -> GPT2LMHeadModel:
    """A GPT-2 of two layers, width 32, with random but fixed weights; Conv1D layers and a tied head."""
    config = GPT2Config(
        vocab_size=len(WORDS),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(config).eval()


@pytest.fixture(autouse=True)
def known_servers(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that a test meets are forgotten after it: ports come again."""
    monkeypatch.setenv("VEIL_DATA_DIR", str(tmp_path_factory.getbasetemp() / "data" / str(next(_COUNT))))


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerBase:
    return make_tokenizer()


@pytest.fixture
def tiny_llama() -> LlamaForCausalLM:
    return make_llama()


@pytest.fixture
def tiny_gpt2() -> GPT2LMHeadModel:
    return make_gpt2()


@pytest.fixture(scope="session")
def new_model() -> Callable[[str], Any]:
    """Makes a fresh ``gpt2`` or ``llama``, for fixtures that live longer than a test."""
    return lambda name: {"gpt2": make_gpt2, "llama": make_llama}[name]()


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama and its tokenizer as a folder in Hugging Face layout; do not write to it."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    make_llama().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def until() -> Callable[..., None]:
    """Waits for what other threads bring about, 30 s at most unless told otherwise."""

    def wait(condition: Callable[[], Any], within_s: float = 30.0) -> None:
        end = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < end, "it did not come about"
            time.sleep(0.001)

    return wait


@pytest.fixture
def no_thread(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], AbstractContextManager[None]]:
    """Inside ``no_thread(name)`` no thread of that name can be started."""
    start = threading.Thread.start

    @contextmanager
    def refused(name: str) -> Iterator[None]:
        def starts(thread: threading.Thread) -> None:
            if thread.name == name:
                raise RuntimeError("can't start new thread")
            start(thread)

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", starts)
            yield

    return refused


# The scheme -----------------------------------------------------------------------------------------------------------


class Scheme:
    """Both halves of the scheme on random weights: one hint of two groups, one epoch, and ``count`` prepared masks.

    The second group is wider than the inner degree and the first straddles nothing, the second a block's edge.
    """

    segment = "body"

    def __init__(self, params: Params, count: int, *, seed: int = 1) -> None:
        self.params, self.ring, self.count = params, ring_of(params), count
        self.rng, self.draw = SecretRng.insecure_for_tests(seed), np.random.default_rng(seed)
        self.seed = PublicSeed(bytes([seed]) * 32)
        self.widths = [params.n // 2 + 3, 2 * params.n + 5]
        self.rows = [params.N // 2 + 7, params.N // 2 - 10] if params.N > 1024 else [params.N // 2 + 7, params.N + 3]
        sizes = list(zip(self.rows, self.widths, strict=True))
        self.weights = [self.draw.integers(-127, 128, size, dtype=np.int8) for size in sizes]
        parts = [HintRows(group, weights) for group, weights in enumerate(self.weights)]
        self.hint, self.tables = Hint.build(params, self.seed, {self.segment: parts}, cpu)
        self.key = OuterKey(params, cpu, self.rng)
        self.key_halves = public.key_halves(self.seed, params)
        self.keys = self.key.galois_keys(self.key_halves)
        self.secrets = [inner_secret(self.rng, params) for _ in range(count)]
        self.mask_halves = [public.mask_half(self.seed, params, m) for m in range(count)]
        self.encrypted = [self.key.encrypt_mask(m, self.mask_halves[m], self.secrets[m]) for m in range(count)]
        prepared = prepare_keys(self.keys, params, cpu)
        halves = [MaskHalf(m, self.encrypted[m], prepared) for m in range(count)]
        self.h = self.hint.prepare(halves, [self.segment])[self.segment]
        self.maker = MaskMaker(params, self.seed, self.widths, self.tables, cpu)
        self.masks = [self.make_mask(m) for m in range(count)]

    def make_mask(self, m: int) -> ClientMask:
        return self.maker.make(m, m, self.key, self.secrets[m], [self.segment], self.rng)

    def slots(self, group: int) -> slice:
        first = sum(self.rows[:group])
        return slice(first, first + self.rows[group])

    def inner_product(self, group: int, m: int) -> np.ndarray:
        """``A_l·s`` as exact integers [width], by the schoolbook product."""
        secret = self.secrets[m].astype(np.int64)
        polynomials = public.inner_polynomials(self.seed, self.params, group, self.widths[group])
        return np.concatenate([negacyclic(a.astype(np.int64), secret) for a in polynomials])[: self.widths[group]]


def negacyclic(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The schoolbook product modulo X^n + 1, in the operands' own integers."""
    degree = len(left)
    full = np.convolve(left, right)
    full[: degree - 1] -= full[degree:]
    return full[:degree]


@pytest.fixture(scope="session")
def tiny_scheme() -> Scheme:
    """Four masks at degrees 64 and 256; do not write to it."""
    return Scheme(Params.insecure_tiny(), 4)


@pytest.fixture(scope="session")
def default_scheme() -> Scheme:
    """Two masks with the real parameters, one block of slots; do not write to it."""
    return Scheme(Params.default(), 2)


@pytest.fixture(scope="session")
def schoolbook() -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return negacyclic


# Client and server ----------------------------------------------------------------------------------------------------


def _layer(name: str, width: int, rows: int) -> Layer:
    return Layer(name, "linear", width, rows, 8, False)


MANIFEST = Manifest(
    (
        Group((_layer("q", 70, 30), _layer("k", 70, 21)), "body"),
        Group((_layer("up", 64, 300),), "body"),
        Group((_layer("head", 70, 90),), "head"),
    )
)
"""Two body groups, one of them shared by two layers, and a head; the body has more slots than a tiny block."""


class Pair:
    """A server model, its engine, and what a client needs; sessions keep tests apart."""

    def __init__(self, params: Params) -> None:
        self.params, self.manifest, self.seed = params, MANIFEST, PublicSeed(bytes(range(32)))
        draw = np.random.default_rng(5)
        sizes = [(group.rows, group.width) for group in self.manifest.groups]
        self.weights = tuple(draw.integers(-127, 128, size, dtype=np.int8) for size in sizes)
        self.server_model = ServerModel(params, self.seed, self.manifest, self.weights)
        self.engine, self.tables = Engine.build(self.server_model, cpu)
        self.client_model = ClientModel(params, self.seed, self.manifest, self.tables)

    def session(self, transport: Any = None, seed: int = 3) -> ClientSession:
        rng = SecretRng.insecure_for_tests(seed)
        return ClientSession(self.client_model, transport or self.engine, cpu, rng, Stats())

    def inputs(self, group: int, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Random rows and their τ."""
        x = np.random.default_rng(seed).standard_normal((rows, self.manifest.groups[group].width)).astype(np.float32)
        return x, cpu.scales(x, target_norm(self.params, row_norms(self.weights[group]).max()))


@pytest.fixture(scope="session")
def pair() -> Pair:
    return Pair(Params.insecure_tiny())


@dataclass
class Call:
    """One call at the transport: its method, arguments and reply (an exception if it raised)."""

    method: str
    args: tuple[Any, ...]
    reply: Any = None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Every call of a client to an engine, in order, as it is made."""
    seen: list[Call] = []
    for method in ("open", "load_epoch", "prepare", "evaluate", "release", "close"):
        monkeypatch.setattr(Engine, method, _recorded(method, getattr(Engine, method), seen))
    return seen


def _recorded(method: str, original: Callable[..., Any], seen: list[Call]) -> Callable[..., Any]:
    def wrapper(engine: Engine, *args: Any) -> Any:
        call = Call(method, args)
        seen.append(call)
        try:
            call.reply = original(engine, *args)
        except Exception as error:
            call.reply = error
            raise
        return call.reply

    return wrapper


@pytest.fixture(scope="module")
def interpreter() -> Iterator[None]:
    """Two repairs of Triton 3.6's interpreter: a scalar as a loop's bound with NumPy 2.4, and the speed of nested calls.

    A call of a device function patches triton.language anew each time, which the launch has done already.
    """
    from triton.runtime import interpreter

    from veil.kernels import cuda

    if not cuda.interpreted():
        yield
        return

    patch_tensor, nested = interpreter._patch_lang_tensor, interpreter.InterpretedFunction.__call__

    def patch(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        ours = self.fn.__module__.startswith("veil.")
        return self.rewrite()(*args, **kwargs) if ours else nested(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(interpreter, "_patch_lang_tensor", patch)
        patches.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield


# A measurement ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny_record(new_model: Callable[[str], Any]) -> Record:
    """What `veil bench` finds on the tiny Llama with tiny parameters, in one process, with plaintext and one link."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "_READ_BYTES", 1 << 20)
        request = run.Request(
            prompt_rows=5,
            new_tokens=3,
            repeats=1,
            plaintext=True,
            links=(Link(rtt_s=0.003, bytes_per_s=1e6),),
            rows=(1, 2, 4),
            params=Params.insecure_tiny(),
        )
        return run.measure(request, lambda stage, done, total: None, Loaded("tiny", "a test", new_model("llama")))
