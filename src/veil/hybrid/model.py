"""`HybridFHEModel`: a torch model whose chosen layers run on somebody else's machine, encrypted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from veil.bundle.compiled import Compiled
from veil.bundle.terms import STRICT, Terms
from veil.client.session import OfflineRows
from veil.client.stats import Stats
from veil.compile.calibration import calibration_call
from veil.compile.compiler import compile_layers
from veil.given import path_given
from veil.hybrid.answers import CheckedAnswers
from veil.hybrid.arguments import check_connecting, checked_hints, checked_rows
from veil.hybrid.calls import ModelCalls
from veil.hybrid.concrete_names import ConcreteNames, takes_concrete_arguments, takes_concrete_options
from veil.hybrid.generation import Generations
from veil.hybrid.reopening import Sample, check_reopens, shortened
from veil.hybrid.sides import Sides
from veil.kernels.backend import kernels_for
from veil.kernels.interface import Kernels
from veil.network.timeouts import Timeouts
from veil.params import Params
from veil.progress import Progress
from veil.runtime.acceptance import check_model
from veil.runtime.concrete import mode_name, split_mode
from veil.runtime.experts import EXPERT_LEAKS, ExpertLeak
from veil.runtime.layers import COPY_REMEDY, RemoteLayer
from veil.runtime.modules import find_modules, replace_modules

if TYPE_CHECKING:
    from veil.client.connection import Address
    from veil.network.link import Link
    from veil.runtime.saved_model import Opened
    from veil.typing import Processor, Tokenizer

MODES = ("torch", "disable", "simulate", "execute", "remote")


class HybridFHEModel(Generations, CheckedAnswers, ConcreteNames):
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
        self.tokenizer: Any = None  # a PreTrainedTokenizerBase where there is one
        self.offline_rows: OfflineRows | None = None
        self.hints: Path | None = None
        self.cancel_check: Callable[[], None] | None = None
        self._layers = layers
        self._calls = ModelCalls(model, layers, expert_leak, self.stats, lambda: self.cancel_check)
        self._address: Address | None = None
        self._link: Link | None = None
        self._sample: Sample | None = None

    def _adopt(self, compiled: Compiled, kernels: Kernels, progress: Progress | None = None) -> Sides:
        calls = self._calls
        calls.sides = Sides(self.model, calls.forward, compiled, kernels, self.stats, calls.follow, progress)
        return calls.sides

    @classmethod
    def _opened(cls, opened: Opened, leak: ExpertLeak, kernels: Kernels, progress: Progress | None = None) -> HybridFHEModel:
        """The model of a client half that was read from disk."""
        hybrid = cls.__new__(cls)
        hybrid._attach(opened.model, opened.layers, leak)
        hybrid.tokenizer = opened.tokenizer
        hybrid._adopt(opened.compiled, kernels, progress)
        return hybrid

    @takes_concrete_options
    def compile_model(
        self,
        x: object,
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
        if self._calls.sides is not None:
            raise RuntimeError("the model is compiled already; make a new HybridFHEModel to compile with other settings")
        kernels, forward = kernels_for(device), self._calls.forward
        args, kwargs = calibration_call(forward, x)
        compiled = compile_layers(
            self.model,
            self._layers,
            lambda: forward(*args, **kwargs),
            n_bits,
            use_dynamic_quantization,
            params or Params.default(),
            progress or (lambda stage, done, total: None),
            fuse_norms,
            kwargs.get("input_ids", next(iter(args), None)),
            trainable,
        )
        self._adopt(compiled, kernels, progress)
        self._sample = shortened((args, kwargs))
        self._calls.watch(compiled, args, kwargs)

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
        from veil.client.connection import Address
        from veil.hybrid.connecting import open_remote, opened_half

        check_connecting(bundle, name, terms, offline_rows, timeouts)
        trust = tls if isinstance(tls, bool) else path_given("tls", tls)
        address = Address(target=server, token=token, tls=trust, allow_no_tls=allow_no_tls)
        timeouts = timeouts or Timeouts()
        folder, opened = opened_half(bundle, address, timeouts, terms)
        hybrid = cls._opened(opened, terms.expert_leak, kernels_for(device))
        hybrid._address, hybrid.offline_rows = address, offline_rows or OfflineRows()
        hybrid.sides.offline_rows = hybrid.offline_rows
        open_remote(hybrid.sides, folder, opened, address, name, timeouts, checked)
        hybrid.set_fhe_mode("remote")
        return hybrid

    def close(self) -> None:
        """End the sessions, in process and remote, and forget their keys."""
        self.stop_padding()
        if self._calls.sides is not None:
            self.sides.close()
        if self.fhe_mode in ("execute", "remote"):
            self.set_fhe_mode("torch")

    # Modes -------------------------------------------------------------------------------------------------------------

    @property
    def fhe_mode(self) -> str:
        """The mode in force."""
        return self._calls.mode

    def set_fhe_mode(self, mode: str) -> None:
        """Choose how remote layers run.

        ``torch``: the float layers. ``disable``: the integer layers in clear. ``simulate``: those plus predicted noise.
        ``execute``: real encryption, client and server as two objects of this process; with the CUDA kernels the client's
        half is where the model is, on the GPU (``model.to("cuda")``) or on this processor. ``remote``: the server that
        `connect` reached. ``execute`` builds the server's hint at its first use, and makes a session with fresh keys.
        """
        mode, passes = _known_mode(mode), self._calls.passes
        with passes.lock:
            if mode != "torch":
                self._prepare(mode)
            passes.mode = mode
            if self._calls.sides is not None:
                router = self.sides.router
                if mode != "torch":
                    router.evaluator = self.sides.evaluator(mode)
                router.candidates = self.sides.candidates(self.fhe_mode)
                if router.stream is not None:
                    router.stream.active = mode != "torch"

    def _prepare(self, mode: str) -> None:
        """Have ready what evaluates in a mode other than ``torch``."""
        sides = self.sides
        sides.offline_rows, sides.hints = checked_rows(self.offline_rows), checked_hints(self.hints)
        sides.evaluator(mode)

    def __call__(self, *args: object, fhe: str | None = None, **kwargs: object) -> Any:
        """One forward pass, in mode ``fhe`` if given: of this call alone, whatever other threads do."""
        inputs, mode = split_mode(args, fhe)
        if mode is None:
            return self.model(*inputs, **kwargs)
        with self.mode_of_call(mode):
            return self.model(*inputs, **kwargs)

    @contextmanager
    def mode_of_call(self, mode: str | Enum) -> Iterator[None]:
        """Calls of the model inside the block, in this thread, are in ``mode``, whatever `set_fhe_mode` chose."""
        name, passes = _known_mode(mode), self._calls.passes
        if name != "torch":
            with passes.lock:
                self._prepare(name)
        with passes.chosen(name):
            yield

    # A bundle on disk ----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, tokenizer: Tokenizer | Processor | None = None) -> None:
        """Write the bundle: ``client/`` and ``server/`` under ``path`` (a new or empty folder).

        What was written is opened and tried. Raises `BundleError` for a model that would not be the same from disk.
        """
        from veil.runtime import saved_model

        sides, folder = self.sides, path_given("path", path)
        sides.hints = checked_hints(self.hints)
        self._calls.check_weights()
        sides.need_engine()
        saved_model.save(folder, sides.compiled, sides.tables, self.model, tokenizer or self.tokenizer)
        try:
            check_reopens(self, folder / "client", self._sample)
        except BaseException:
            saved_model.remove(folder)
            raise

    def reopened(self, opened: Opened) -> HybridFHEModel:
        """A client half that was read from disk, with this model's weights for it, to compare the two."""
        sides = self.sides
        compiled = replace(opened.compiled, weights=sides.compiled.weights)
        moved = replace(opened, model=opened.model.to(next(self.model.parameters()).device), compiled=compiled)
        hybrid = self._opened(moved, "none", sides.server_kernels)
        hybrid.sides.share_weights(sides)
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
        hybrid = cls._opened(opened, terms.expert_leak, kernels_for(device), progress)
        hybrid.sides.tables = opened.tables
        hybrid.set_fhe_mode("disable")
        return hybrid

    def _forget_weights(self) -> None:
        self.sides.forget_weights()
        self._calls.unwatch_weights()

    def __copy__(self) -> HybridFHEModel:
        raise TypeError(COPY_REMEDY)

    def __deepcopy__(self, memo: object) -> HybridFHEModel:
        raise TypeError(COPY_REMEDY)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """It holds keys and sessions, which are not pickled."""
        raise TypeError(COPY_REMEDY)


def _known_mode(mode: object) -> str:
    name = str(mode_name(mode))
    if name not in MODES:
        raise ValueError(f"mode is {name!r}, expected one of {', '.join(MODES)}")
    return name
