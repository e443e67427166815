"""Section 7 of the protocol, rule by rule: what keeps an encrypted generation secret, watched at the transport."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from veil import HybridFHEModel
from veil.crypto import public
from veil.errors import MaskReused, NotFiniteActivation
from veil.kernels import cpu
from veil.params import Params
from veil.seed import PublicSeed

TINY = Params.insecure_tiny(masks_per_epoch=16)


# A model behind a transport that is watched ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2(new_model: Any) -> HybridFHEModel:
    model = new_model("gpt2")
    names = [name for name, module in model.named_modules() if type(module).__name__ in ("Conv1D", "Linear")]
    hybrid = HybridFHEModel(model, names)
    hybrid.compile_model(torch.arange(5, 11)[None], params=TINY)
    hybrid.set_fhe_mode("execute")
    return hybrid


class Twice(nn.Module):
    """One layer called twice in a forward pass, and once under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(8, 8)
        self.again = self.shared
        self.last = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.again(torch.tanh(self.shared(torch.tanh(self.shared(x))))))


@pytest.fixture
def twice() -> HybridFHEModel:
    torch.manual_seed(0)
    hybrid = HybridFHEModel(Twice(), ["shared", "again", "last"])
    hybrid.compile_model(torch.randn(2, 8), params=TINY)
    hybrid.set_fhe_mode("execute")
    return hybrid


def uses(calls: list[Any]) -> list[tuple[str, int, int, bytes]]:
    """(session, group, mask, bytes) of every row that was sent."""
    rows = []
    for call in calls:
        if call.method == "evaluate":
            session, group, masks, data = call.args
            size = len(data) // len(masks)
            rows += [(session, group, mask, data[i * size : (i + 1) * size]) for i, mask in enumerate(masks)]
    return rows


def assert_fresh(calls: list[Any], least: int) -> None:
    """Every row has its own (mask, group), and no two rows of a group carry the same bytes."""
    rows = uses(calls)
    assert len(rows) >= least
    assert len({row[:3] for row in rows}) == len(rows)
    assert len({(group, data) for _, group, _, data in rows}) == len(rows)


# Rule 1: a mask is used once ------------------------------------------------------------------------------------------


