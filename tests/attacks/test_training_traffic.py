"""A model, or a loss, that would have gradients asked by the text: what goes up in a step follows from shapes alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from veil import HybridFHEModel
from veil.errors import UnevenTraffic, VeilError
from veil.params import Params
from veil.runtime.traffic import Traffic

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
TINY = Params.insecure_tiny(signal_db=60.0)
WIDTH = 12
INPUTS = [torch.full((4, WIDTH), 0.5), torch.full((4, WIDTH), -0.5)]
NAMES = ["first", "second", "third"]
Asked = list[tuple[int, int]]
BACK = {0: 5, 1: 4, 2: 3}
"""The transposed group of each layer: the last comes first."""


class Three(nn.Module):
    """Three layers, with something that trains before and between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.third = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(x * self.scale)))


class Exits(Three):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x * self.scale)
        return hidden if x[0, 0] > 0 else self.third(self.second(hidden))


class Detaches(Three):
    """For some texts nothing trains below the second layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x * self.scale)
        return self.third(self.second(hidden.detach() * self.scale if x[0, 0] > 0 else hidden))


class Attaches(Detaches):
    """The other way round: for some texts the third layer does not train, and the first pass is one of them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.second(self.first(x * self.scale))
        return self.third(hidden if x[0, 0] < 0 else hidden.detach()) * self.scale


class Recomputes(Three):
    """What is recomputed is recomputed by the text."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x * self.scale)

        def rest(hidden: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            again = bool(x[0, 0] > 0) and torch._C._current_graph_task_id() != -1
            return torch.tanh(self.second(self.third(hidden) if again else self.second(hidden) * 2))

        out: torch.Tensor = checkpoint(rest, hidden, use_reentrant=False)
        return out


class Checkpoints(Three):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def block(x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.second(torch.tanh(self.first(x))))

        out: torch.Tensor = self.third(checkpoint(block, x * self.scale, use_reentrant=self.reentrant))
        return out


def opened(model: nn.Module) -> HybridFHEModel:
    for layer in NAMES:
        model.get_submodule(layer).requires_grad_(False)
    hybrid = HybridFHEModel(model.train(), NAMES)
    hybrid.compile_model(torch.full((4, WIDTH), -0.4), params=TINY, device="cpu", trainable=True)
    hybrid.set_fhe_mode("execute")
    return hybrid


Loss = Callable[[Any, torch.Tensor], torch.Tensor]


def mean(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return out.square().mean()


def step(hybrid: HybridFHEModel, x: torch.Tensor, asked: Asked, loss: Loss = mean) -> tuple[Asked, Exception | None]:
    """What the server wrote down of a step, and what ended it."""
    asked.clear()
    try:
        goes_back(loss(hybrid(x), x))
    except (VeilError, RuntimeError) as error:
        return list(asked), error
    return list(asked), None


def goes_back(loss: Any, **options: Any) -> None:
    loss.backward(**options)


@pytest.fixture
def unruled(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Takes the rule away."""

    def run(self: Traffic, entry: str, forward: Any, args: Any, kwargs: Any, training: object = None) -> Any:
        return forward(*args, **kwargs)

    return lambda: monkeypatch.setattr(Traffic, "run", run)


def test_a_step_asks_each_layer_forward_and_then_back(asked: Asked) -> None:
    hybrid = opened(Three())
    seen = step(hybrid, INPUTS[0], asked)
    assert seen == ([(0, 4), (1, 4), (2, 4), (3, 4), (4, 4), (5, 4)], None)
    assert step(hybrid, INPUTS[1], asked) == seen
    longer, error = step(hybrid, torch.cat(INPUTS), asked)
    assert error is None and longer == [(group, 8) for group, _ in seen[0]]


def test_a_model_that_leaves_layers_out_by_the_text_is_refused_and_shows_nothing(asked: Asked, unruled: Any) -> None:
    hybrid = opened(Exits())
    whole, _ = step(hybrid, INPUTS[1], asked)
    shown, error = step(hybrid, INPUTS[0], asked)
    assert isinstance(error, UnevenTraffic) and shown == whole[:3]
    unruled()
    assert step(hybrid, INPUTS[0], asked)[0] == whole[:1], "the attack works without the rule"


