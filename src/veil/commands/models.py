"""From a loaded model to a compiled one."""

from __future__ import annotations

import torch

from veil.model.experts import ExpertLeak
from veil.model.gguf import Progress
from veil.model.hybrid import HybridFHEModel
from veil.model.modules import select_modules
from veil.model.quiet import quiet
from veil.model.sample import sample_tokens
from veil.model.sources import Source

_SAMPLE_TOKENS = 8


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
    vocabulary = int(source.model.config.get_text_config().vocab_size)
    tokens = torch.arange(1, 1 + _SAMPLE_TOKENS).unsqueeze(0) % vocabulary
    if fold_norms != "off":
        tokens = sample_tokens(source)
    tokens = tokens.to(source.model.device)
    sample = {"input_ids": tokens}
    if source.model.config.is_encoder_decoder:
        sample["decoder_input_ids"] = tokens
    names = select_modules(source.model, modules)
    hybrid = HybridFHEModel(source.model, module_names=names, expert_leak=expert_leak)
    with quiet():
        hybrid.compile_model(
            sample, n_bits=bits, use_dynamic_quantization=True, device=device, progress=progress, fold_norms=fold_norms
        )
    return hybrid
