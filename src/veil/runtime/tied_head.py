"""The head's gradient where the head is tied to an embedding that the client holds: a product in clear, here, and exact.

A gradient by logits has a few large entries and as many small ones as there are tokens, so of all transposed products that
of the head loses most to rounding and noise, and has the longest row to send. Who holds the embedding holds the weight.
"""

from __future__ import annotations

import torch
from torch import nn

from veil.bundle.manifest import Manifest
from veil.checks.candidates import tied_embedding
from veil.errors import BundleError


class TiedHead:
    """The gradient by the inputs of a group whose weight is that of an embedding; the head's stays what was compiled."""

    def __init__(self, group: int, embedding: nn.Embedding) -> None:
        self.group = group
        self._embedding = embedding
        self._compiled: torch.Tensor | None = None

    def back(self, gradient: torch.Tensor) -> torch.Tensor:
        """Gradients [R, width] float32 by the inputs for gradients [R, slots] by the logits."""
        if self._compiled is None and self._embedding.weight.requires_grad:
            self._compiled = self._embedding.weight.detach().clone()  # before the first step that changes it
        table = self._embedding.weight.detach() if self._compiled is None else self._compiled
        return gradient @ table.to(device=gradient.device, dtype=torch.float32)


def tied_head(model: object, manifest: Manifest) -> TiedHead | None:
    """For a model compiled for training whose head has no transposed group; None for others.

    `BundleError` where such a head is not tied to an embedding that is here: nothing below it could train.
    """
    heads = [index for index, group in enumerate(manifest.groups) if group.segment == "head"]
    if not manifest.back or all(index in manifest.back for index in heads):
        return None
    found = tied_embedding(model, manifest)
    if found is None:
        raise BundleError("the bundle takes its head's gradient from an embedding that its model lacks; compile it again")
    return TiedHead(*found)
