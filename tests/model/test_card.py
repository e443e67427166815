"""Both halves on one card give what the host's halves give. Without a card, Triton's interpreter and NumPy stand in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import card_stand_in
import pytest
import torch
from torch import nn

from veil.client.device_session import DeviceSession
from veil.errors import MaskReused, NotFiniteActivation, UnknownMask, WireError
from veil.kernels import cpu, cuda
from veil.model import hybrid as hybrid_module
from veil.model.hybrid import HybridFHEModel
from veil.params import Params

pytestmark = [pytest.mark.usefixtures("interpreter"), *([] if cuda.interpreted() else [pytest.mark.gpu])]

SMALL = Params.insecure_tiny(outer_degree=64, masks_per_epoch=3) if cuda.interpreted() else Params.default()
WIDTH, MIDDLE, OUT = 12, 20, 7


class Block(nn.Module):
    """Two layers that read one tensor, a third after them, and a head; as small as a model can be."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(WIDTH, MIDDLE), nn.Linear(WIDTH, MIDDLE, bias=False)
        self.down, self.head = nn.Linear(MIDDLE, WIDTH), nn.Linear(WIDTH, OUT)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor, *, rows: int | None = None) -> torch.Tensor:
        y = self.down(torch.tanh(self.left(x)) * self.right(x))
        return self.head(y if rows is None else y[:rows])


@pytest.fixture(scope="module")
def on_card(interpreter: None) -> Iterator[None]:
    """The model counts as being on the card, where the interpreter's tensors are."""
    with pytest.MonkeyPatch.context() as patch:
        if cuda.interpreted():
            patch.setattr(hybrid_module, "_is_on_card", lambda model: True)
            patch.setattr(hybrid_module, "kernels_for", lambda device: cuda)
            card_stand_in.install(patch)
        yield


def place() -> str:
    return "cpu" if cuda.interpreted() else "cuda"


def rows() -> torch.Tensor:
    return torch.randn((3, WIDTH), generator=torch.Generator().manual_seed(1)).to(place())


@pytest.fixture(scope="module", params=[True, False], ids=["dynamic", "static"])
def hybrid(on_card: None, request: pytest.FixtureRequest) -> HybridFHEModel:
    """A compiled block, its hint built; static and dynamic quantization."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Block().eval().to(place())
    made = HybridFHEModel(model, ["left", "right", "down", "head"])
    made.compile_model(rows(), params=SMALL, device="cuda", use_dynamic_quantization=request.param)
    made._need_engine()
    return made


@pytest.fixture
def session(hybrid: HybridFHEModel) -> Iterator[Any]:
    """A fresh session of the block in mode ``execute``."""
    hybrid.stats.reset()
    hybrid.set_fhe_mode("execute")
    yield hybrid._session
    hybrid.close()


def decibels(signal: torch.Tensor, other: torch.Tensor) -> float:
    return float(10 * torch.log10(signal.detach().var() / (signal.detach() - other).var()))


def test_modes_agree(hybrid: HybridFHEModel, session: Any) -> None:
    """Encrypted and simulated results are the clear ones within the noise, for single rows and for several."""
    x = rows()
    clear = hybrid(x, fhe="disable")
    assert decibels(hybrid(x, fhe="torch"), clear) > 25
    assert decibels(clear, hybrid(x, fhe="simulate")) > 50
    assert isinstance(session, DeviceSession)
    assert hybrid.stats.kernels == "client cuda, server cuda"
    assert decibels(clear, hybrid(x)) > 50
    singles = torch.cat([hybrid(x[t : t + 1]) for t in range(3)])
    assert decibels(clear, singles) > 45
    assert not torch.equal(hybrid(x[:1]), singles[:1])
    assert hybrid(x[:0]).shape == (0, OUT)
    assert hybrid.stats.rows == 7
    assert hybrid.stats.bytes_up_online == 7 * 3 * (WIDTH + MIDDLE + WIDTH)


def test_clear_layers_agree_with_the_hosts(hybrid: HybridFHEModel) -> None:
    x = rows()
    made = hybrid(x, fhe="disable").detach().cpu()
    host = HybridFHEModel(Block().eval(), ["left", "right", "down", "head"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hybrid_module, "_is_on_card", lambda model: False)
        host._adopt(hybrid._compiled, cpu)  # type: ignore[arg-type]
        torch.testing.assert_close(host(x.cpu(), fhe="disable"), made, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
def test_the_client_may_stay_on_the_processor() -> None:
    """The model on the processor, the server's half on the card."""
    if cuda.interpreted():
        pytest.skip("needs a card")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mixed = HybridFHEModel(Block().eval(), ["left", "right", "down", "head"])
    x = rows().cpu()
    mixed.compile_model(x, params=SMALL, device="cuda")
    clear = mixed(x, fhe="disable")
    assert decibels(clear, mixed(x, fhe="execute")) > 50
    assert mixed.stats.kernels == "client cpu, server cuda"
    mixed.model.to("cuda")
    assert decibels(clear, mixed(x.to("cuda"), fhe="execute").cpu()) > 50
    assert mixed.stats.kernels == "client cuda, server cuda"
    mixed.model.to("cpu")
    assert decibels(clear, mixed(x, fhe="execute")) > 50


