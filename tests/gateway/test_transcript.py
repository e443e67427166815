"""Tokens become text in whole characters, and a stop string never shows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.gateway.sampling import Drawn
from veil.gateway.transcript import Transcript


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return bytes(ids).decode(errors="replace")


def pieces(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], Transcript]:
    transcript = Transcript(Bytes(), stop)
    shown = []
    for byte in text.encode():
        shown.append(transcript.add(byte).text)
        if transcript.stopped:
            break
    shown.append(transcript.end().text)
    return shown, transcript


@given(st.text(st.characters(exclude_characters="\ufffd", codec="utf-8"), max_size=30))
def test_text_comes_out_whole(text: str) -> None:
    shown, _ = pieces(text)
    assert "".join(shown) == text
    assert not any("\ufffd" in piece for piece in shown)


@given(st.text("abc é", max_size=30), st.lists(st.text("abc é", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop(text: str, stops: list[str]) -> None:
    shown, transcript = pieces(text, tuple(stops))
    cut = text
    for length in range(len(text) + 1):  # as soon as a stop is complete the text ends before its first
        places = [text[:length].find(stop) for stop in stops if stop in text[:length]]
        if places:
            cut = text[: min(places)]
            break
    assert "".join(shown) == cut
    assert transcript.stopped == (cut != text or any(stop in text for stop in stops))


def test_what_may_become_a_stop_is_held_back_and_let_go() -> None:
    assert pieces("a<|b", ("<|end|>",))[0] == ["a", "", "", "<|b", ""]


def test_a_part_of_a_character_at_the_end_is_shown_as_such() -> None:
    transcript = Transcript(Bytes())
    assert [transcript.add(byte).text for byte in "é".encode()[:1]] == [""]
    assert transcript.end().text == "\ufffd"


@pytest.mark.parametrize("stop", [(), ("lo wo",), ("h",)])
def test_scored_tokens_are_those_of_the_text(stop: tuple[str, ...]) -> None:
    transcript = Transcript(Bytes(), stop)
    text = ""
    tokens: list[Any] = []
    for byte in b"hello world":
        piece = transcript.add(byte, Drawn(-0.5, ((byte, -0.5), (byte + 1, -1.0))))
        text, tokens = text + piece.text, tokens + list(piece.tokens)
        if transcript.stopped:
            break
    rest = transcript.end()
    text, tokens = text + rest.text, tokens + list(rest.tokens)
    assert "".join(token.text for token in tokens) == text
    assert [token.offset for token in tokens] == list(range(len(text)))
    assert all((token.top[0].bytes, token.top[0].logprob) == (token.bytes, -0.5) for token in tokens)
