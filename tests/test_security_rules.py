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
from veil.errors import NotFiniteActivation, RowReused
from veil.kernels.interface import Rows
from veil.kernels.ring import ring_of
from veil.params import Params
from veil.seed import PublicSeed

TINY = Params.insecure_tiny(batch_rows=16)


# A model behind a transport that is watched ---------------------------------------------------------------------------


def generate(hybrid: HybridFHEModel, **options: Any) -> Any:
    model: Any = hybrid.model
    return model.generate(**options)


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


def uses(calls: list[Any]) -> list[tuple[str, int, int, int, bytes]]:
    """(session, group, batch, row, bytes) of every row that was sent."""
    rows = []
    for call in calls:
        if call.method == "evaluate":
            session, group, spans, data = call.args[:4]
            places = [(span.batch, row) for span in spans for row in range(span.first, span.first + span.count)]
            rows += [(session, group, *place, row.tobytes()) for place, row in zip(places, data, strict=True)]
    return rows


def assert_fresh(calls: list[Any], least: int) -> None:
    """Every use is another row of a batch, and no two rows of a group carry the same bytes."""
    rows = uses(calls)
    assert len(rows) >= least
    assert len({row[:4] for row in rows}) == len(rows)
    assert len({(row[1], row[4]) for row in rows}) == len(rows)


def rows_of(sequences: int, prompt: int, more: int) -> int:
    """Rows of a GPT-2 of two blocks: of the last one only a prompt's last row goes to all layers, and to the head."""
    return sequences * (5 * prompt + 3 + 1 + 9 * more)


# Rule 1: a row of a batch is used once --------------------------------------------------------------------------------


