"""The text that a model is calibrated on when it is compiled from the command line: fixed, so no prompt enters a bundle."""

from __future__ import annotations

import torch

from veil.sources.models import Source

_TOKENS = 512
TEXT = """The town library opens at nine. On Mondays a retired engineer reads the newspaper by the window and writes \
letters to a friend in Lisbon; he says that a clear sentence is like a well-made bridge.
def area(width: float, height: float) -> float:
    return width * height  # in square metres
Question: Why does bread rise? Answer: Yeast turns sugar into carbon dioxide, and the gas is caught in the dough. In \
1969, 650 million people watched two men walk on the Moon. La maison est petite, mais le jardin est grand. Mix 250 g of \
flour with 2 eggs, add 1/2 litre of milk, and let the batter rest for 30 minutes.
# Moving to a new flat
1. Measure the rooms **before** you buy a table.
2. Tell the bank, the post office and your employer where you will live.
"Are you sure that this is the right key?" asked Tom. "It turned yesterday," she answered, laughing, "but then it was \
warmer."
The treaty was signed in Vienna by eleven states, and it came into force on 3 May 1824, although two of them never sent \
the money that they had promised. Sound travels through water about four times as fast as through air, because water is \
much harder to compress.
{"name": "kettle", "price": 24.90, "in_stock": true, "tags": ["kitchen", "steel"]}
User: My train was late again. Can you write a short complaint? Assistant: Of course. Dear Sir or Madam, on Tuesday the \
7:42 to Bristol left 55 minutes late, and nobody told the passengers why. I would like a refund of my fare. Yours \
faithfully, P. Novak
If x + 7 = 12, then x = 5, since 12 - 7 = 5. Der Hund schläft unter dem Tisch, und draußen regnet es seit Stunden. \
Photosynthesis stores the energy of light in sugar: plants take in carbon dioxide and water and give off oxygen. She \
plays the cello on Sundays; her brother would rather repair old radios. SELECT name, SUM(amount) FROM orders WHERE year \
= 2021 GROUP BY name ORDER BY 2 DESC;
Review: the battery lasts two days and the screen is bright, but the speaker is poor and the case scratches easily. \
Three stars out of five."""


def sample_tokens(source: Source) -> torch.Tensor:
    """Token ids [1, T] of a few kinds of text; arbitrary ones where there is no tokenizer."""
    vocabulary = int(source.model.config.get_text_config().vocab_size)
    if source.tokenizer is None:
        ids = torch.randint(0, vocabulary, (1, _TOKENS), generator=torch.Generator().manual_seed(1))
    else:
        ids = source.tokenizer(TEXT, return_tensors="pt").input_ids
    limit = getattr(source.model.config.get_text_config(), "max_position_embeddings", None) or _TOKENS
    return ids[:, : min(_TOKENS, limit)]
