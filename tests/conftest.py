"""Models small enough to make in a moment, the two halves of the scheme, and a client and a server, shared by the tests."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
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

from bench import ports
from veil import noise
from veil.bundle.client_half import ClientModel
from veil.bundle.constants import GroupConstants, row_norms, scalings_of, target_norm
from veil.bundle.manifest import Group, Layer, Manifest
from veil.bundle.server_half import ServerModel
from veil.client.session import ClientSession
from veil.client.stats import Stats
from veil.crypto import public
from veil.crypto.batch import BatchMaker, RowBatch
from veil.crypto.hint import HintRows, ServerHint
from veil.kernels.backend import kernels_for
from veil.kernels.interface import Kernels
from veil.kernels.ring import ring_of
from veil.params import Params
from veil.random import SecretRng
from veil.seed import PublicSeed
from veil.server.engine import Engine
from veil.server.local import LocalServer

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
def own_port() -> int:
    """A port to listen on, and again after that; the next one, which `veil serve` takes for rows, is free as well."""
    return ports.own_port(2)


@pytest.fixture
def refusing_port() -> Iterator[int]:
    """A port where every connection is refused: nobody listens, and nobody can, since the test has it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])


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


class OpenRng(SecretRng):
    """Repeatable randomness that remembers the secrets it gave, for tests that look behind the scheme."""

    drawn: list[np.ndarray]

    def ternary(self, count: int) -> Any:
        values = super().ternary(count)
        self.drawn.append(values)
        return values


