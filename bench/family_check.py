"""One architecture tried: every linear layer remote, each mode, generation, a bundle on disk. Runs as a process of its own.

``python bench/family_check.py`` reads model types from standard input, a line each, and answers each with a line of JSON.
"""

from __future__ import annotations

import copy
import json
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.family_record import Family
from bench.small_models import NotBuilt, architectures, small_model
from veil import HybridFHEModel, linear_modules
from veil.bundle.terms import Terms
from veil.errors import VeilError
from veil.params import Params
from veil.runtime.experts import is_experts
from veil.runtime.layers import kind_of

PARAMS = Params.insecure_tiny(signal_db=60.0)
TERMS = Terms(no_cryptography=True)
LEAST_DB = {"layer": 20.0, "quantized": 15.0, "encrypted": 25.0}
"""Signal to noise below which something else than rounding is at work: of a layer, and of the output."""

TOKENS = 3
LIMIT_S = 120
"""Seconds of processor time for one architecture."""

_MOST_LEFT_OUT = 40


class Wrong(Exception):
    """A silent difference."""


class TooLarge(Exception):
    """A model that takes longer than one may here."""


def examine(kind: str, names: tuple[str, ...]) -> Family:
    """Try one architecture; nothing is raised."""
    start, found = time.perf_counter(), Family(kind=kind)
    try:
        model, inputs = small_model(kind, names)
        _output(model, inputs)
    except (NotBuilt, Wrong, TooLarge, MemoryError) as error:
        return replace(found, reason=str(error), seconds=time.perf_counter() - start)
    found.model = type(model).__name__
    found.parameters = sum(parameter.numel() for parameter in model.parameters())
    linears = [module for module in model.modules() if kind_of(module) in ("linear", "conv1d") or is_experts(module)]
    found.linear_layers = len(linears)
    if not linears:
        return replace(found, verdict="no layer", seconds=time.perf_counter() - start)
    try:
        _try(model, inputs, found)
        found.verdict = "works"
    except (TooLarge, MemoryError) as error:
        found.verdict, found.reason = "not built", f"too large to be tried by the script: {_line(error)}"
    except Exception as error:
        found.verdict, found.reason = _judged(error), _line(error)
        if found.verdict == "fails":
            traceback.print_exc(file=sys.stderr)
    return replace(found, seconds=time.perf_counter() - start)


def _try(model: nn.Module, inputs: dict[str, torch.Tensor], found: Family) -> None:
    exact = _output(model, inputs)
    hybrid = _compiled(model, inputs, found)
    found.remote_layers = len(hybrid.module_names)
    remote = {id(p): p.numel() for layer in hybrid.remote_modules.values() if layer.inner for p in layer.inner.parameters()}
    found.remote_share = sum(remote.values()) / max(found.parameters, 1)
    hybrid.set_fhe_mode("torch")
    if not torch.equal(_output(hybrid.model, inputs), exact):
        raise Wrong("mode torch changes the output")
    watch = _Watch(hybrid)
    outputs = {}
    for mode in ("torch", "disable", "execute"):
        hybrid.set_fhe_mode(mode)
        with watch.during(mode):
            outputs[mode] = _output(hybrid.model, inputs)
    watch.check(found)
    found.quantized_db = _decibels(exact, outputs["disable"])
    found.encrypted_db = _decibels(outputs["disable"], outputs["execute"])
    _check_output(hybrid, inputs, exact, found)
    _generate(hybrid, inputs, found)
    hybrid.set_fhe_mode("disable")
    _bundle(hybrid, inputs, outputs["disable"], found)


