"""The hybrid models that commands run: compiled here, or with the other half on a server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from veil.bundle.terms import Terms
from veil.client.session import OfflineRows
from veil.commands.kept import content_key, kept_model
from veil.compile.sample import sample_tokens
from veil.hybrid.model import HybridFHEModel
from veil.kernels.backend import kernels_for
from veil.progress import Progress
from veil.runtime.experts import ExpertLeak
from veil.runtime.modules import select_modules
from veil.sources.models import Source, files_of, load_model
from veil.sources.quiet import quiet

if TYPE_CHECKING:
    from veil.client.connection import Address
    from veil.typing import Tokenizer


def compiled(
    source: Source,
    *,
    bits: int,
    modules: str,
    device: str = "cpu",
    progress: Progress | None = None,
    fuse_norms: str = "off",
    expert_leak: ExpertLeak = "none",
    trainable: bool = False,
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
            sample,
            n_bits=bits,
            use_dynamic_quantization=True,
            device=device,
            progress=progress,
            fuse_norms=fuse_norms,
            trainable=trainable,
        )
    return hybrid


def opened_model(
    name: str,
    *,
    bits: int,
    modules: str,
    device: str,
    progress: Progress,
    place: str = "cpu",
    trainable: bool = False,
    floats: bool = False,
) -> tuple[HybridFHEModel, str]:
    """The compiled model of a name, from the cache where it was compiled before; and its origin, in words.

    Its tokenizer is ``tokenizer``. Its local layers are on ``place``, cpu or cuda. With ``floats`` it has the float layers
    as well, which no cache keeps.
    """

    def make() -> tuple[HybridFHEModel, Tokenizer | None, str]:
        source = load_model(name, progress=progress)
        source.model.to(place)
        hybrid = compiled(source, bits=bits, modules=modules, device=device, progress=progress, trainable=trainable)
        hybrid.tokenizer = source.tokenizer
        return hybrid, source.tokenizer, source.origin

    files = files_of(name)
    if files is None or floats:
        hybrid, _, origin = make()
    else:
        settings = {"name": name, "bits": bits, "modules": modules, "device": kernels_for(device).name}
        settings |= {"trainable": True} if trainable else {}
        hybrid, origin = kept_model(content_key(files, settings), make, device, progress)
    hybrid.model.to(place)
    return hybrid, origin


def connected(
    server: Address,
    *,
    bundle: Path | None,
    name: str | None,
    terms: Terms,
    fuse_norms: str,
    offline_rows: OfflineRows,
    progress: Progress,
    checked: str = "auto",
) -> tuple[HybridFHEModel, Path]:
    """A model in mode ``remote``, and the folder of its client half: ``bundle``, or what the server offers, cached.

    ``name`` chooses among the server's bundles, ``fuse_norms`` (on, off, auto by the distance) among the halves of one
    model that it offers. `BundleError` where none or several fit, and what `HybridFHEModel.connect` raises.
    """
    from veil.commands.pull import cached

    if bundle is None:
        folder = cached(server, terms=terms, name=name, fuse_norms=fuse_norms)
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
        offline_rows=offline_rows,
        checked=checked,
    )
    progress(stage, 1, 1)
    return hybrid, folder
