"""A whole measurement: its record says what was asked, counts what the protocol's formulas give, and adds up."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from veil.bench import machine, report, run
from veil.bench.record import Record
from veil.bench.subjects import Loaded
from veil.errors import DeviceUnavailable
from veil.params import Params

PARAMS = Params.insecure_tiny()
PROMPT_ROWS, NEW_TOKENS, REPEATS = 5, 3, 1


def test_the_record_says_what_was_measured(tiny_record: Record) -> None:
    settings, model = tiny_record.settings, tiny_record.model
    assert (settings.mode, settings.device, settings.prompt_rows, settings.new_tokens) == ("execute", "cpu", 5, 3)
    assert settings.masks_at_once == PARAMS.masks_per_epoch
    assert (model.name, model.origin, model.hidden_size) == ("tiny", "a test", 32)
    assert model.round_trips == 2 * 4 + 1 and model.remote_layers == 2 * 7 + 1
    assert model.inputs == 2 * (3 * 32 + 48) + 32
    assert model.outputs == 2 * (32 + 16 + 16 + 32 + 48 + 48 + 32) + 64
    assert sum(count for _, _, count in model.shapes) == model.remote_layers
    assert sum(width * outputs * count for width, outputs, count in model.shapes) == model.remote_weights
    assert tiny_record.parameters["inner_degree"] == 64 and tiny_record.parameters["security_bits"] == 0


def test_bytes_are_those_of_the_formulas(tiny_record: Record) -> None:
    size, model, spec = tiny_record.bytes_per_token, tiny_record.model, PARAMS.spec
    assert size.up_online == model.inputs * spec.input_bits // 8
    rounding = model.round_trips
    assert 0 <= size.down_online - model.outputs * spec.result_bits / 8 < rounding
    header = 5
    assert size.up_ahead == PARAMS.mask_bytes + header + PARAMS.epoch_key_bytes / PARAMS.masks_per_epoch
    assert size.down_ahead == 0
    assert size.total == size.up_ahead + size.up_online + size.down_online
    assert size.clear_float32 == 4 * (model.inputs + model.outputs)


def test_phases_add_up_to_the_token(tiny_record: Record) -> None:
    token, spread = tiny_record.token_s, tiny_record.token_spread
    assert token.total == pytest.approx(spread["online"].median_s + spread["ahead"].median_s)
    assert spread["online"].count == NEW_TOKENS * REPEATS
    for moment in ("ahead", "online"):
        parts = [phase.token for phase in tiny_record.phases if phase.moment == moment]
        assert {part.count for part in parts} == {spread[moment].count}
        assert all(part.low_s <= part.median_s <= part.high_s for part in parts)
        assert min(part.median_s for part in parts) > 0
        assert sum(part.low_s for part in parts) <= spread[moment].high_s
        assert sum(part.high_s for part in parts) >= spread[moment].low_s


def test_ratios_are_of_figures_of_the_same_run(tiny_record: Record) -> None:
    token, ratio = tiny_record.token_s, tiny_record.ratio
    assert token.plaintext is not None and token.peer is None and ratio.peer is None and tiny_record.peer is None
    assert ratio.plaintext_total == token.total / token.plaintext
    assert ratio.plaintext_online == token.online / token.plaintext
    assert ratio.floor == token.total / tiny_record.floor.seconds
    assert tiny_record.prompt.row_s == tiny_record.prompt.prepare_s + tiny_record.prompt.online_s
    assert tiny_record.prompt.plaintext_s is not None
    assert tiny_record.memory.server_arrays_bytes < tiny_record.memory.highest_bytes


def test_a_link_costs_at_least_what_was_added(tiny_record: Record) -> None:
    (sample,) = tiny_record.link
    size = tiny_record.bytes_per_token
    added = sample.round_trips * sample.rtt_s + (size.up_online + size.down_online) / sample.bytes_per_s
    assert sample.round_trips == tiny_record.model.round_trips
    assert sample.formula_s == pytest.approx(tiny_record.token_s.online + added)
    assert sample.token_s >= added


def test_every_row_count_and_limit_is_there(tiny_record: Record) -> None:
    assert [cost.rows for cost in tiny_record.by_rows] == [1, 2, 4]
    assert all(cost.prepare_s > 0 and cost.online_s > 0 for cost in tiny_record.by_rows)
    assert len(tiny_record.limits) == 7
    assert all(limit.timing.median_s > 0 for limit in tiny_record.limits)
    assert all((limit.share is None) == (limit.bound == "time") for limit in tiny_record.limits)


def test_two_processes_measure_the_same_things(
    new_model: Callable[[str], Any], tiny_record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_READ_BYTES", 1 << 20)
    request = run.Request(
        mode="remote", prompt_rows=PROMPT_ROWS, new_tokens=2, repeats=1, links=(), rows=(1, 4), params=Params.insecure_tiny()
    )
    made = run.measure(request, lambda stage, done, total: None, Loaded("tiny", "a test", new_model("llama")))
    assert made.model == tiny_record.model
    assert made.bytes_per_token.total == tiny_record.bytes_per_token.total
    assert made.memory.separate_processes and made.memory.server_bytes > 10e6 and made.memory.client_bytes > 10e6
    assert min(phase.token.median_s for phase in made.phases) > 0
    assert made.phase("transport") > 0 and made.token_s.plaintext is None


def test_what_cannot_be_measured_is_refused_first(new_model: Callable[[str], Any]) -> None:
    def nothing(stage: str, done: int, total: int) -> None:
        raise AssertionError("work began")

    loaded = Loaded("tiny", "a test", new_model("llama"))
    with pytest.raises(ValueError, match="128 positions; lower --prompt-rows"):
        run.measure(run.Request(prompt_rows=100, new_tokens=40), nothing, loaded)
    with pytest.raises(DeviceUnavailable):
        run.measure(run.Request(device="cuda"), nothing, loaded)


def test_folded_norms_on_a_card_are_refused_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "kernels_for", lambda device: SimpleNamespace(name=device))
    with pytest.raises(ValueError, match="leave out --fold-norms"):
        run.measure(run.Request(device="cuda", fold_norms="auto"), lambda *_: None)


@pytest.mark.gpu
def test_both_halves_and_plaintext_are_measured_on_the_card(new_model: Callable[[str], Any]) -> None:
    request = run.Request(
        device="cuda", prompt_rows=PROMPT_ROWS, new_tokens=4, repeats=2, plaintext=True, rows=(1, 4), params=Params.default()
    )
    made = run.measure(request, lambda stage, done, total: None, Loaded("tiny", "a test", new_model("llama")))
    assert made.machine.accelerator and made.settings.device == "cuda" and made.token_s.plaintext is not None
    assert [phase.name for phase in made.phases if phase.moment == "online"] == ["whole pass"]
    assert all(phase.token.median_s > 0 for phase in made.phases)
    assert made.link == () and made.token_s.total > made.token_s.online > 0
    assert len(report.tables(made)) == 3
    assert made.memory.highest_bytes > made.memory.server_arrays_bytes > 0