def _compiled(model: nn.Module, inputs: dict[str, torch.Tensor], found: Family) -> HybridFHEModel:
    """Compiled with every linear layer, but those that veil says to leave out."""
    names = linear_modules(model)
    while True:
        own = copy.deepcopy(model)
        try:
            hybrid = HybridFHEModel(own, names)
            hybrid.compile_model(inputs, params=PARAMS)
            return hybrid
        except ValueError as error:
            named = [name for name in names if name in re.findall(r"[\w.]+", str(error))]
            if not named or len(found.left_out) >= _MOST_LEFT_OUT or len(named) == len(names):
                raise
            found.left_out += named
            found.reason = _line(error)
            names = [name for name in names if name not in named]


class _Watch:
    """Which remote layers are called in each mode, and how far each encrypted output is from the float layer's."""

    def __init__(self, hybrid: HybridFHEModel) -> None:
        self._hybrid = hybrid
        self.called: dict[str, dict[str, int]] = {}
        self.worst: tuple[float, str] = (float("inf"), "")

    def during(self, mode: str) -> Any:
        """Watch inside a with block."""
        from contextlib import contextmanager

        @contextmanager
        def watching() -> Any:
            counts = self.called.setdefault(mode, {})
            handles = [
                layer.register_forward_hook(self._hook(name, counts, mode)) for name, layer in self._hybrid._layers.items()
            ]
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()

        return watching()

    def _hook(self, name: str, counts: dict[str, int], mode: str) -> Callable[..., None]:
        def hook(layer: Any, args: Any, kept: Any) -> None:
            if layer.router is not None and layer.router.rehearsed is not None:
                return  # a pass of zeros, of which nothing is sent
            counts[name] = counts.get(name, 0) + 1
            if mode == "execute" and layer.kind != "embedding" and args:
                self.worst = min(self.worst, (_decibels(layer.inner(args[0]), kept) or 999.0, name))

        return hook

    def check(self, found: Family) -> None:
        """Raise `Wrong` for a layer that is not asked, or answers something else."""
        found.called = len(self.called["execute"])
        missing = [name for name in self.called["torch"] if name not in self.called["execute"]]
        if missing:
            raise Wrong(f"{len(missing)} layers are called in float and not encrypted, such as {missing[0]}")
        if self.worst[1]:
            found.layer_db = self.worst[0] if self.worst[0] < 999 else None
        if self.worst[0] < LEAST_DB["layer"]:
            raise Wrong(f"{self.worst[1]} has a signal to noise of {self.worst[0]:.1f} dB")


def _check_output(hybrid: HybridFHEModel, inputs: dict[str, torch.Tensor], exact: torch.Tensor, found: Family) -> None:
    """Outputs may be as far from float as the same noise in float layers takes them, where choices flip."""
    low = [name for name in ("quantized", "encrypted") if (getattr(found, f"{name}_db") or 99.0) < LEAST_DB[name]]
    if not low:
        return
    hybrid.set_fhe_mode("torch")
    db = min(found.layer_db or 40.0, 40.0)

    def disturb(layer: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
        return out + torch.randn_like(out) * out.std() * 10 ** (-db / 20)

    handles = [layer.register_forward_hook(disturb) for layer in hybrid.remote_modules.values()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rough = [_decibels(exact, _output(hybrid.model, inputs, seed)) or 99.0 for seed in range(3)]
    for handle in handles:
        handle.remove()
    measured = min(getattr(found, f"{name}_db") for name in low)
    if measured < min(rough) - 10:
        raise Wrong(f"the output has {measured:.1f} dB, and {min(rough):.1f} dB with the same noise in float layers")
    found.reason = found.reason or f"choices flip: {min(rough):.0f} dB with noise of {db:.0f} dB in float layers"


def _generate(hybrid: HybridFHEModel, inputs: dict[str, torch.Tensor], found: Family) -> None:
    model: Any = hybrid.model
    can = getattr(model, "can_generate", None)
    if not callable(can) or not can():
        return
    settings: dict[str, Any] = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "num_beams": 1}
    settings |= {"return_dict_in_generate": True, "output_logits": True}
    given = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}

    def run(mode: str) -> Any:
        hybrid.set_fhe_mode(mode)
        torch.manual_seed(0)
        return model.generate(**{name: value.clone() for name, value in given.items()}, **settings)  # some write into them

    try:
        exact = run("torch")
    except Exception as error:
        found.generates = f"not in float either ({_line(error)[:80]})"
        return
    clear, encrypted = run("disable"), run("execute")
    if not isinstance(getattr(exact, "logits", None), tuple) or not exact.logits:
        found.generates = "yes"
        return
    for name, first, second, least in (
        ("disable against torch", exact, clear, LEAST_DB["quantized"]),
        ("execute against disable", clear, encrypted, LEAST_DB["encrypted"]),
    ):
        db = _decibels(first.logits[0], second.logits[0])
        if db is not None and db < least and not found.reason:
            raise Wrong(f"generate: {name} has {db:.1f} dB in its first token")
    if len(exact.logits) != len(encrypted.logits):
        raise Wrong(f"generate: {len(encrypted.logits)} tokens, {len(exact.logits)} in float")
    found.generates = "yes"


