"""The text that a model is calibrated on when it is compiled from the command line: fixed, so no prompt enters a bundle."""

from __future__ import annotations

import torch

from veil.model.sources import Source

_TOKENS = 160
_TEXT = """The town library opens at nine. On Mondays a retired engineer reads the newspaper by the window and writes \
letters to a friend in Lisbon; he says that a clear sentence is like a well-made bridge.
def area(width: float, height: float) -> float:
    return width * height  # in square metres
Question: Why does bread rise? Answer: Yeast turns sugar into carbon dioxide, and the gas is caught in the dough. In 1969, \
650 million people watched two men walk on the Moon. La maison est petite, mais le jardin est grand. Mix 250 g of flour \
with 2 eggs, add 1/2 litre of milk, and let the batter rest for 30 minutes."""


def sample_tokens(source: Source) -> torch.Tensor:
    """Token ids [1, T] of a few kinds of text; arbitrary ones where there is no tokenizer."""
    vocabulary = int(source.model.config.get_text_config().vocab_size)
    if source.tokenizer is None:
        ids = torch.randint(0, vocabulary, (1, _TOKENS), generator=torch.Generator().manual_seed(1))
    else:
        ids = source.tokenizer(_TEXT, return_tensors="pt").input_ids
    limit = getattr(source.model.config.get_text_config(), "max_position_embeddings", None) or _TOKENS
    return ids[:, : min(_TOKENS, limit)]