def test_a_mask_is_spent_before_its_bytes_leave(pair: Any, calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The transport fails while the row is on its way: the mask stays spent, and a retry takes a fresh one."""
    session, engine = pair.session(), type(pair.engine)
    x, tau = pair.inputs(0, 2)
    working = engine.evaluate

    def broken(self: Any, *args: Any) -> bytes:
        working(self, *args)
        raise ConnectionError("the reply was lost")

    monkeypatch.setattr(engine, "evaluate", broken)
    with pytest.raises(ConnectionError):
        session.evaluate(0, x, tau)
    monkeypatch.setattr(engine, "evaluate", working)
    session.evaluate(0, x, tau)
    assert_fresh(calls, 4)
    masks = [row[2] for row in uses(calls)]
    assert not set(masks[:2]) & set(masks[2:])
    session.close()


def test_a_second_use_raises_on_the_client(pair: Any, tiny_scheme: Any) -> None:
    mask = tiny_scheme.make_mask(0)
    mask.spend(4)
    with pytest.raises(MaskReused):
        mask.spend(4)


def test_a_second_use_with_other_bytes_raises_on_the_server(pair: Any, calls: list[Any]) -> None:
    session = pair.session()
    session.evaluate(1, *pair.inputs(1, 1))
    ((name, group, mask, data),) = uses(calls)
    with pytest.raises(MaskReused):
        pair.engine.evaluate(name, group, [mask], bytes([data[0] ^ 1]) + data[1:])
    session.close()


def test_identical_bytes_get_the_identical_reply(pair: Any, calls: list[Any]) -> None:
    session = pair.session()
    session.evaluate(1, *pair.inputs(1, 3))
    (call,) = [call for call in calls if call.method == "evaluate"]
    assert pair.engine.evaluate(*call.args) == call.reply
    session.close()


def test_a_layer_that_is_called_twice_takes_fresh_masks(twice: HybridFHEModel, calls: list[Any]) -> None:
    """Shared under two names and called three times a pass: each call of each row has its own mask."""
    x = torch.randn(4, 8)
    out = twice(x)
    assert_fresh(calls, 4 * 4)
    assert torch.allclose(out, twice(x, fhe="disable"), atol=0.05)


def test_the_same_input_is_never_the_same_bytes(twice: HybridFHEModel, calls: list[Any]) -> None:
    x = torch.randn(1, 8)
    for _ in range(3):
        twice(x)
    assert_fresh(calls, 3 * 4)


def test_every_row_of_a_generation_takes_fresh_masks(gpt2: HybridFHEModel, calls: list[Any]) -> None:
    gpt2.model.generate(input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert_fresh(calls, 6 * 8 + 4)


def test_every_beam_takes_fresh_masks(gpt2: HybridFHEModel, calls: list[Any]) -> None:
    gpt2.model.generate(
        input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=3, min_new_tokens=3, num_beams=2, do_sample=False
    )
    assert_fresh(calls, (2 * 3 + 2 * 2) * 8)


def test_every_row_of_a_padded_batch_takes_fresh_masks(gpt2: HybridFHEModel, calls: list[Any]) -> None:
    ids = torch.tensor([[2, 2, 5, 6], [5, 6, 7, 8], [5, 6, 7, 8]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]])
    gpt2.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert_fresh(calls, (12 + 3) * 8)


def test_sampled_sequences_take_fresh_masks(gpt2: HybridFHEModel, calls: list[Any]) -> None:
    gpt2.model.generate(
        input_ids=torch.tensor([[5, 6]]), max_new_tokens=2, min_new_tokens=2, do_sample=True, num_return_sequences=3
    )
    assert_fresh(calls, 3 * 3 * 8)


# Rule 2: a pair (z, m) encrypts once ----------------------------------------------------------------------------------


def test_an_epoch_makes_at_most_m_masks_and_the_next_has_another_z(pair: Any, calls: list[Any]) -> None:
    session = pair.session()
    session.reserve(full=11)
    assert pair.params.masks_per_epoch == 4
    epochs: dict[int, list[int]] = {}
    for call in calls:
        if call.method == "prepare":
            epochs.setdefault(call.args[1], []).extend(mask.index for mask in call.args[2])
    assert len(epochs) == 3
    assert all(len(set(sets)) == len(sets) <= 4 for sets in epochs.values())
    keys = {call.args[1]: call.args[2] for call in calls if call.method == "load_epoch"}
    assert set(keys) == set(epochs)
    words = [np.frombuffer(data, dtype=np.uint8) for data in keys.values()]
    for left, right in ((0, 1), (1, 2), (0, 2)):
        assert (words[left] != words[right]).mean() > 0.9
    session.close()


def test_two_sessions_have_different_keys_and_masks(pair: Any, calls: list[Any]) -> None:
    sessions = [pair.session(seed=seed) for seed in (1, 2)]
    for session in sessions:
        session.reserve(full=1)
    keys = [call.args[2] for call in calls if call.method == "load_epoch"]
    uploads = [call.args[2][0].data for call in calls if call.method == "prepare"]
    assert keys[0] != keys[1]
    assert uploads[0] != uploads[1]
    for session in sessions:
        session.close()


# Rule 3: different layers use different public polynomials ------------------------------------------------------------


def test_groups_have_different_public_polynomials() -> None:
    seed, params = PublicSeed(bytes(32)), Params.default()
    polynomials = [public.inner_polynomials(seed, params, group, 2000) for group in range(8)]
    assert len({row.tobytes() for part in polynomials for row in part}) == 16


# Rule 4: keys and masks are never written to disk ------------------------------------------------------------------


def test_nothing_of_a_session_is_written_to_disk(gpt2: HybridFHEModel, calls: list[Any], tmp_path: Path) -> None:
    """A bundle that is saved after an encrypted generation holds the files of a bundle, and no key, mask or payload."""
    gpt2.model.generate(input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=2, do_sample=False)
    gpt2.save(tmp_path / "bundle")
    files = {path.relative_to(tmp_path / "bundle").as_posix() for path in (tmp_path / "bundle").rglob("*")}
    assert files == {
        "client",
        "client/bundle.json",
        "client/config.json",
        "client/generation_config.json",
        "client/masks.safetensors",
        "client/remote.safetensors",
        "client/tensors.safetensors",
        "server",
        "server/bundle.json",
        "server/weights.safetensors",
    }
    written = b"".join(path.read_bytes() for path in (tmp_path / "bundle").rglob("*") if path.is_file())
    secret = [row[3] for row in uses(calls)]
    secret += [call.args[2] for call in calls if call.method == "load_epoch"]
    secret += [mask.data for call in calls if call.method == "prepare" for mask in call.args[2]]
    assert len(secret) > 20
    assert not any(data[:24] in written for data in secret)


# Rule 5: nothing but bytes, whole numbers and names crosses, and nothing that depends on a value --------------------


def leaves(value: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def test_only_bytes_and_whole_numbers_cross_the_transport(gpt2: HybridFHEModel, calls: list[Any]) -> None:
    gpt2.model.generate(input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=20, min_new_tokens=20, do_sample=False)
    sent = [(call.method, value) for call in calls for value in (*leaves(call.args), *leaves(call.reply))]
    assert {type(value) for _, value in sent} <= {bytes, int, str, type(None)}
    assert {"evaluate", "prepare"} <= {method for method, _ in sent}


def test_what_is_sent_depends_on_shapes_alone(gpt2: HybridFHEModel, calls: list[Any]) -> None:
    """Two prompts of one length: the same calls in the same order, with the same lengths."""
    traces = []
    for prompt in ([5, 6, 7, 8], [60, 3, 41, 22]):
        gpt2.reserve(rows_body=8, rows_full=8)
        del calls[:]
        gpt2(torch.tensor([prompt]))
        traces.append([(c.method, len(c.args[2]), len(c.args[3])) for c in calls if c.method == "evaluate"])
    assert traces[0] == traces[1]
    assert len(traces[0]) == 9


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_an_activation_that_is_not_finite_stops_before_anything_is_sent(
    twice: HybridFHEModel, calls: list[Any], bad: float
) -> None:
    x = torch.randn(3, 8)
    x[1, 2] = bad
    with pytest.raises(NotFiniteActivation, match="nothing was sent"):
        twice(x)
    assert not [call for call in calls if call.method in ("evaluate", "prepare", "load_epoch")]
    assert torch.isfinite(twice(torch.randn(3, 8))).all()


def test_what_is_sent_is_uniform_and_the_message_is_not(pair: Any, calls: list[Any]) -> None:
    """Chi-square over byte values, 12,600 bytes at least, 0.1 % level: packed rows pass, the message alone fails."""
    session = pair.session(seed=11)
    x, tau = pair.inputs(0, 60)
    x[:] = x[0]
    tau[:] = tau[0]
    session.evaluate(0, x, tau)
    sent = np.frombuffer(b"".join(row[3] for row in uses(calls)), dtype=np.uint8)
    message = cpu.encrypt(x, tau, np.zeros(x.shape, dtype=np.uint32), 24).reshape(-1)
    assert sent.size == message.size == 60 * 3 * 70
    assert stats.chisquare(np.bincount(sent, minlength=256)).pvalue > 0.001
    assert stats.chisquare(np.bincount(message, minlength=256)).pvalue < 1e-6
    for place in range(3):
        assert stats.chisquare(np.bincount(sent[place::3] >> 4, minlength=16)).pvalue > 0.001
    session.close()


def test_uploads_are_uniform(pair: Any, calls: list[Any]) -> None:
    """Residues of masks and keys over 64 cells, at the 0.1 % level."""
    from veil.wire import codec

    session = pair.session(seed=12)
    session.reserve(full=4)
    masks = [mask.data for call in calls if call.method == "prepare" for mask in call.args[2]]
    (keys,) = [call.args[2] for call in calls if call.method == "load_epoch"]
    halves = np.stack([codec.decode_mask(data, pair.params, cpu) for data in masks])
    key_halves = codec.decode_keys(keys, pair.params, cpu)
    for values in (halves, key_halves):
        for i in range(values.shape[-2]):
            cells = values[..., i, :].reshape(-1).astype(np.int64) * 64 // pair.params.moduli[i]
            assert stats.chisquare(np.bincount(cells, minlength=64)).pvalue > 0.001
    session.close()


# Rule 7: a fresh public seed for every bundle -----------------------------------------------------------------------


def test_every_compilation_draws_its_own_seed(tmp_path: Path) -> None:
    import json

    from transformers import GPT2Config, GPT2LMHeadModel

    seeds = set()
    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, n_positions=8, bos_token_id=0, eos_token_id=0)
    for turn in range(3):
        hybrid = HybridFHEModel(GPT2LMHeadModel(config).eval(), "transformer.h.0.mlp.c_fc")
        hybrid.compile_model(torch.zeros(1, 2, dtype=torch.long), params=TINY)
        hybrid.save(tmp_path / str(turn))
        halves = [json.loads((tmp_path / str(turn) / half / "bundle.json").read_text()) for half in ("client", "server")]
        assert halves[0]["seed"] == halves[1]["seed"]
        seeds.add(halves[0]["seed"])
    assert len(seeds) == 3