def _bundle(hybrid: HybridFHEModel, inputs: dict[str, torch.Tensor], clear: torch.Tensor, found: Family) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            hybrid.save(Path(folder) / "bundle")
        except (VeilError, ValueError, TypeError) as error:
            if _judged(error) == "fails":
                raise
            found.bundle = f"refused: {_line(error)}"
            return
        opened = HybridFHEModel.load(Path(folder) / "bundle", terms=TERMS)
        again = _output(opened.model, inputs)
    db = _decibels(clear, again)
    if clear.shape != again.shape or (db is not None and db < 60 and not torch.allclose(clear, again, atol=1e-4, rtol=1e-4)):
        raise Wrong(f"the bundle from disk answers otherwise ({db or 0.0:.1f} dB)")
    found.bundle = "same"


def _output(model: nn.Module, inputs: dict[str, torch.Tensor], seed: int = 0) -> torch.Tensor:
    """The first tensor of numbers in what a pass gives."""
    torch.manual_seed(seed)
    with torch.no_grad():
        rest = [model(**inputs)]
    while rest:
        part = rest.pop(0)
        if isinstance(part, torch.Tensor):
            if part.is_floating_point() and part.numel() > 1 and bool(torch.isfinite(part).any()):
                return torch.nan_to_num(part.float(), nan=0.0, posinf=0.0, neginf=0.0).clone()
        elif isinstance(part, dict):
            rest = list(part.values()) + rest
        elif isinstance(part, list | tuple):
            rest = list(part) + rest
    raise Wrong("the output has no tensor of numbers")


def _decibels(signal: torch.Tensor, other: torch.Tensor) -> float | None:
    """Signal to noise; None where there is nothing to compare."""
    if signal.shape != other.shape:
        return -99.0
    power, error = float(signal.double().pow(2).mean()), float((signal - other).double().pow(2).mean())
    if power < 1e-12 or error == 0.0:
        return None
    return float(10 * torch.log10(torch.tensor(power / error)))


def _judged(error: BaseException) -> str:
    """Refused by veil on purpose, or a failure."""
    innermost = traceback.extract_tb(error.__traceback__)[-1].filename
    return "refused" if isinstance(error, VeilError | ValueError | TypeError) and "/veil/" in innermost else "fails"


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:240]
    return text if isinstance(error, Wrong | TooLarge | VeilError | ValueError) else f"{type(error).__name__}: {text}"


def _late(*_: Any) -> None:
    raise TooLarge(f"more than {LIMIT_S} s of processor time")


def main() -> None:
    """Answer until standard input ends."""
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    known, answers = architectures(), sys.stdout
    sys.stdout = sys.stderr
    signal.signal(signal.SIGPROF, _late)
    for line in sys.stdin:
        kind = line.strip()
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
        print(json.dumps(asdict(examine(kind, known[kind]))), file=answers, flush=True)


if __name__ == "__main__":
    main()
