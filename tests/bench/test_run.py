"""A whole measurement: its record says what was asked, counts what the protocol's formulas give, and adds up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from veil.bench import machine, report, run
from veil.bench.phases import PHASES
from veil.bench.record import Record
from veil.bench.subjects import Loaded
from veil.errors import DeviceUnavailable
from veil.params import Params
from veil.wire.messages import BatchUpload

PARAMS = Params.insecure_tiny()
IN_ONE_PROCESS = ["rows, client", "rows, server", "encrypt", "product", "decrypt", "layers"]
IN_TWO = [name for name in PHASES if name not in ("rows", "whole pass")]


def test_the_record_says_what_was_measured(tiny_record: Record) -> None:
    settings, model = tiny_record.settings, tiny_record.model
    assert (settings.mode, settings.device, settings.prompt_rows, settings.new_tokens) == ("execute", "cpu", 5, 3)
    assert (settings.batch_rows, settings.busy) == (PARAMS.T, 0)
    assert (model.name, model.origin, model.hidden_size) == ("tiny", "a test", 32)
    assert model.round_trips == 2 * 4 + 1 and model.remote_layers == 2 * 7 + 1
    assert model.inputs == 2 * (3 * 32 + 48) + 32
    assert model.outputs == 2 * (32 + 16 + 16 + 32 + 48 + 48 + 32) + 64
    assert sum(count for _, _, count in model.shapes) == model.remote_layers
    assert sum(width * outputs * count for width, outputs, count in model.shapes) == model.remote_weights
    assert tiny_record.parameters["inner_degree"] == 32 and tiny_record.parameters["security_bits"] == 0


def test_bytes_are_those_of_the_formulas(tiny_record: Record) -> None:
    size, model = tiny_record.bytes_per_token, tiny_record.model
    assert size.up_offline == (PARAMS.batch_bytes + BatchUpload.HEADER_BYTES) / PARAMS.T
    assert size.down_offline == 0
    assert 12 / 8 * model.inputs <= size.up_online <= 32 / 8 * model.inputs
    assert 8 / 8 * model.outputs <= size.down_online <= 24 / 8 * model.outputs + model.round_trips
    assert size.total == size.up_offline + size.up_online + size.down_online
    assert size.clear_float32 == 4 * (model.inputs + model.outputs)
    assert tiny_record.ratio.clear_bytes == size.total / size.clear_float32


def test_phases_add_up_to_the_token(tiny_record: Record) -> None:
    token, spread = tiny_record.token_s, tiny_record.token_spread
    assert [phase.name for phase in tiny_record.phases] == IN_ONE_PROCESS
    assert (token.offline, token.online) == (spread["offline"].median_s, spread["online"].median_s)
    assert token.total == pytest.approx(token.offline + token.online)
    assert (spread["offline"].count, spread["online"].count) == (2, 3 * 2)
    for moment in ("offline", "online"):
        parts = [phase.token for phase in tiny_record.phases if phase.moment == moment]
        assert {part.count for part in parts} == {spread[moment].count}
        assert all(0 < part.low_s <= part.median_s <= part.high_s for part in parts)
        assert sum(part.low_s for part in parts) <= spread[moment].high_s
        assert sum(part.high_s for part in parts) >= spread[moment].low_s


def test_ratios_are_of_figures_of_the_same_run(tiny_record: Record) -> None:
    token, ratio = tiny_record.token_s, tiny_record.ratio
    assert token.plaintext is not None and token.peer is None and ratio.peer is None and tiny_record.peer is None
    assert ratio.plaintext_total == token.total / token.plaintext
    assert ratio.plaintext_offline == token.offline / token.plaintext
    assert ratio.plaintext_online == token.online / token.plaintext
    assert ratio.floor == token.total / tiny_record.floor.seconds
    assert tiny_record.memory.server_arrays_bytes < tiny_record.memory.highest_bytes


def test_a_prompts_row_has_its_part_offline_in_it(tiny_record: Record) -> None:
    assert [prompt.rows for prompt in tiny_record.prompts] == [5, 20]
    for prompt in tiny_record.prompts:
        assert prompt.plaintext_s is not None and prompt.ratio == prompt.row_s / prompt.plaintext_s
        assert prompt.row_s == prompt.offline_s + prompt.online_s and prompt.online_s == prompt.online.median_s
        assert prompt.offline_s >= tiny_record.token_s.offline / prompt.rows > 0
        assert prompt.online.count == 2
    assert tiny_record.prompt(20) == tiny_record.prompts[1] and tiny_record.prompt(21) is None


def test_every_limit_is_there(tiny_record: Record) -> None:
    assert len(tiny_record.limits) == 5
    assert all(limit.timing.median_s > 0 for limit in tiny_record.limits)
    assert all((limit.share is None) == (limit.bound == "time") for limit in tiny_record.limits)


def test_two_processes_measure_the_same_things_beside_a_busy_one(
    new_model: Callable[[str], Any], tiny_record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "READ_BYTES", 1 << 20)
    request = run.RunRequest(mode="remote", prompts=(5,), new_tokens=2, repeats=1, busy=1, params=PARAMS)
    made = run.measure(request, lambda stage, done, total: None, Loaded("tiny", "a test", new_model("llama")))
    assert made.model == tiny_record.model and made.settings.busy == 1
    assert made.bytes_per_token.total == tiny_record.bytes_per_token.total
    assert made.memory.separate_processes and made.memory.server_bytes > 10e6 and made.memory.client_bytes > 10e6
    assert [phase.name for phase in made.phases] == IN_TWO
    assert min(phase.token.median_s for phase in made.phases) > 0
    assert made.token_s.plaintext is None and made.prompts[0].ratio is None


def test_what_cannot_be_measured_is_refused_first(new_model: Callable[[str], Any]) -> None:
    def nothing(stage: str, done: int, total: int) -> None:
        raise AssertionError("work began")

    loaded = Loaded("tiny", "a test", new_model("llama"))
    with pytest.raises(ValueError, match="128 positions; lower --prompt-rows"):
        run.measure(run.RunRequest(prompts=(100,), new_tokens=40), nothing, loaded)
    with pytest.raises(ValueError, match="128 positions; lower --prompt-rows"):
        run.measure(run.RunRequest(prompts=(8, 129), new_tokens=1), nothing, loaded)
    with pytest.raises(DeviceUnavailable):
        run.measure(run.RunRequest(device="cuda"), nothing, loaded)


@pytest.mark.gpu
def test_both_halves_and_plaintext_are_measured_on_the_gpu(new_model: Callable[[str], Any]) -> None:
    request = run.RunRequest(
        device="cuda", prompts=(5, 20), new_tokens=4, repeats=2, plaintext=True, params=Params.default()
    )
    made = run.measure(request, lambda stage, done, total: None, Loaded("tiny", "a test", new_model("llama")))
    assert made.machine.accelerator and made.settings.device == "cuda" and made.token_s.plaintext is not None
    assert [phase.name for phase in made.phases] == ["rows", "whole pass"]
    assert all(phase.token.median_s > 0 for phase in made.phases)
    assert made.token_s.total > made.token_s.online > 0
    assert len(report.tables(made)) == 4
    assert made.memory.highest_bytes > made.memory.server_arrays_bytes > 0