class Scheme:
    """Both halves of the scheme on random weights: one hint of two groups, and ``count`` prepared batches.

    The slots of the second group begin within a block and go over a tile's edge; neither width is whole ring elements.
    """

    segment = "body"

    def __init__(
        self, params: Params, count: int, rows: list[int], *, seed: int = 1, kernels: Kernels | None = None
    ) -> None:
        self.params, self.ring, self.count, self.rows = params, ring_of(params), count, rows
        self.kernels = kernels or kernels_for("cpu")
        self.rng, self.draw = OpenRng.insecure_for_tests(seed), np.random.default_rng(seed)
        self.rng.drawn = []  # type: ignore[attr-defined]
        self.seed = PublicSeed(bytes([seed]) * 32)
        self.widths = [params.n // 2 + 3, params.n // 8 + 5]
        sizes = list(zip(self.rows, self.widths, strict=True))
        self.weights = [self.draw.integers(-127, 128, size, dtype=np.int8) for size in sizes]
        loaded = self.kernels.load_weights(self.weights)
        parts = [HintRows(group, weights) for group, weights in enumerate(loaded)]
        self.hint = ServerHint.build(params, self.seed, {self.segment: parts}, self.kernels)
        self.tables = self.hint.public_tables(self.seed, params)
        slots = {self.segment: sum(self.rows)}
        self.maker = BatchMaker(params, self.seed, self.widths, slots, self.tables, self.kernels, self.rng)
        self.uploads, self.batches = self.maker.make(range(count), [self.segment])
        self.points = self.kernels.decode_batches(self.uploads, self.ring)
        self.h = self.hint.prepare(self.points, [self.segment])[self.segment]
        drawn = self.rng.drawn  # type: ignore[attr-defined]
        self.secrets = list(drawn[0].reshape(count, params.k, params.m).astype(np.int64))
        self.keys = list(drawn[1].reshape(count, params.N).astype(np.int64))

    def slots(self, group: int) -> slice:
        first = sum(self.rows[:group])
        return slice(first, first + self.rows[group])

    def pads(self, batch: RowBatch, group: int) -> np.ndarray:
        """A batch's pads for one group's inputs [T, width]."""
        first = self.maker.group_start(group)
        return self.kernels.to_numpy(batch.pads)[:, first : first + self.widths[group]]

    def inner_product(self, group: int, number: int) -> np.ndarray:
        """``A·s`` of a batch's secret [T, width], by the schoolbook product, as exact integers."""
        params = self.params
        polynomials = public.inner_polynomials(self.seed, params, group, self.widths[group]).astype(np.int64)
        sums = [
            np.asarray(sum(negacyclic(own[i], self.secrets[number][i]) for i in range(params.k))).reshape(params.T, params.r)
            for own in polynomials
        ]
        return np.concatenate(sums, axis=1)[:, : self.widths[group]]


def negacyclic(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The schoolbook product modulo X^n + 1, in the operands' own integers."""
    degree = len(left)
    full = np.convolve(left, right)
    full[: degree - 1] -= full[degree:]
    return full[:degree]


@pytest.fixture(scope="session")
def tiny_scheme() -> Scheme:
    """Four batches at degrees 32 and 128, 17 blocks of slots; do not write to it."""
    return Scheme(Params.insecure_tiny(), 4, [39, 227])


@pytest.fixture(scope="session")
def default_scheme() -> Scheme:
    """Four batches with the real parameters, 17 blocks of slots; do not write to it."""
    return Scheme(Params.default(), 4, [39, 500])


@pytest.fixture(scope="session")
def schoolbook() -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return negacyclic


# Client and server ----------------------------------------------------------------------------------------------------


def _layer(name: str, width: int, rows: int) -> Layer:
    return Layer(name, "linear", width, rows, 8, False)


MANIFEST = Manifest(
    (
        Group((_layer("q", 70, 30), _layer("k", 70, 21)), "body"),
        Group((_layer("up", 64, 300),), "body", input_bits=23, result_bits=15),
        Group((_layer("head", 70, 90),), "head", input_bits=25, result_bits=17),
    )
)
"""Two body groups, one of them shared by two layers, and a head; the body has more slots than a tile of tiny blocks."""


class Pair:
    """A server model, its engine, and what a client needs; sessions keep tests apart."""

    def __init__(self, params: Params) -> None:
        self.params, self.manifest, self.seed = params, MANIFEST, PublicSeed(bytes(range(32)))
        self.kernels = kernels_for("cpu")
        draw = np.random.default_rng(5)
        sizes = [(group.rows, group.width) for group in self.manifest.groups]
        self.weights = tuple(draw.integers(-127, 128, size, dtype=np.int8) for size in sizes)
        self.server_model = ServerModel(params, self.seed, self.manifest, self.weights)
        self.engine = Engine.build(self.server_model, self.kernels)
        self.server = LocalServer(self.engine)
        tables = self.engine.hint.public_tables(self.seed, params)
        self.client_model = ClientModel(params, self.seed, self.manifest, tables)
        constants = [
            GroupConstants(np.ones(len(own), np.float32), np.zeros(len(own), np.float32), float(row_norms(own).max()))
            for own in self.weights
        ]
        self.scalings = scalings_of(constants, params, self.kernels)

    def session(self, transport: Any = None, seed: int = 3, **options: Any) -> ClientSession:
        rng = SecretRng.insecure_for_tests(seed)
        other = transport or self.server
        return ClientSession(self.client_model, other, self.kernels, self.scalings, rng, Stats(), **options)

    def inputs(self, group: int, rows: int, seed: int = 0) -> np.ndarray:
        """Random rows."""
        width = self.manifest.groups[group].width
        return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)

    def errors(self, group: int, x: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """What a group's outputs are off the exact integer product, in predicted standard deviations."""
        info, norms = self.manifest.groups[group], row_norms(self.weights[group])
        rows = x.astype(np.float64)
        tau = target_norm(self.params, norms.max()) / np.sqrt((rows**2).sum(axis=1, keepdims=True))
        exact = np.rint(rows * tau) @ self.weights[group].T.astype(np.float64)
        bits = noise.WireBits(info.input_bits, info.result_bits)
        return (outputs * tau - exact) / np.sqrt(noise.result(self.params, norms, bits))


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
    """Every call of a client to a server in process, in order, as it is made."""
    seen: list[Call] = []
    for method in ("open", "prepare", "evaluate", "release", "close"):
        monkeypatch.setattr(LocalServer, method, _recorded(method, getattr(LocalServer, method), seen))
    return seen


def _recorded(method: str, original: Callable[..., Any], seen: list[Call]) -> Callable[..., Any]:
    def wrapper(server: LocalServer, *args: Any) -> Any:
        call = Call(method, args)
        seen.append(call)
        try:
            call.reply = original(server, *args)
        except Exception as error:
            call.reply = error
            raise
        return call.reply

    return wrapper


@pytest.fixture(params=["reference", "cpu", "cuda"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """Each backend; without a GPU, CUDA's needs the `interpreter`."""
    if request.param == "cuda":
        pytest.importorskip("triton", reason="Triton has packages for Linux only")
        from veil.kernels.cuda.backend import CudaKernels

        return CudaKernels()
    return kernels_for(request.param)


@pytest.fixture(scope="module")
def interpreter() -> Iterator[None]:
    """Repairs of Triton 3.6's interpreter, where there is no GPU: a scalar as a loop's bound with NumPy 2.4, and speed.

    No checks of overflow, as on a GPU, and no second patch of triton.language for a call inside a kernel. Nothing where
    there is no Triton: it has packages for Linux only.
    """
    if find_spec("triton") is None:
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    from veil.kernels.cuda.device import interpreted

    if not interpreted():
        yield
        return

    patch_tensor, nested = interpreter._patch_lang_tensor, interpreter.InterpretedFunction.__call__
    scalar_type, options = lru_cache(maxsize=None)(interpreter._get_np_dtype), interpreter.interpreter_builder.options

    def patch(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        ours = self.fn.__module__.startswith("veil.")
        return self.rewrite()(*args, **kwargs) if ours else nested(self, *args, **kwargs)

    def numpy_type(kind: Any) -> Any:
        kind = kind.element_ty if isinstance(kind, tl.block_type) else kind
        return np.dtype(np.uint64) if isinstance(kind, tl.pointer_type) else scalar_type(kind)

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(interpreter, "_patch_lang_tensor", patch)
        patches.setattr(interpreter.InterpretedFunction, "__call__", call)
        patches.setattr(interpreter, "_get_np_dtype", numpy_type)
        object.__setattr__(options, "sanitize_overflow", False)
        yield
        object.__setattr__(options, "sanitize_overflow", True)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where both halves compute: on the processor and, where there is one, on a GPU."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return str(request.param)
