"""The script that tries every architecture: what it calls working, refused and failing, on a few of them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("family_record", "family_check", "small_models", "families")


@pytest.fixture(scope="module")
def bench() -> Iterator[dict[str, Any]]:
    """The script's modules, with their folder on the path as it is when they run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "bench")
        yield {name: importlib.import_module(name) for name in NAMES}
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_an_architecture_that_works(bench: dict[str, Any], kind: str) -> None:
    found = bench["family_check"].examine(kind, bench["small_models"].architectures()[kind])
    assert (found.verdict, found.reason, found.bundle) == ("works", "", "same")
    assert found.remote_layers == found.called > 5 and found.remote_share > 0.5
    assert found.layer_db > 30 and found.quantized_db > 25 and found.encrypted_db > 35


class TwoFaced(nn.Module):
    """Doubles its output where a layer is remote, which no layer of it shows."""

    main_input_name = "x"

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.config = nn.Linear(8, 8), nn.Linear(8, 8), None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(self.first(x))
        return 2 * out if getattr(self.second, "router", None) is not None else out


def test_a_silent_difference_fails(bench: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    made = TwoFaced().eval(), {"x": torch.randn(4, 8)}
    monkeypatch.setattr(bench["family_check"], "small_model", lambda kind, names: made)
    found = bench["family_check"].examine("two-faced", ())
    assert found.verdict == "fails", found.reason
    assert found.reason.startswith("the output has")


def test_errors_of_veil_are_refusals_and_others_are_failures(bench: dict[str, Any]) -> None:
    from veil import HybridFHEModel

    judged = bench["family_check"]._judged
    text: Any = "x"
    for call, verdict in (
        (lambda: HybridFHEModel(nn.Linear(2, 2), "x"), "refused"),
        (lambda: torch.ones(2) @ text, "fails"),
    ):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            call()
        assert judged(caught.value) == verdict


def test_a_record_is_read_as_it_was_written(bench: dict[str, Any], tmp_path: Path) -> None:
    kind = bench["family_record"]
    rows = [kind.Family(kind="a", verdict="works", layer_db=40.1), kind.Family(kind="b", reason="no timm")]
    record = kind.FamilyRecord(commit="c", machine="m", versions={}, families=rows)
    record.write(tmp_path / "families.json")
    assert kind.FamilyRecord.read(tmp_path / "families.json") == record
    assert record.counts() == {"works": 1, "not built": 1}
    (tmp_path / "families.json").write_text('{"format": 2, "kind": "token"}')
    with pytest.raises(ValueError, match="not a record of families"):
        kind.FamilyRecord.read(tmp_path / "families.json")


def test_text_models_are_tried_first(bench: dict[str, Any]) -> None:
    order = bench["families"].in_order()
    assert set(order) == set(bench["small_models"].architectures()) and len(order) == len(set(order)) > 100
    assert order.index("llama") < order.index("vit")
