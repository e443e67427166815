"""Attention states of past conversations: what is shared is found, copied and bounded."""

from __future__ import annotations

import torch
from transformers import DynamicCache

from veil.gateway.prefix import PrefixStore


def state(length: int, seed: int = 0) -> DynamicCache:
    torch.manual_seed(seed)
    made = DynamicCache()
    for layer in range(2):
        made.update(torch.randn(1, 2, length, 4), torch.randn(1, 2, length, 4), layer)
    return made


def test_the_longest_common_beginning_is_found_and_a_token_is_left() -> None:
    store = PrefixStore(1 << 20)
    store.keep([1, 2, 3, 4, 5], state(4))
    store.keep([1, 2, 9], state(2, seed=1))
    assert store.take([7, 8]) == (0, None)
    known, cache = store.take([1, 2, 3, 4])
    assert known == 3, "the last token of a prompt is computed anew: its logits are needed"
    assert cache is not None and cache.get_seq_length() == 3
    assert store.take([1, 2, 3, 4, 5, 6])[0] == 4, "the last of five was never computed"
    assert store.take([1])[0] == 0


def test_what_is_handed_out_is_a_copy() -> None:
    store, original = PrefixStore(1 << 20), state(4)
    store.keep([1, 2, 3, 4, 5], original)
    _, first = store.take([1, 2, 3, 9])
    assert first is not None
    first.update(torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4), 0)
    first.layers[0].keys.zero_()
    known, second = store.take([1, 2, 3, 4, 9])
    assert known == 4 and second is not None
    assert torch.equal(second.layers[0].keys, original.layers[0].keys)


def test_memory_is_bounded_and_a_longer_conversation_replaces_its_beginning() -> None:
    size = 2 * sum(layer.keys.nbytes for layer in state(10).layers)
    store = PrefixStore(2 * size)
    store.keep(list(range(10)), state(10))
    store.keep(list(range(12)), state(12))
    assert len(store._entries) == 1
    store.keep([99] * 5, state(5))
    store.keep([98] * 5, state(5))
    assert sum(entry.bytes for entry in store._entries) <= 2 * size
    assert store.take([98] * 6)[0] == 5
    store.keep([1] * 100, state(100))
    assert store.take([1] * 100)[0] == 0, "a state larger than the store is not kept"
    store.clear()
    assert store.take([98] * 6)[0] == 0


def test_other_kinds_of_state_are_not_kept() -> None:
    store = PrefixStore(1 << 20)
    store.keep([1, 2, 3], object())
    store.keep([1, 2, 3], None)
    assert store.take([1, 2, 3]) == (0, None)
