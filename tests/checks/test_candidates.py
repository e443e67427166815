"""Likely tokens' logits are the client's own where the head is tied to an embedding that it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from veil import HybridFHEModel
from veil.bundle.header_file import half_digest
from veil.checks.candidates import LIKELY, ExactCandidates, exact_candidates
from veil.checks.files import path_of
from veil.commands import compile as compiling
from veil.params import Params
from veil.runtime.modules import select_modules

IDS = torch.arange(1, 9).unsqueeze(0)


def test_what_is_added_to_a_likely_logit_is_gone() -> None:
    torch.manual_seed(2)
    table, x = torch.randn(200, 8), torch.randn(3, 8)
    exact = x @ table.T
    forged = exact.clone()
    forged[:, 7] = exact.max() + 1
    refined = ExactCandidates(0, table).refined(x, forged)
    torch.testing.assert_close(refined[:, 7], exact[:, 7])
    assert torch.equal(refined.argmax(dim=1), exact.argmax(dim=1))
    assert int((refined != forged).sum(dim=1).max()) <= LIKELY


def test_a_row_alone_is_refined_as_several_are() -> None:
    torch.manual_seed(3)
    table, x = torch.randn(200, 8), torch.randn(1, 8)
    candidates, outputs = ExactCandidates(0, table), torch.randn(1, 200)
    outputs[0, 5] = float("nan")
    expected = candidates.refined(x, outputs.nan_to_num(-9.0))
    candidates.refine_row(x[0].numpy(), outputs[0].numpy())
    assert outputs.isnan().nonzero().tolist() == [[0, 5]]
    outputs[0, 5] = expected[0, 5]
    torch.testing.assert_close(outputs, expected)
    few = torch.randn(1, 3)
    ExactCandidates(0, table[:3]).refine_row(x[0].numpy(), few[0].numpy())
    torch.testing.assert_close(few, x @ table[:3].T)
    assert not ExactCandidates(0, table.to(torch.bfloat16)).at_hand


def checked(model: Any) -> HybridFHEModel:
    hybrid = HybridFHEModel(model, select_modules(model, "linear"))
    hybrid.compile_model(IDS, params=Params.insecure_tiny(signal_db=52.0), device="cpu")
    hybrid.check_answers("itself")
    return hybrid


def test_a_tied_head_is_computed_here_and_others_are_not(
    tiny_gpt2: Any, tiny_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        exact = tiny_gpt2(IDS).logits
    hybrid = checked(tiny_gpt2)
    assert hybrid.sides.router is not None
    for mode, expected in (("disable", False), ("execute", True), ("disable", False)):
        hybrid.set_fhe_mode(mode)
        assert (hybrid.sides.router.candidates is not None) == expected
    hybrid.set_fhe_mode("execute")
    assert hybrid.checked_against == "itself"
    seen: dict[str, Any] = {}
    hybrid.sides.router.observer = lambda group, x, outputs: seen.update(x=x, outputs=outputs)
    model: Any = hybrid.model
    model(IDS)
    table = model.transformer.wte.weight
    best = seen["outputs"].argmax(dim=1)
    torch.testing.assert_close(seen["outputs"].gather(1, best[:, None])[:, 0], (seen["x"] * table[best]).sum(dim=1))
    assert exact.shape[-1] == seen["outputs"].shape[1]
    assert exact_candidates(tiny_llama, checked(tiny_llama).manifest) is None
    alone: dict[str, Any] = {}
    hybrid.sides.router.observer = None
    monkeypatch.setattr(ExactCandidates, "refine_row", lambda own, x, outputs: alone.update(x=x, outputs=outputs))
    model(IDS[:, :1])
    assert alone["outputs"].shape == (exact.shape[-1],), "one row is refined where it is decrypted"
    hybrid.close()


def test_compiling_for_oneself_makes_the_vectors_outside_of_the_bundle(llama_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    settings: dict[str, Any] = {"bits": 8, "modules": "linear", "fuse_norms": "off", "as_json": True}
    compiling.run(str(llama_folder), out, **settings, checks=True)
    path = path_of(half_digest(out / "client"))
    assert path.is_file() and not list(out.rglob("*check*"))