def test_a_loss_that_leaves_layers_out_by_the_text_shows_nothing(asked: Asked, unruled: Any) -> None:
    """Two outputs, of which a loss takes one; rows of zeros stand for gradients that autograd does not ask for."""

    class Two(Three):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
            hidden = self.first(x * self.scale)
            return self.second(hidden), self.third(hidden * 1)

    def one(out: Any, x: torch.Tensor) -> torch.Tensor:
        return mean(out[0] if x[0, 0] > 0 else out[1], x)

    hybrid = opened(Two())
    own = hybrid.model.get_parameter("scale")
    views: list[Any] = []
    found: list[torch.Tensor] = []
    for x in INPUTS:
        own.grad = None
        views.append(step(hybrid, x, asked, one))
        assert own.grad is not None
        found.append(own.grad.clone())
    assert views[0] == views[1] and len(views[0][0]) == 6 and views[0][1] is None
    unruled()
    for x, before in zip(INPUTS, found, strict=True):
        own.grad = None
        views.append(step(hybrid, x, asked, one))
        assert own.grad is not None
        assert torch.allclose(own.grad, before, atol=1e-3, rtol=0.02), "zeros change no gradient"
    assert views[2] != views[3]


def test_layers_that_train_by_the_text_show_nothing(asked: Asked, unruled: Any) -> None:
    hybrid = opened(Detaches())
    views = [step(hybrid, x, asked) for x in (INPUTS[1], INPUTS[0])]
    assert views[0] == views[1] == ([(0, 4), (1, 4), (2, 4), (3, 4), (4, 4), (5, 4)], None)
    unruled()
    assert len(step(hybrid, INPUTS[0], asked)[0]) == 5


def test_a_layer_that_begins_to_train_is_refused_before_it_is_asked(asked: Asked) -> None:
    hybrid = opened(Attaches())
    whole, error = step(hybrid, INPUTS[0], asked)
    assert error is None and len(whole) == 3, "nothing below what is detached"
    shown, error = step(hybrid, INPUTS[1], asked)
    assert isinstance(error, UnevenTraffic) and "set_fhe_mode" in str(error) and shown == whole
    hybrid.set_fhe_mode("execute")
    shown, error = step(hybrid, INPUTS[1], asked)
    assert error is None and len(shown) == 6, "after a change of one's own"


def test_what_is_recomputed_is_a_stretch_of_the_pass(asked: Asked, unruled: Any) -> None:
    hybrid = opened(Recomputes())
    shown, error = step(hybrid, INPUTS[0], asked)
    assert isinstance(error, UnevenTraffic) and "recomputed" in str(error)
    assert (2, 4) not in shown
    unruled()
    assert (2, 4) in step(hybrid, INPUTS[0], asked)[0]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_asks_the_same_for_every_text(reentrant: bool, asked: Asked) -> None:
    hybrid = opened(Checkpoints(reentrant))
    views = [step(hybrid, x, asked) for x in [*INPUTS, *INPUTS]]
    assert views[0][1] is None and all(view == views[0] for view in views)
    groups = [group for group, _ in views[0][0]]
    assert groups[:4] == [0, 1, 2, BACK[2]] and sorted(groups[4:]) == [0, 1, BACK[1], BACK[0]]


def test_several_passes_before_their_gradients_come_back_last_first(asked: Asked) -> None:
    hybrid = opened(Three())
    loss = mean(hybrid(INPUTS[0]), INPUTS[0]) + mean(hybrid(torch.cat(INPUTS)), INPUTS[1])
    asked.clear()
    goes_back(loss)
    assert asked == [(3, 8), (4, 8), (5, 8), (3, 4), (4, 4), (5, 4)]
    asked.clear()
    out = hybrid(INPUTS[0])
    goes_back(mean(out, INPUTS[0]), retain_graph=True)
    goes_back(mean(out, INPUTS[0]))
    assert [group for group, _ in asked] == [0, 1, 2, 3, 4, 5, 3, 4, 5]


def test_a_way_back_that_fails_is_walked_to_its_end(asked: Asked) -> None:
    """At the latest when the next pass begins; its own rows follow then."""
    hybrid = opened(Three())

    def fails(gradient: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a hook that fails for some texts")

    def watch(module: nn.Module, args: Any, out: Any) -> None:
        out.register_hook(fails)

    handle = hybrid.model.get_submodule("second").register_forward_hook(watch)
    shown, error = step(hybrid, INPUTS[0], asked)
    handle.remove()
    assert isinstance(error, RuntimeError) and [group for group, _ in shown] == [0, 1, 2, 3]
    shown, error = step(hybrid, INPUTS[0], asked)
    assert error is None and [group for group, _ in shown] == [4, 5, 0, 1, 2, 3, 4, 5]


def test_a_rehearsal_moves_no_statistics_on() -> None:
    class Normed(Three):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.third(self.second(self.norm(self.first(x * self.scale))))

    hybrid = opened(Normed())
    counted = hybrid.model.get_buffer("norm.num_batches_tracked")
    before = int(counted)
    with contextlib.suppress(UnevenTraffic):
        hybrid(INPUTS[0])
    assert int(counted) == before + 1
