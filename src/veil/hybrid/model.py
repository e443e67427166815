"""`HybridFHEModel`: a torch model whose chosen layers run on somebody else's machine, encrypted."""

from __future__ import annotations

import torch
from torch import nn

from veil.compile.calibration import calibration_call, calibration_run
from veil.compile.compiler import compile_layers
from veil.hybrid.answers import CheckedAnswers
from veil.hybrid.bundles import Bundles
from veil.hybrid.concrete_names import ConcreteNames, takes_concrete_arguments, takes_concrete_options
from veil.hybrid.generation import Generations
from veil.hybrid.reopening import shortened
from veil.kernels.backend import kernels_for
from veil.params import Params
from veil.progress import Progress
from veil.runtime.acceptance import check_model
from veil.runtime.experts import EXPERT_LEAKS, ExpertLeak
from veil.runtime.modules import find_modules, replace_modules


class HybridFHEModel(Generations, CheckedAnswers, Bundles, ConcreteNames):
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
            calibration_run(forward, args, kwargs),
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

    def close(self) -> None:
        """End the sessions, in process and remote, and forget their keys."""
        self.stop_padding()
        if self._calls.sides is not None:
            self.sides.close()
        if self.fhe_mode in ("execute", "remote"):
            self.set_fhe_mode("torch")
