"""Steps of lengths: every length of a step has one number, and what ``--pad`` says is understood or refused."""

from __future__ import annotations

import pytest

from veil.runtime.padding import Padding


def test_steps() -> None:
    sixty_four, powers = Padding(), Padding(step=16, powers=True)
    assert [sixty_four.rows(n) for n in (0, 1, 63, 64, 65, 128, 129)] == [0, 64, 64, 64, 128, 128, 192]
    assert [powers.rows(n) for n in (0, 1, 16, 17, 32, 33, 1000)] == [0, 16, 16, 32, 32, 64, 1024]
    with pytest.raises(ValueError, match="it has to be 1 at least"):
        Padding(step=0)


def test_answers_end_at_a_step_or_at_their_most() -> None:
    assert [Padding().tokens(n, 100) for n in (1, 64, 65, 100)] == [64, 64, 100, 100]
    assert [Padding().tokens(n, None) for n in (1, 65)] == [64, 128]
    assert [Padding(whole_answers=True).tokens(n, 100) for n in (1, 100)] == [100, 100]
    assert Padding().tokens(0, 100) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("off", None),
        ("64", Padding()),
        ("100,whole", Padding(step=100, whole_answers=True)),
        ("powers", Padding(step=16, powers=True)),
        ("powers,whole", Padding(step=16, powers=True, whole_answers=True)),
    ],
)
def test_what_the_option_says(text: str, expected: Padding | None) -> None:
    assert Padding.parse(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-1", "on", "64,", "64,half", "1e3", "off,whole", "99999999", "\u0663"])
def test_what_it_cannot_say(text: str) -> None:
    with pytest.raises(ValueError, match="--pad is off, a number of rows, or powers"):
        Padding.parse(text)