def test_a_mask_is_used_once(hybrid: HybridFHEModel, session: Any) -> None:
    """Each row takes a mask of its own, a layer that is called twice another; a second claim is refused."""
    x, claimed = rows(), []
    claim = session._transport.claim
    session._transport.claim = lambda group, numbers: (claimed.extend((group, n) for n in numbers), claim(group, numbers))
    hybrid(x)
    hybrid(x[:1])
    session.evaluate(0, x[:1])
    session.evaluate(0, x[1:2])
    assert len(set(claimed)) == len(claimed) == 3 * 3 + 3 + 2
    numbers = {number for group, number in claimed if group == 0}
    assert len(numbers) == 6
    with pytest.raises(MaskReused, match=f"mask {max(numbers)} "):
        claim(0, [max(numbers)])
    with pytest.raises(UnknownMask):
        claim(0, [10**6])


def test_steps_are_recorded_under_no_mask(hybrid: HybridFHEModel, session: Any) -> None:
    """What a recording encrypts (a row of zeros) is under zeros, never under a mask that a row will use."""
    assert session.stats.masks == 0
    assert not session._rows.view(torch.int32).any()
    hybrid(rows()[:1])
    assert session._rows.view(torch.int32).any()
    hybrid.close()
    assert not session._rows.view(torch.int32).any()
    assert not any(share.view(torch.int32).any() for share in session._mu.values())


def test_prompt_rows_skip_the_head(hybrid: HybridFHEModel, session: Any) -> None:
    hybrid.reserve(rows_body=2, rows_full=1)
    assert (hybrid.masks_ready.prompt_rows, hybrid.masks_ready.tokens) == (2, 1)
    hybrid.model(rows(), rows=1)
    assert hybrid.stats.masks == hybrid.stats.rows == hybrid.stats.rows_ready == 3


@pytest.mark.parametrize("mode", ["disable", "execute"])
def test_not_a_number_stops_the_generation(hybrid: HybridFHEModel, session: Any, mode: str) -> None:
    hybrid.set_fhe_mode(mode)
    for count in (1, 3):
        bad = rows()[:count]
        bad[0, 3] = torch.nan
        with pytest.raises(NotFiniteActivation, match=r"reached left\+right"):
            hybrid(bad)
        assert hybrid(rows()[:count]).isfinite().all()


def test_what_the_engine_refuses(hybrid: HybridFHEModel, session: Any) -> None:
    hybrid(rows()[:1])
    engine, params = session._transport, SMALL
    mask = torch.zeros((1, params.mask_bytes), dtype=torch.uint8, device=place())
    with pytest.raises(WireError, match="not newer"):
        engine.load_epoch(0, mask)
    with pytest.raises(WireError, match="bytes of residues"):
        engine.load_epoch(1, mask)
    for numbers, sets, segments, match in (
        ([9], [0], ["body"], "used twice"),
        ([0], [2], ["body"], "do not grow"),
        ([9], [params.masks_per_epoch], ["body"], "not below"),
        ([9], [2], ["tail"], "expected some of"),
    ):
        with pytest.raises(WireError, match=match):
            engine.prepare(0, numbers, sets, mask, segments)
    with pytest.raises(WireError, match="masks of epoch 5"):
        engine.prepare(5, [9], [2], mask, ["body"])
    with pytest.raises(WireError, match="rows of 12 words"):
        engine.answer_current(0, mask)


def test_a_transformers_model_generates(on_card: None, new_model: Callable[[str], Any]) -> None:
    """Greedy tokens of the clear integer layers, launch by launch and, with a cache of fixed size, as one graph."""
    prompt = torch.tensor([[5, 9, 11]], device=place())
    model = new_model("gpt2").to(place())
    made = HybridFHEModel(model, ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_fc", "lm_head"])
    made.compile_model(prompt, params=SMALL, device="cuda")
    settings = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    made.set_fhe_mode("disable")
    clear = model.generate(prompt, **settings)
    made.set_fhe_mode("execute")
    assert torch.equal(model.generate(prompt, **settings), clear)
    assert made.stats.rows == 3 + 4
    graph: Any = made._graph
    assert graph._recorded is None
    assert torch.equal(model.generate(prompt, cache_implementation="static", **settings), clear)
    assert graph._recorded is not None and graph._refused is None
    assert len(graph._recorded.groups) == 3
    assert made.stats.rows == 2 * (3 + 4)
    claimed = made._session._transport._claimed  # type: ignore[union-attr]
    assert all(groups in (set(), {0, 1, 2}, {0, 1}) for groups in claimed.values())
