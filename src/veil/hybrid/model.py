"""`HybridFHEModel`: a torch model whose chosen layers run on somebody else's machine, encrypted."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from veil.bundle.client_half import ClientModel
from veil.bundle.compiled import Compiled
from veil.bundle.constants import scalings_of
from veil.bundle.server_half import ServerModel
from veil.bundle.terms import STRICT, Terms
from veil.client.session import ClientSession, OfflineRows, Ready
from veil.client.stats import Stats
from veil.compile.calibration import calibration_call
from veil.compile.compiler import compile_layers, compiled_modules
from veil.crypto.hint import hint_bytes
from veil.errors import NotCompiled
from veil.given import count_given, function_given, one_given, path_given, text_given
from veil.hybrid.arguments import check_connecting, check_speculating
from veil.hybrid.concrete_names import ConcreteNames, takes_concrete_arguments, takes_concrete_options
from veil.hybrid.reopening import Sample, shortened
from veil.hybrid.token_graph import TokenGraph
from veil.kernels.backend import kernels_for
from veil.kernels.interface import Array, Kernels, Scaling
from veil.kernels.warm import warm_up
from veil.network.timeouts import Timeouts
from veil.params import Params
from veil.progress import Progress
from veil.random import SecretRng
from veil.runtime.acceptance import check_model
from veil.runtime.adapters import base_of
from veil.runtime.concrete import mode_name, split_mode
from veil.runtime.coverage import Coverage, signature_of
from veil.runtime.evaluators import ClearLayers, Evaluator, SimulatedLayers
from veil.runtime.experts import EXPERT_LEAKS, ExpertLeak, open_layers
from veil.runtime.layers import COPY_REMEDY, RemoteLayer
from veil.runtime.modules import find_modules, replace_modules
from veil.runtime.pace import Pace
from veil.runtime.padding import Padding
from veil.runtime.passes import Forward, Passes, refuse_compiler
from veil.runtime.rehearsal import pictured_tokens
from veil.runtime.residual import ResidualStream
from veil.runtime.router import Router
from veil.runtime.traffic import Traffic, padded_most
from veil.runtime.weight_changes import Fingerprints
from veil.server.engine import Engine
from veil.server.local import LocalServer

if TYPE_CHECKING:
    from veil.checks.candidates import ExactCandidates
    from veil.checks.files import Vectors
    from veil.checks.rows import AnswerChecks
    from veil.network.link import Link
    from veil.runtime.saved_model import Opened
    from veil.runtime.speculation import Speculation

_ROW_S = 0.05
"""Seconds of a row, as believed before the first pass."""

MODES = ("torch", "disable", "simulate", "execute", "remote")


class HybridFHEModel(ConcreteNames):
    """A torch model with remote layers, under the names that Concrete ML's users know.

    ``model`` is changed in place: each module of ``module_names`` (one name or several, of nn.Linear, transformers'
    Conv1D, nn.Embedding or a mixture's experts) is replaced by a `RemoteLayer`. Then ``compile_model``, ``set_fhe_mode``
    and use ``model``. ``expert_leak="reveal"`` evaluates only the experts that a row is routed to, and so shows the server
    which they are; ``"none"`` evaluates all. Raises `TypeError` for a model that is not an ``nn.Module``, `ValueError` for
    a name that does not fit.

    ``offline_rows``, set before the first ``execute``, has rows made ready in the background in that mode too. ``hints``,
    set before it, is a folder where the server's hint is kept for the next start. ``cancel_check`` is
    called before every evaluation of a remote layer; what it raises ends the forward pass.
    """

    @takes_concrete_arguments
    def __init__(
        self, model: nn.Module, module_names: str | list[str] | tuple[str, ...], *, expert_leak: ExpertLeak = "none"
    ) -> None:
        check_model(model)
        names = [module_names] if isinstance(module_names, str) else list(module_names)
        if expert_leak not in EXPERT_LEAKS:
            raise ValueError(f"expert_leak is {expert_leak!r}, expected one of {', '.join(EXPERT_LEAKS)}")
        self._attach(model, replace_modules(model, find_modules(model, names, expert_leak), expert_leak), expert_leak)

    def _attach(self, model: nn.Module, layers: dict[str, RemoteLayer], expert_leak: ExpertLeak) -> None:
        self.model = model
        self.module_names = list(layers)
        self.stats = Stats()
        self.tokenizer: Any = None
        self._layers = layers
        self._open_layers = open_layers(model, layers, expert_leak)
        self._traffic: Traffic | None = None
        self._padding: Padding | None = None
        self._compiled: Compiled | None = None
        self._engine: Engine | None = None
        self._weights: Sequence[Array] | None = None
        self._tables: dict[str, Any] = {}
        self._session: ClientSession | None = None
        self._remote: ClientSession | None = None
        self._router: Router | None = None
        self._kernels: Kernels
        self._scalings: list[Scaling]
        self._graph: TokenGraph | None = None
        self._vectors: Vectors | None = None
        self._address: Any = None
        self._link: Link | None = None
        self._evaluators: dict[str, Evaluator] = {}
        self._fingerprints: Fingerprints | None = None
        self._coverage: Coverage | None = None
        self._sample: Sample | None = None
        self._generating = False
        self._progress: Progress | None = None
        self.offline_rows: OfflineRows | None = None
        self.hints: Path | None = None
        self.cancel_check: Callable[[], None] | None = None
        generation = getattr(model, "generation_config", None)
        if generation is not None:
            generation.disable_compile = True  # torch.compile cannot look into a remote layer
        self._entries = _entries(model)
        self._passes = Passes(model, layers, self._around_pass, self._planned, frozenset(self._entries))
        self._model_forward = model.forward
        model.forward = _like(model.forward, self._forward)
        if callable(getattr(model, "generate", None)):
            self._model_generate: Callable[..., Any] = model.generate  # type: ignore[assignment]
            model.generate = _like(self._model_generate, self._generate)  # type: ignore[assignment]

    # Compiling ---------------------------------------------------------------------------------------------------------

    @takes_concrete_options
    def compile_model(
        self,
        x: Any,
        n_bits: int | dict[str, int] = 8,
        use_dynamic_quantization: bool = True,
        *,
        params: Params | None = None,
        device: str | torch.device = "auto",
        progress: Progress | None = None,
        fuse_norms: str = "off",
        trainable: bool = False,
    ) -> None:
        """Calibrate on ``x`` and quantize the remote layers to ``n_bits``.

        ``x`` is a tensor or an array, a tuple of inputs, or a dict of keyword arguments, as tokenizers return it.
        ``n_bits`` is 2 to 8, or a dict by module name (others: 8). Without dynamic quantization one scale per layer is
        calibrated on ``x`` and longer inputs are clipped to it. From 16 rows of ``x`` on, what it shows of the inputs makes
        weights of the same bits lose less, and enters both halves: give ordinary text of a few hundred tokens and nothing
        private; fewer rows are used for the order of the layers only. ``progress(stage, done, total)`` is told of long work,
        now and later. ``fuse_norms`` halves the round trips of a model over a network, for about twice the weights: ``auto``
        fuses the norms that can be, ``on`` raises `ValueError` unless all can; outliers are balanced by what ``x`` shows,
        so ``x`` should be ordinary text of a hundred tokens or more. ``trainable`` adds the transposed weights, so that
        ``loss.backward()`` goes through remote layers; the server needs more memory. Raises `RuntimeError` when called
        twice, `ValueError` for what does not fit.
        """
        if self._compiled is not None:
            raise RuntimeError("the model is compiled already; make a new HybridFHEModel to compile with other settings")
        self._progress = progress
        kernels = kernels_for(device)
        args, kwargs = calibration_call(self._model_forward, x)
        compiled = compile_layers(
            self.model,
            self._layers,
            lambda: self._model_forward(*args, **kwargs),
            n_bits,
            use_dynamic_quantization,
            params or Params.default(),
            progress or (lambda stage, done, total: None),
            fuse_norms,
            kwargs.get("input_ids", next(iter(args), None)),
            trainable,
        )
        self._adopt(compiled, kernels)
        self._sample = shortened((args, kwargs))
        signature = signature_of(self._model_forward, args, kwargs)
        self._coverage = Coverage(self.model, self._layers, compiled.manifest, compiled.asked, signature)
        self._fingerprints = Fingerprints(compiled_modules(self.model, self._layers, compiled.manifest))

    def _adopt(self, compiled: Compiled, kernels: Kernels) -> None:
        self._server_kernels = kernels
        self._compiled = compiled
        self._choose_client()

    def _choose_client(self) -> None:
        """Put the client's half where the model is: on the GPU beside the server's half, or on this processor."""
        compiled, server = self._need_compiled(), self._server_kernels
        on_gpu = server.name == "cuda" and self._remote is None and _is_on_gpu(self.model)
        kernels = server if on_gpu or server.name != "cuda" else kernels_for("cpu")
        if self._router is not None and kernels is self._kernels:
            return
        if self._session is not None:
            if self._graph is not None:
                self._graph.close()
            self._session.close()
            self._session = self._graph = None
        self._kernels = kernels
        self._weights = None
        if kernels.name == "cpu":
            warm_up(self._progress)
        self._scalings = scalings_of(compiled.constants, compiled.params, kernels)
        stream = ResidualStream(self.model, compiled.manifest)
        self._router = self._passes.current = Router(compiled.manifest, compiled.constants, kernels, stream)
        self._evaluators.clear()
        self._traffic = Traffic(self._router, self._open_layers, pictured_tokens(getattr(self.model, "config", None)))
        self._traffic.padding = self._padding
        self.stats.kernels = server.name if kernels is server else f"client {kernels.name}, server {server.name}"

    @property
    def params(self) -> Params:
        """The parameter set in use."""
        return self._need_compiled().params

    @property
    def manifest(self) -> Any:
        """Groups, slots and segments of the compiled model."""
        return self._need_compiled().manifest

    @property
    def fingerprint_of(self) -> str:
        """What tells this compiled model from others: its parameters, public seed and layers, as hexadecimal SHA-256."""
        from veil.bundle.fingerprint import fingerprint_of

        compiled = self._need_compiled()
        return fingerprint_of(compiled.params, compiled.seed, compiled.manifest)

    @property
    def padding(self) -> Padding | None:
        """The steps that a server sees in place of lengths, None for none: set before a generation.

        Prompts take more rows, of zeros, and answers go on in passes of zeros after they ended, also where they failed or
        nobody waits any more. Of ``generate``, ``max_new_tokens`` bounds them.
        """
        return self._padding

    @padding.setter
    def padding(self, padding: Padding | None) -> None:
        one_given("padding", padding, Padding, "Padding(step=64)", optional=True)
        self._padding = padding
        if self._traffic is not None:
            self._traffic.padding = padding
            self._traffic.stopping.clear()

    def stop_padding(self, stop: bool = True) -> None:
        """End answers that go on in passes of zeros, from any thread, and let none begin; for who ends the session."""
        if self._traffic is not None:
            (self._traffic.stopping.set if stop else self._traffic.stopping.clear)()

    @property
    def unfused(self) -> tuple[str, ...]:
        """Why norms were not fused that `compile_model` was asked to fuse; empty for a bundle from disk."""
        return self._need_compiled().unfused

    @property
    def is_trainable(self) -> bool:
        """Whether it was compiled for training."""
        return bool(self._need_compiled().manifest.back)

    @property
    def is_fused(self) -> bool:
        """Whether it was compiled with fused norms."""
        return any(group.fusion is not None for group in self._need_compiled().manifest.groups)

    @property
    def hint_bytes(self) -> int:
        """Memory that the server side needs for its hint, known before it is built."""
        compiled = self._need_compiled()
        return hint_bytes(compiled.params, list(compiled.manifest.segments.values()))

    # A server elsewhere --------------------------------------------------------------------------------------------------

    @classmethod
    def connect(
        cls,
        server: str,
        bundle: str | Path,
        *,
        token: str | None = None,
        tls: bool | str | Path = False,
        name: str | None = None,
        allow_no_tls: bool = False,
        terms: Terms = STRICT,
        offline_rows: OfflineRows | None = None,
        timeouts: Timeouts | None = None,
        device: str | torch.device = "cpu",
        checked: str = "auto",
    ) -> HybridFHEModel:
        """The model of a bundle's client half in mode ``remote``: its remote layers run on the server at ``HOST:PORT``.

        ``tls`` is True for a certificate that the system trusts, or the PEM file of the authority that signed it;
        without TLS the server is on this machine, unless ``allow_no_tls``. ``name`` chooses among the server's bundles.
        ``terms`` say what the half may be and do beyond the defaults, which allow no leak and no weak parameters.
        Rows are made ready in the background as far as ``offline_rows`` says. A half without the public tables fetches them
        from a server that offers them, once. Every answer is checked where ``veil check`` made vectors for the half: always
        with ``checked`` ``require``, if there are some with ``auto``, never with ``off``. Raises `ServerUnreachable`,
        `AccessDenied`, `IncompatibleServer`, `BundleError`, `Unchecked`, and `WrongAnswer` for a server that was caught.
        """
        from veil.bundle.header_file import half_digest
        from veil.checks.choice import chosen_vectors
        from veil.client.caught import CaughtServers
        from veil.client.connection import Address
        from veil.client.remote import RemoteTransport
        from veil.client.tables import fetch_tables
        from veil.runtime import saved_model as bundles

        check_connecting(bundle, name, terms, offline_rows, timeouts)
        address = Address(
            target=server,
            token=token,
            tls=tls if isinstance(tls, bool) else path_given("tls", tls),
            allow_no_tls=allow_no_tls,
        )
        folder = Path(bundle) / "client" if (Path(bundle) / "client").is_dir() else Path(bundle)
        caught = CaughtServers()
        caught.check(address.target)
        fetch_tables(folder, address, timeouts or Timeouts(), terms)
        opened = bundles.load_client(folder, terms)
        hybrid = cls.__new__(cls)
        hybrid._attach(opened.model, opened.layers, terms.expert_leak)
        hybrid.tokenizer = opened.tokenizer
        hybrid._adopt(opened.compiled, kernels_for(device))
        compiled = opened.compiled
        model = ClientModel(compiled.params, compiled.seed, compiled.manifest, opened.tables)
        timeouts = timeouts or Timeouts()
        hybrid._address = address
        half = half_digest(folder)
        hybrid._vectors = chosen_vectors(checked, half, compiled.manifest, folder)
        checks = hybrid._answer_checks(lambda _: caught.add(address.target))
        transport = RemoteTransport(model, address, hybrid._kernels, hybrid.stats, timeouts, half, name)
        hybrid._remote = ClientSession(
            model,
            transport,
            hybrid._kernels,
            hybrid._scalings,
            SecretRng(),
            hybrid.stats,
            offline_rows=offline_rows or OfflineRows(),
            timeouts=timeouts,
            checks=checks,
        )
        hybrid.set_fhe_mode("remote")
        return hybrid

    @property
    def checked_against(self) -> str | None:
        """The model whose weights every answer is checked against; None where answers are unchecked."""
        session = self._active()
        return None if session is None or session.checks is None else session.checks.against

    def check_answers(self, against: str) -> None:
        """Check mode ``execute`` from its first use on, against the weights that are here, called ``against``.

        Raises `RuntimeError` where that mode was used already, `NotCompiled` without weights.
        """
        if self._session is not None:
            raise RuntimeError("mode 'execute' was used already; check_answers comes before it")
        self._vectors = self.sign_vectors(text_given("against", against, "the name of a model"))

    def sign_vectors(self, against: str) -> Vectors:
        """Fresh secret vectors of the weights that are here, called ``against``; `NotCompiled` without weights."""
        from veil.checks.files import Vectors
        from veil.checks.vectors import make_vectors

        compiled = self._need_compiled()
        if compiled.weights is None:
            raise NotCompiled("this needs the weights, and only the client half of the bundle is here")
        rng = SecretRng()
        groups = zip(compiled.manifest.groups, compiled.weights, strict=True)
        return Vectors(against, [make_vectors(group, weights, rng) for group, weights in groups])

    def close(self) -> None:
        """End the sessions, in process and remote, and forget their keys."""
        self.stop_padding()
        for part in (self._graph, self._session, self._remote):
            if part is not None:
                part.close()
        self._session = self._remote = self._graph = None
        self._evaluators.clear()
        if self._mode in ("execute", "remote"):
            self.set_fhe_mode("torch")

    # Modes -------------------------------------------------------------------------------------------------------------

    @property
    def fhe_mode(self) -> str:
        """The mode in force."""
        return self._passes.mode_now

    def set_fhe_mode(self, mode: str) -> None:
        """Choose how remote layers run.

        ``torch``: the float layers. ``disable``: the integer layers in clear. ``simulate``: those plus predicted noise.
        ``execute``: real encryption, client and server as two objects of this process; with the CUDA kernels the client's
        half is where the model is, on the GPU (``model.to("cuda")``) or on this processor. ``remote``: the server that
        `connect` reached. ``execute`` builds the server's hint at its first use, and makes a session with fresh keys.
        """
        mode = _known_mode(mode)
        if mode != "torch":
            self._need_compiled()
            with self._passes.lock:
                evaluator = self._prepared(mode)
                assert self._router is not None
                self._router.evaluator = evaluator
        self._passes.mode = mode
        if self._router is not None:
            self._router.candidates = self._candidates()
            if self._router.stream is not None:
                self._router.stream.active = mode != "torch"

    def _prepared(self, mode: str) -> Evaluator:
        """What evaluates groups in a mode, made at its first use where the model is now."""
        self._choose_client()
        if mode not in self._evaluators:
            if mode in ("disable", "simulate"):
                self._evaluators[mode] = self._clear_layers(simulate=mode == "simulate")
            elif mode == "execute":
                self._session = self._session or self._open_session()
                self._evaluators[mode] = self._session
            elif self._remote is None:
                raise NotCompiled("mode 'remote' needs a server; make the model with HybridFHEModel.connect")
            else:
                self._evaluators[mode] = self._remote
        return self._evaluators[mode]

    def _clear_layers(self, *, simulate: bool) -> ClearLayers:
        compiled, kernels = self._need_compiled(), self._kernels
        if compiled.weights is None:
            raise NotCompiled("modes disable and simulate need the weights, and only the client half of the bundle is here")
        if self._weights is None:
            engine = self._engine if self._engine is not None and self._engine.kernels is kernels else None
            self._weights = kernels.load_weights(compiled.weights) if engine is None else engine.weights
        if not simulate:
            return ClearLayers(compiled.manifest, self._weights, self._scalings, kernels)
        rng = np.random.default_rng()
        return SimulatedLayers(compiled.manifest, self._weights, self._scalings, kernels, compiled.params, rng)

    def reserve(self, rows_body: int = 0, rows_full: int = 0, rows_back: int = 0) -> None:
        """Have rows ready: ``rows_body`` for prompt rows, ``rows_full`` for rows with logits, ``rows_back`` for gradients.

        Whole batches are made.
        """
        session = self._active()
        if session is None:
            raise NotCompiled("rows need a session; call set_fhe_mode('execute') first")
        rows = {"rows_body": rows_body, "rows_full": rows_full, "rows_back": rows_back}
        session.reserve(*(count_given(name, value) for name, value in rows.items()))

    @property
    def link(self) -> Link | None:
        """Round-trip time and bandwidth to the server, measured at first use; None without a server."""
        if self._link is None and self._address is not None:
            from veil.client.link import measure_link

            self._link = measure_link(self._address, Timeouts())
        return self._link

    def speculate(self, draft: Any = "lookup", *, most: int = 16) -> Speculation:
        """Generate several tokens a pass: ``with hybrid.speculate() as options: hybrid.model.generate(..., **options)``.

        ``draft`` is ``lookup`` (what followed the last words where they stood before) or a small transformers model with
        the same vocabulary, which stays on the client. Up to ``most`` tokens are drafted and checked in one set of round
        trips; how many follows from what is accepted and what the passes take. Greedy output is the same as without,
        samples are of the same distribution, one sequence at a time. `ValueError` for another draft.
        """
        from veil.runtime.speculation import Speculation

        if self._padding is not None:
            raise ValueError("draft tokens show how often they were right, whatever the padding; leave out one of the two")
        compiled, session = self._need_compiled(), self._active()
        most = check_speculating(self.model, draft, most)
        fixed_s = len(compiled.manifest.forward) * self.link.rtt_s if self._mode == "remote" and self.link else 0.0
        pace = Pace(fixed_s=fixed_s, row_s=_ROW_S, most=most)
        ready = (lambda: session.ready.tokens) if session is not None else (lambda: most + 1)
        return Speculation(self.model, draft, self.stats, pace, ready)

    def expect(self, prompt_rows: int, new_tokens: int) -> None:
        """Say that a generation of about ``prompt_rows`` rows and up to ``new_tokens`` tokens comes; returns at once.

        In mode ``remote`` its rows are made in the background, the prompt's first, in the memory that `connect` was given;
        a later call replaces an earlier one, so it may follow a prompt as it is typed. It is a hint: rows that
        are not ready are made when they are needed, and in other modes nothing happens. `ValueError` for negative counts.
        """
        prompt_rows, new_tokens = count_given("prompt_rows", prompt_rows), count_given("new_tokens", new_tokens)
        session = self._active()
        if session is not None:
            if self._padding is not None:
                prompt_rows, new_tokens = self._padding.rows(prompt_rows), self._padding.rows(new_tokens)
            session.expect(prompt_rows, new_tokens)

    @property
    def rows_ready(self) -> Ready:
        """Rows that are ready now: ``tokens`` and ``prompt_rows``."""
        session = self._active()
        return session.ready if session is not None else Ready()

    @property
    def last_sent(self) -> bytes:
        """The packed rows that were sent last, as the server got them; empty before the first."""
        session = self._active()
        return b"" if session is None else session.last_sent

    def __call__(self, *args: Any, fhe: str | None = None, **kwargs: Any) -> Any:
        """One forward pass, in mode ``fhe`` if given: of this call alone, whatever other threads do."""
        args, fhe = split_mode(args, fhe)
        if fhe is None:
            return self.model(*args, **kwargs)
        with self.mode_of_call(fhe):
            return self.model(*args, **kwargs)

    @contextmanager
    def mode_of_call(self, mode: str) -> Iterator[None]:
        """Calls of the model inside the block, in this thread, are in ``mode``, whatever `set_fhe_mode` chose."""
        mode = _known_mode(mode)
        if mode != "torch":
            self._need_compiled()
            with self._passes.lock:
                self._prepared(mode)
        with self._passes.chosen(mode):
            yield

    # A bundle on disk ----------------------------------------------------------------------------------------------------

    def __copy__(self) -> HybridFHEModel:
        raise TypeError(COPY_REMEDY)

    def __deepcopy__(self, memo: Any) -> HybridFHEModel:
        raise TypeError(COPY_REMEDY)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """It holds keys and sessions, which are not pickled."""
        raise TypeError(COPY_REMEDY)

    def save(self, path: str | Path, tokenizer: Any = None) -> None:
        """Write the bundle: ``client/`` and ``server/`` under ``path`` (a new or empty folder).

        What was written is opened and tried. Raises `BundleError` for a model that would not be the same from disk.
        """
        from veil.hybrid.reopening import check_reopens
        from veil.runtime import saved_model

        path = path_given("path", path)
        compiled = self._need_compiled()
        self._check_weights()
        self._need_engine()
        saved_model.save(Path(path), compiled, self._tables, self.model, tokenizer or self.tokenizer)
        try:
            check_reopens(self, Path(path) / "client", self._sample)
        except BaseException:
            saved_model.remove(Path(path))
            raise

    def reopened(self, opened: Opened) -> HybridFHEModel:
        """A client half that was read from disk, with this model's weights for it, to compare the two."""
        hybrid = type(self).__new__(type(self))
        hybrid._attach(opened.model.to(next(self.model.parameters()).device), opened.layers, "none")
        hybrid._adopt(replace(opened.compiled, weights=self._need_compiled().weights), self._server_kernels)
        hybrid._weights = self._weights
        return hybrid

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "auto",
        progress: Progress | None = None,
        terms: Terms = STRICT,
    ) -> HybridFHEModel:
        """Open a bundle that `save` wrote: the model in mode ``disable``, its tokenizer as ``tokenizer`` if there is one.

        ``terms`` are those of `connect`.
        """
        from veil.runtime import saved_model

        check_connecting(path, terms=terms)
        opened = saved_model.load(Path(path), terms)
        hybrid = cls.__new__(cls)
        hybrid._attach(opened.model, opened.layers, terms.expert_leak)
        hybrid.tokenizer = opened.tokenizer
        hybrid._progress = progress
        hybrid._adopt(opened.compiled, kernels_for(device))
        hybrid._tables = opened.tables
        hybrid.set_fhe_mode("disable")
        return hybrid

    # Inside --------------------------------------------------------------------------------------------------------------

    def _need_compiled(self) -> Compiled:
        if self._compiled is None:
            raise NotCompiled("the model is not compiled; call compile_model first")
        return self._compiled

    def _need_engine(self) -> Engine:
        if self._engine is None:
            compiled = self._need_compiled()
            if compiled.weights is None:
                raise NotCompiled("this needs the weights, and only the client half of the bundle is here")
            model = ServerModel(compiled.params, compiled.seed, compiled.manifest, compiled.weights)
            hints = None if self.hints is None else path_given("hints", self.hints)
            self._engine = Engine.build(model, self._server_kernels, self._progress, hints=hints)
            self._tables = self._tables or self._engine.hint.public_tables(compiled.seed, compiled.params)
        return self._engine

    def _open_session(self) -> ClientSession:
        one_given("offline_rows", self.offline_rows, OfflineRows, "OfflineRows(tokens=48)", optional=True)
        engine, compiled = self._need_engine(), self._need_compiled()
        model = ClientModel(compiled.params, compiled.seed, compiled.manifest, self._tables)
        server = LocalServer(engine)
        checks = self._answer_checks()
        session = ClientSession(
            model,
            server,
            self._kernels,
            self._scalings,
            SecretRng(),
            self.stats,
            offline_rows=self.offline_rows,
            checks=checks,
        )
        if self._kernels.name == "cuda" and checks is None:
            assert self._router is not None
            self._graph = TokenGraph(self._model_forward, self._router, session, server)
        return session

    def _candidates(self) -> ExactCandidates | None:
        """Where answers are checked, what computes the likeliest logits here."""
        from veil.checks.candidates import exact_candidates

        checked = self.checked_against is not None
        return exact_candidates(self.model, self._need_compiled().manifest) if checked else None

    def _answer_checks(self, caught: Callable[[str], None] | None = None) -> AnswerChecks | None:
        from veil.checks.rows import AnswerChecks

        vectors, compiled = self._vectors, self._need_compiled()
        if vectors is None:
            return None
        return AnswerChecks(vectors.groups, compiled.manifest, compiled.params, self._kernels, vectors.against, caught)

    def _active(self) -> ClientSession | None:
        """The session of the mode in force."""
        return self._remote if self._mode == "remote" else self._session if self._mode == "execute" else None

    def _asks_last_row(self, arguments: dict[str, Any]) -> bool:
        """Whether a pass wants the logits of the last row of each sequence, and nothing else of it but the cache."""
        asked = arguments.get("logits_to_keep")
        config = getattr(self.model, "config", None)
        shown = ("output_hidden_states", "output_attentions")
        return (
            isinstance(asked, int)
            and asked == 1
            and arguments.get("labels") is None
            and not any(arguments.get(name) or getattr(config, name, False) for name in shown)
        )

    @property
    def _on_gpu(self) -> bool:
        return self._router is not None and self._kernels.name == "cuda"

    @property
    def _mode(self) -> str:
        return self._passes.mode_now

    @property
    def _is_training(self) -> bool:
        """Whether gradients may come back through what is called now."""
        return torch.is_grad_enabled() and self.is_trainable

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        if self._mode == "torch":
            return self._model_generate(*args, **kwargs)
        self._check_weights()
        self._generating = True
        try:
            with nullcontext() if self._on_gpu else _one_torch_thread(), self._padded(kwargs):
                return self._model_generate(*args, **kwargs)
        finally:
            self._generating = False

    @contextmanager
    def _padded(self, kwargs: dict[str, Any]) -> Iterator[None]:
        """A generation with these options, in which passes of zeros follow up to the step that padding says."""
        session, traffic, router = self._active(), self._traffic, self._router
        if session is None or router is None or traffic is None or traffic.padding is None:
            yield
            return
        before = router.evaluator

        def begin() -> None:
            router.evaluator = session
            session.begin_forward()

        most = padded_most(self.model, kwargs, traffic.padding)
        try:
            with traffic.generation(most, begin, session.end_forward):
                yield
        finally:
            router.evaluator = before

    def _planned(self, name: str, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a part of the model, or of all of it: what it asks of a server is fixed before, by its shape."""
        if self._active() is None or self._traffic is None or self._is_training or self._traffic.inside:
            return forward(*args, **kwargs)
        return self._traffic.run(self._entries.get(name, name), forward, args, kwargs)

    def _check_weights(self) -> None:
        if self._fingerprints is not None:
            self._fingerprints.check(values=not self._generating)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        passes = self._passes
        if passes.router is None or passes.is_inside:
            return self._model_forward(*args, **kwargs)
        with passes.opened():
            assert passes.router is not None
            training = self._is_training
            passes.router.last_row_only = not training and self._asks_last_row(kwargs)
            graph = self._graph if self._mode == "execute" and not args and not training else None
            result = None if graph is None else graph(kwargs)
            if result is None:
                if "" in self._entries:
                    result = self._planned("", self._model_forward, args, kwargs)
                else:  # a wrapper: the model within is planned
                    result = self._model_forward(*args, **kwargs)
                if self._coverage is not None:
                    signature = functools.partial(signature_of, self._model_forward, args, kwargs)
                    self._coverage.check(passes.asked, passes.entered, signature)
        return result

    @contextmanager
    def _around_pass(self, mode: str, fresh: bool) -> Iterator[None]:
        """Everything that a pass needs beside the model, or a part that goes on with one: see `Passes`."""
        self._check_weights()
        router, session, chosen = self._router, self._active(), self._passes.is_chosen
        assert router is not None
        before, stream, training = (router.evaluator, router.candidates), router.stream, self._is_training
        other = chosen or mode != self._passes.mode or router.evaluator is None
        if other:
            router.evaluator = self._prepared(mode)
            router.candidates = self._candidates()
        router.cancel_check = function_given("cancel_check", self.cancel_check, "a function without arguments")
        if stream is not None:
            stream.active = True
        if fresh:
            router.begin_forward()
            if session is not None:
                session.begin_forward(training)
        start, spent = time.perf_counter(), dict(self.stats.seconds)
        try:
            with nullcontext() if self._on_gpu else _one_torch_thread(), torch.set_grad_enabled(training):
                yield
            if session is not None:
                session.end_forward()
        finally:
            router.last_row_only = False
            if other:
                router.evaluator, router.candidates = before
            if stream is not None:
                stream.active = self._passes.mode != "torch"
        elapsed, seconds = time.perf_counter() - start, self.stats.seconds
        elsewhere = sum(seconds[name] - spent[name] for name in ("wait", "online_server"))
        seconds["client"] += elapsed - elsewhere


def _known_mode(mode: object) -> str:
    name = str(mode_name(mode))
    if name not in MODES:
        raise ValueError(f"mode is {name!r}, expected one of {', '.join(MODES)}")
    return name


def _entries(model: nn.Module) -> dict[str, str]:
    """What traffic calls the parts whose passes make up a generation: the model within its wrappers, and its encoder."""
    base = base_of(model)
    names = {module: name for name, module in reversed(list(model.named_modules()))}
    found = {names.get(base, ""): "forward"}
    if getattr(getattr(base, "config", None), "is_encoder_decoder", False):
        found[names.get(base.get_encoder(), "encoder")] = "encoder"
    return found


def _is_on_gpu(model: nn.Module) -> bool:
    first = next(model.parameters(), None)
    return first is not None and first.is_cuda


def _like(forward: Callable[..., Any], replacement: Callable[..., Any]) -> Callable[..., Any]:
    """``replacement`` with the signature of ``forward``, in which ``generate`` looks for ``logits_to_keep``."""

    @functools.wraps(forward)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        refuse_compiler()
        return replacement(*args, **kwargs)

    return wrapped


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Keep torch's thread pool from spinning on the cores that the kernels use, or a server and other clients."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
