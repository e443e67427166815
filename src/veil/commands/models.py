"""The hybrid models that commands run: compiled here, or with the other half on a server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veil.client.session import Ahead
from veil.commands.kept import content_key, kept_model
from veil.kernels.backend import kernels_for
from veil.model.experts import ExpertLeak
from veil.model.hybrid import HybridFHEModel
from veil.model.modules import select_modules
from veil.model.quiet import quiet
from veil.model.sample import sample_tokens
from veil.model.sources import Source, files_of, load_model
from veil.model.terms import Terms
from veil.progress import Progress

if TYPE_CHECKING:
    from veil.client.connection import Address


def compiled(
    source: Source,
    *,
    bits: int,
    modules: str,
    device: str = "cpu",
    progress: Progress | None = None,
    fold_norms: str = "off",
    expert_leak: ExpertLeak = "none",
) -> HybridFHEModel:
    """Compile a loaded model, on a fixed sample of tokens so that nothing of a prompt enters a bundle."""
    tokens = sample_tokens(source).to(source.model.device)
    sample = {"input_ids": tokens}
    if source.model.config.is_encoder_decoder:
        sample["decoder_input_ids"] = tokens
    names = select_modules(source.model, modules, tell=False)
    hybrid = HybridFHEModel(source.model, module_names=names, expert_leak=expert_leak)
    with quiet():
        hybrid.compile_model(
            sample, n_bits=bits, use_dynamic_quantization=True, device=device, progress=progress, fold_norms=fold_norms
        )
    return hybrid


def opened_model(
    name: str, *, bits: int, modules: str, device: str, progress: Progress, place: str = "cpu"
) -> tuple[HybridFHEModel, str]:
    """The compiled model of a name, from the cache where it was compiled before; and its origin, in words.

    Its tokenizer is ``tokenizer``. Its local layers are on ``place``, cpu or cuda.
    """

    def make() -> tuple[HybridFHEModel, Any, str]:
        source = load_model(name, progress=progress)
        source.model.to(place)
        hybrid = compiled(source, bits=bits, modules=modules, device=device, progress=progress)
        hybrid.tokenizer = source.tokenizer
        return hybrid, source.tokenizer, source.origin

    files = files_of(name)
    if files is None:
        hybrid, _, origin = make()
    else:
        settings = {"name": name, "bits": bits, "modules": modules, "device": kernels_for(device).name}
        hybrid, origin = kept_model(content_key(files, settings), make, device, progress)
    hybrid.model.to(place)
    return hybrid, origin


def connected(
    server: Address,
    *,
    bundle: Path | None,
    name: str | None,
    terms: Terms,
    fold_norms: str,
    ahead: Ahead,
    progress: Progress,
) -> tuple[HybridFHEModel, Path]:
    """A model in mode ``remote``, and the folder of its client half: ``bundle``, or what the server offers, cached.

    ``name`` chooses among the server's bundles, ``fold_norms`` (on, off, auto by the distance) among the halves of one
    model that it offers. `BundleError` where none or several fit, and what `HybridFHEModel.connect` raises.
    """
    from veil.commands.pull import cached

    if bundle is None:
        folder = cached(server, terms=terms, name=name, fold_norms=fold_norms)
        terms = replace(terms, digest=folder.name)
    else:
        folder = bundle
    stage = f"connecting to {server.target}"
    progress(stage, 0, 1)
    hybrid = HybridFHEModel.connect(
        server.target,
        folder,
        token=server.token,
        tls=server.tls,
        name=name,
        allow_no_tls=server.allow_no_tls,
        terms=terms,
        ahead=ahead,
    )
    progress(stage, 1, 1)
    return hybrid, folder