def test_a_row_is_spent_before_its_bytes_leave(pair: Any, calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The transport fails while rows are on their way: they stay spent, and a retry takes fresh ones."""
    session, server = pair.session(), type(pair.server)
    x = pair.inputs(0, 2)
    working = server.evaluate

    def broken(self: Any, *args: Any) -> Any:
        working(self, *args)
        raise ConnectionError("the reply was lost")

    monkeypatch.setattr(server, "evaluate", broken)
    with pytest.raises(ConnectionError):
        session.evaluate(0, x)
    monkeypatch.setattr(server, "evaluate", working)
    session.evaluate(0, x)
    assert_fresh(calls, 4)
    session.close()


def test_a_second_use_raises_on_the_server(pair: Any, calls: list[Any]) -> None:
    """With other bytes anywhere, and in process, where nothing can be lost, with the same ones too."""
    session = pair.session()
    session.evaluate(1, pair.inputs(1, 1))
    (call,) = [call for call in calls if call.method == "evaluate"]
    name, group, spans, data, slots = call.args
    for other in (data, data ^ np.uint8(1)):
        with pytest.raises(RowReused):
            pair.server.evaluate(name, group, spans, other, slots)
    own = pair.server.store.find(name)
    with pytest.raises(RowReused):
        pair.server.admission.claim(own, group, spans, data ^ np.uint8(1), slots)
    session.close()


def test_identical_bytes_get_the_identical_reply(pair: Any) -> None:
    """Over a network a reply can be lost: the same request again, and nothing else, is answered again."""
    session = pair.session()
    server, engine = pair.server, pair.engine
    claim = server.admission.claim

    class Network:
        """The engine, as a service that lets the same bytes come again."""

        batch_ttl_s = server.batch_ttl_s
        open, prepare, release, stop, close = server.open, server.prepare, server.release, server.stop, server.close

        def evaluate(self, name: str, group: int, spans: Any, data: Any, slots: int) -> Any:
            own = server.store.find(name)
            first, second = (np.array(engine.answer([claim(own, group, spans, data, slots)])[0]) for _ in range(2))
            np.testing.assert_array_equal(first, second)
            with pytest.raises(RowReused):
                claim(own, group, spans, data ^ np.uint8(128), slots)
            return first

    session.close()
    session = pair.session(Network())
    x = pair.inputs(1, 11)
    assert (abs(pair.errors(1, x, session.evaluate(1, x))) < 6).all()
    session.close()


def test_a_layer_that_is_called_twice_takes_fresh_rows(twice: HybridFHEModel, calls: list[Any]) -> None:
    """Shared under two names and called three times a pass: each call of each row has its own row of a batch."""
    x = torch.randn(4, 8)
    out = twice(x)
    assert_fresh(calls, 4 * 4)
    assert torch.allclose(out, twice(x, fhe="disable"), atol=0.05)


def test_the_same_input_is_never_the_same_bytes(twice: HybridFHEModel, calls: list[Any]) -> None:
    x = torch.randn(1, 8)
    for _ in range(3):
        twice(x)
    assert_fresh(calls, 3 * 4)


def test_every_row_of_a_generation_takes_fresh_rows(gpt2: HybridFHEModel, calls: list[Any]) -> None:
    generate(gpt2, input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert_fresh(calls, rows_of(1, 3, 3))


def test_every_beam_takes_fresh_rows(gpt2: HybridFHEModel, calls: list[Any]) -> None:
    generate(gpt2, input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=3, min_new_tokens=3, num_beams=2, do_sample=False)
    assert_fresh(calls, rows_of(2, 3, 2))


def test_every_row_of_a_padded_batch_takes_fresh_rows(gpt2: HybridFHEModel, calls: list[Any]) -> None:
    ids = torch.tensor([[2, 2, 5, 6], [5, 6, 7, 8], [5, 6, 7, 8]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]])
    generate(gpt2, input_ids=ids, attention_mask=mask, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert_fresh(calls, rows_of(3, 4, 1))


def test_sampled_sequences_take_fresh_rows(gpt2: HybridFHEModel, calls: list[Any]) -> None:
    generate(
        gpt2, input_ids=torch.tensor([[5, 6]]), max_new_tokens=2, min_new_tokens=2, do_sample=True, num_return_sequences=3
    )
    assert_fresh(calls, rows_of(3, 2, 1))


# Rule 2: a secret serves one batch, and a z encrypts once ----------------------------------------------------------------


def test_every_batch_has_another_upload_and_other_pads(pair: Any, calls: list[Any]) -> None:
    """The public halves are the same for all batches, so the secrets have to differ: more than 99 % of all residues do."""
    session = pair.session()
    session.reserve(full=33)
    uploads = [batch.data for call in calls if call.method == "prepare" for batch in call.args[1]]
    assert len(uploads) == 5
    points = pair.kernels.decode_batches(np.stack(uploads), ring_of(pair.params))
    for left in range(5):
        for right in range(left):
            assert (points[left] != points[right]).mean() > 0.99
    numbers = [batch.number for call in calls if call.method == "prepare" for batch in call.args[1]]
    assert numbers == sorted(set(numbers))
    session.close()


def test_two_sessions_have_different_batches(pair: Any, calls: list[Any]) -> None:
    sessions = [pair.session(seed=seed) for seed in (1, 2)]
    for session in sessions:
        session.reserve(full=1)
    uploads = [call.args[1][0].data for call in calls if call.method == "prepare"]
    assert (uploads[0] != uploads[1]).mean() > 0.9
    for session in sessions:
        session.close()


# Rule 3: different layers use different public polynomials ------------------------------------------------------------


def test_groups_have_different_public_polynomials() -> None:
    seed, params = PublicSeed(bytes(32)), Params.default()
    polynomials = [public.inner_polynomials(seed, params, group, 200) for group in range(8)]
    assert len({row.tobytes() for part in polynomials for row in part.reshape(-1, params.m)}) == 8 * 25 * 3


# Rule 4: secrets are never written to disk ------------------------------------------------------------------


def test_nothing_of_a_session_is_written_to_disk(gpt2: HybridFHEModel, calls: list[Any], tmp_path: Path) -> None:
    """A bundle that is saved after an encrypted generation holds the files of a bundle, and no upload or payload."""
    generate(gpt2, input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=2, do_sample=False)
    gpt2.save(tmp_path / "bundle")
    files = {path.relative_to(tmp_path / "bundle").as_posix() for path in (tmp_path / "bundle").rglob("*")}
    assert files == {
        "client",
        "client/bundle.json",
        "client/config.json",
        "client/generation_config.json",
        "client/tables.safetensors",
        "client/remote.safetensors",
        "client/tensors.safetensors",
        "server",
        "server/bundle.json",
        "server/weights.safetensors",
    }
    written = b"".join(path.read_bytes() for path in (tmp_path / "bundle").rglob("*") if path.is_file())
    secret = [row[4] for row in uses(calls)]
    secret += [batch.data.tobytes() for call in calls if call.method == "prepare" for batch in call.args[1]]
    assert len(secret) > 15
    assert not any(data[:24] in written for data in secret)


# Rule 5: nothing but packed bytes, whole numbers and names crosses, and nothing that depends on a value --------------------


def leaves(value: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def test_only_packed_bytes_and_whole_numbers_cross_the_transport(gpt2: HybridFHEModel, calls: list[Any]) -> None:
    gpt2.reserve(rows_full=gpt2.rows_ready.tokens + 1)  # whatever tests before this one left
    generate(gpt2, input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=20, min_new_tokens=20, do_sample=False)
    sent = [(call.method, value) for call in calls for value in (*leaves(call.args), *leaves(call.reply))]
    assert {type(value) for _, value in sent} <= {np.ndarray, int, str, type(None)}
    assert {value.dtype for _, value in sent if isinstance(value, np.ndarray)} == {np.dtype(np.uint8)}
    assert {"evaluate", "prepare"} <= {method for method, _ in sent}


def test_what_is_sent_depends_on_shapes_alone(gpt2: HybridFHEModel, calls: list[Any]) -> None:
    """Two prompts of one length: the same calls in the same order, with the same lengths."""
    traces = []
    for prompt in ([5, 6, 7, 8], [60, 3, 41, 22]):
        gpt2.reserve(rows_body=16, rows_full=16)
        del calls[:]
        gpt2(torch.tensor([prompt]))
        traces.append(
            [
                (c.method, c.args[1], sum(span.count for span in c.args[2]), c.args[3].shape, c.args[4])
                for c in calls
                if c.method == "evaluate"
            ]
        )
    assert traces[0] == traces[1]
    assert len(traces[0]) == 9


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_an_activation_that_is_not_finite_is_not_sent_and_does_not_show(
    twice: HybridFHEModel, calls: list[Any], bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass goes on with rows of zeros: the server could tell by its end that something was not finite, and where."""
    x = torch.randn(3, 8)
    x[1, 2] = bad
    encrypted: list[torch.Tensor] = []
    assert twice.sides.local is not None
    evaluate = twice.sides.local.evaluate

    def keeping(group: int, x: Any, *rest: Any) -> Any:
        encrypted.append(torch.as_tensor(x))
        return evaluate(group, x, *rest)

    monkeypatch.setattr(twice.sides.local, "evaluate", keeping)
    with pytest.raises(NotFiniteActivation, match="generation stops here"):
        twice(x)
    sent = [call.args[1] for call in calls if call.method == "evaluate"]
    assert not any(part.any() for part in encrypted[1:]), "zeros follow the row that was refused"
    calls.clear()
    assert torch.isfinite(twice(torch.randn(3, 8))).all()
    assert sent == [call.args[1] for call in calls if call.method == "evaluate"]


def test_what_is_sent_is_uniform_and_the_message_is_not(pair: Any, calls: list[Any]) -> None:
    """Chi-square over byte values, 12,600 bytes, 0.1 % level: packed rows pass, the message alone fails."""
    session = pair.session(seed=11)
    x = np.repeat(pair.inputs(0, 1), 60, axis=0)
    session.evaluate(0, x)
    sent = np.frombuffer(b"".join(row[4] for row in uses(calls)), dtype=np.uint8)
    nothing = [Rows(pair.kernels.zeros(60, 70), 0, 60)]
    message = pair.kernels.encrypt(x, pair.scalings[0], nothing, 0, 24)[0].reshape(-1)
    assert sent.size == message.size == 60 * 3 * 70
    assert stats.chisquare(np.bincount(sent, minlength=256)).pvalue > 0.001
    assert stats.chisquare(np.bincount(message, minlength=256)).pvalue < 1e-6
    for place in range(3):
        assert stats.chisquare(np.bincount(sent[place::3] >> 4, minlength=16)).pvalue > 0.001
    session.close()


def test_uploads_are_uniform(pair: Any, calls: list[Any]) -> None:
    """Residues of four batches over 64 cells, 6,144 for each prime, at the 0.1 % level."""
    session = pair.session(seed=12)
    session.reserve(full=32)
    uploads = [batch.data for call in calls if call.method == "prepare" for batch in call.args[1]]
    points = pair.kernels.decode_batches(np.stack(uploads), ring_of(pair.params))
    for i, p in enumerate(pair.params.outer_primes):
        cells = points[:, :, i].reshape(-1).astype(np.int64) * 64 // p
        assert cells.size == 6144
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
