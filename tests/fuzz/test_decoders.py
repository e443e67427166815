"""Every decoder with Hypothesis: any bytes, and right inputs with a few bytes changed, cut, doubled or put in."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.targets import TARGETS, escaped, examples, refusals

WHOLE = ("batch", "spans", "upload", "evaluate", "frames", "path")
FEW = {"upload": 40, "evaluate": 60, "header": 60, "frames": 40, "token_file": 60}


@st.composite
def bent(draw: st.DrawFn, example: bytes) -> bytes:
    data = bytearray(example)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["change", "cut", "double", "insert", "end"]))
        if kind == "change" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 8))]
        elif kind == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=16))
        elif kind == "end":
            del data[at:]
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_right_input_is_taken(name: str) -> None:
    for example in examples(name):
        refusals.clear()
        TARGETS[name](example)
        if name in WHOLE:
            assert not refusals, "the example does not reach what it is an example of"


@pytest.mark.parametrize("name", [name for name in TARGETS if escaped(name)])
def test_what_once_escaped_is_refused(name: str) -> None:
    for data in escaped(name):
        refusals.clear()
        TARGETS[name](data)
        assert refusals


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_taken_or_refused(name: str) -> None:
    @given(st.one_of(st.binary(max_size=300), *(bent(example) for example in examples(name))))
    @settings(derandomize=True, deadline=None, max_examples=FEW.get(name, 100), suppress_health_check=list(HealthCheck))
    def run(data: bytes) -> None:
        TARGETS[name](data)

    run()
