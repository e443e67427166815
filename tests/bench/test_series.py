"""The formula of cost by width: it goes through two points, near more, and each phase grows as it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from veil.bench import run, series, subjects
from veil.bench.phases import PHASES
from veil.bench.record import Phase, Ratio, Record, Subject, Timing, TokenSeconds, WidthPoint, WidthSeries
from veil.bench.series import Quantities, predicted
from veil.progress import Progress


def point(width: int, seconds: float = 1.0) -> WidthPoint:
    quantities = Quantities.of_width(width)
    model = Subject(
        name="w", origin="", parameters=1, remote_weights=round(quantities.weights), remote_layers=round(quantities.calls),
        round_trips=17, inputs=round(quantities.inputs), outputs=round(quantities.outputs), hidden_size=width, shapes=(),
    )  # fmt: skip
    timing = Timing(median_s=seconds, low_s=seconds, high_s=seconds, count=1)
    phases = tuple(
        Phase(name=name, moment=moment, side=side, token=timing)
        for name, (moment, side) in PHASES.items()
        if name not in ("rows", "whole pass")
    )
    token = TokenSeconds(total=8 * seconds, offline=3 * seconds, online=5 * seconds, plaintext=7 * seconds)
    ratio = Ratio(floor=1.0, clear_bytes=0.5)
    return WidthPoint(model=model, token_s=token, ratio=ratio, prompts=(), phases=phases, highest_bytes=1)


def test_two_points_are_met_and_what_does_not_grow_is_between_them() -> None:
    points = [point(512), point(2048, 2.0)]
    fixed = (1 + 1 / 2) / (1 + 1 / 4)  # least relative errors of one value for 1 and 2
    for place, factor in ((512, 1.0), (2048, 2.0)):
        token = predicted(points, place)
        expected = (6 * factor + 2 * fixed, 4 * factor + fixed, 7 * factor)
        assert (token.total, token.online, token.plaintext) == pytest.approx(expected)


def test_between_them_phases_grow_with_what_they_work_on() -> None:
    one, middle, two = (Quantities.of_width(width) for width in (512, 1024, 2048))
    assert two.of_phase("rows, network") == one.of_phase("rows, network") and two.of_phase("network") == one.of_phase(
        "network"
    )
    assert two.inputs == 4 * one.inputs
    assert all(one.of_phase(name) > 0 for name in PHASES)
    token = predicted([point(512), point(2048, 2.0)], 1024)
    weights = 1 + (middle.weights - one.weights) / (two.weights - one.weights)
    assert token.plaintext == pytest.approx(7.0 * weights)
    straight = 1 + (1024 - 512) / (2048 - 512)
    fixed = (1 + 1 / 2) / (1 + 1 / 4)
    assert token.online == pytest.approx(weights + 3 * straight + fixed)
    assert token.total == pytest.approx(token.online + 2 * straight + fixed)
    assert token.total == pytest.approx(token.online + token.offline)


def test_points_that_follow_the_formula_give_it_back_and_no_part_is_below_zero() -> None:
    def follows(width: int, fixed: float, growing: float) -> WidthPoint:
        made, quantities = point(width), Quantities.of_width(width)
        seconds = {phase.name: fixed + growing * quantities.of_phase(phase.name) for phase in made.phases}
        phases = tuple(replace(phase, token=replace(phase.token, median_s=seconds[phase.name])) for phase in made.phases)
        return replace(made, phases=phases)

    points = [follows(width, 1e-3, 1e-12) for width in (512, 1024, 2048, 4096)]
    assert predicted(points, 3072).online == pytest.approx(
        sum(phase.token.median_s for phase in follows(3072, 1e-3, 1e-12).phases if phase.moment == "online")
    )
    steep = [point(512, 1.0), point(1024, 16.0), point(2048, 256.0)]  # a straight line would begin below zero
    assert 0 < predicted(steep, 256).online < predicted(steep, 512).online


@pytest.mark.parametrize("width", [256, 512])
def test_quantities_of_a_width_are_those_of_the_model_that_is_made(width: int) -> None:
    with torch.device("meta"):
        shapes = subjects.layer_shapes(subjects.of_width(width).model)
    quantities = Quantities.of_width(width)
    assert quantities.outputs == sum(outputs * count for _, outputs, count in shapes)
    assert quantities.weights == sum(inputs * outputs * count for inputs, outputs, count in shapes)
    assert quantities.calls == sum(count for _, _, count in shapes)


@pytest.mark.parametrize("width", [0, 100, 255, -256])
def test_other_widths_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match="multiple of 256"):
        subjects.check_width(width)


def test_a_series_measures_each_width_in_turn(tiny_record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, run.RunRequest]] = []
    stages: list[str] = []

    def measured(request: run.RunRequest, progress: Progress, loaded: subjects.Loaded) -> Record:
        seen.append((loaded.name, request))
        progress("work", 0, 1)
        return replace(tiny_record, model=replace(tiny_record.model, hidden_size=loaded.hidden_size))

    monkeypatch.setattr(run, "measure", measured)
    with torch.device("meta"):
        made = series.measure(run.RunRequest(plaintext=True), (256, 512), lambda stage, done, total: stages.append(stage))
    assert [name for name, _ in seen] == ["width-256", "width-512"]
    assert all(request.plaintext and request.prompts == (64,) for _, request in seen)
    assert stages == ["width 256: work", "width 512: work"]
    assert isinstance(made, WidthSeries) and [p.model.hidden_size for p in made.points] == [256, 512]
    assert made.points[0].phases == tiny_record.phases
