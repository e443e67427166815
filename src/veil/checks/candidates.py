"""The logits of the likely tokens, exactly, where the client holds the head's rows: a head that is tied to its embedding.

What a server adds to a logit within the noise is gone then: a token that it raises among the likeliest gets its own logit
back. The others keep what was answered, and checked.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from veil.bundle.manifest import Manifest
from veil.checks.likely import refine_likely

F32 = NDArray[np.float32]

LIKELY = 16
"""Tokens of each row whose logits are computed here."""


class ExactCandidates:
    """Replaces the largest outputs of a tied head by the products with its rows, which are ``table`` [slots, width]."""

    def __init__(self, group: int, table: torch.Tensor) -> None:
        self.group = group
        self._table = table
        plain = table.is_cpu and table.dtype is torch.float32 and table.is_contiguous()
        self._rows = table.numpy() if plain else None

    @property
    def at_hand(self) -> bool:
        """Whether the table is where `refine_row` can read it."""
        return self._rows is not None

    def refine_row(self, x: F32, outputs: F32) -> None:
        """What `refined` does, to one row's outputs [slots] themselves, for x [width]; where the table is `at_hand`."""
        assert self._rows is not None
        refine_likely(x, self._rows, min(LIKELY, outputs.size), outputs)

    def refined(self, x: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        """Outputs [R, slots] float32 with the likeliest exact, for inputs x [R, width]; a GPU's may be the same tensor."""
        if outputs.is_cuda and self._table.is_cuda and outputs.shape[1] >= LIKELY:
            from veil.kernels.cuda import likely

            if outputs.shape[1] <= likely.MOST_SLOTS:
                outputs, table = outputs.contiguous(), self._table.contiguous()
                likely.refine(x.contiguous(), table, LIKELY, outputs)
                return outputs
        places = outputs.topk(min(LIKELY, outputs.shape[1]), dim=1, sorted=False).indices
        rows = self._table[places].to(torch.float32)
        exact = torch.einsum("rkw,rw->rk", rows, x.to(torch.float32))
        return outputs.scatter(1, places, exact)


def exact_candidates(model: object, manifest: Manifest) -> ExactCandidates | None:
    """For a model whose head is tied to an embedding that is here and whole; None for others."""
    found = tied_embedding(model, manifest)
    return None if found is None else ExactCandidates(found[0], found[1].weight.detach())


def tied_embedding(model: object, manifest: Manifest) -> tuple[int, nn.Embedding] | None:
    """The head's group, and the embedding here that has the head's weight; None where there is none, or it has a bias."""
    heads = [index for index, group in enumerate(manifest.groups) if group.segment == "head"]
    config = getattr(model, "config", None)
    find = getattr(model, "get_input_embeddings", None)
    if len(heads) != 1 or not getattr(config, "tie_word_embeddings", False) or not callable(find):
        return None
    group, embedding = manifest.groups[heads[0]], find()
    layer = group.layers[0]
    tied = getattr(model, "_tied_weights_keys", None) or {}
    named = isinstance(tied, dict) and f"{layer.name}.weight" in tied
    if not named or len(group.layers) != 1 or layer.bias or not isinstance(embedding, nn.Embedding):
        return None
    if embedding.weight.is_meta or tuple(embedding.weight.shape) != (layer.out_features, layer.in_features):
        return None
    return heads[0], embedding
