"""Groups, slots and segments, and a manifest read from a file that is checked before it is believed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from veil.bundle.manifest import MAX_SLOTS, MAX_WIDTH, Group, Layer, Manifest, make_groups
from veil.errors import BundleError


def layer(name: str, width: int = 8, rows: int = 4, kind: Any = "linear", bits: int = 8) -> Layer:
    return Layer(name, kind, width, rows, bits, True)


Q, K, V, OUT, UP, HEAD = layer("q"), layer("k"), layer("v", rows=2), layer("o"), layer("up", 16), layer("head", rows=100)


def test_layers_that_read_one_tensor_become_a_group() -> None:
    manifest = make_groups([(Q, 1), (K, 1), (V, 1), (OUT, 2), (UP, 3), (HEAD, 4)], "head")
    assert [group.name for group in manifest.groups] == ["q+k+v", "o", "up", "head"]
    assert [group.segment for group in manifest.groups] == ["body", "body", "body", "head"]
    assert manifest.widths == [8, 8, 16, 8]
    assert manifest.starts == (0, 10, 14, 0)
    assert manifest.segments == {"body": 18, "head": 100}
    assert manifest.by_layer["k"] == (0, slice(4, 8))
    assert manifest.by_layer["v"] == (0, slice(8, 10))
    assert (manifest.total_slots, manifest.total_inputs) == (118, 40)


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        ([(Q, 1), (OUT, 2), (K, 1)], ["q", "o", "k"]),
        ([(Q, 1), (UP, 1)], ["q", "up"]),
        ([(Q, 1), (layer("e", kind="embedding"), 1)], ["q", "e"]),
        ([(layer("e", kind="embedding"), 1), (layer("f", kind="embedding"), 1)], ["e", "f"]),
        ([(Q, 1), (HEAD, 1), (K, 1)], ["q", "head", "k"]),
    ],
    ids=["interrupted", "another width", "an embedding", "two embeddings", "the head"],
)
def test_what_does_not_follow_in_kind_stays_alone(inputs: Any, names: list[str]) -> None:
    assert [group.name for group in make_groups(inputs, "head").groups] == names


def test_a_manifest_survives_json() -> None:
    manifest = make_groups([(Q, 1), (K, 1), (HEAD, 4)], "head")
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def as_json(bits_of_the_wire: Any = (24, 16), **changes: Any) -> list[dict[str, Any]]:
    fields = {"name": "a", "kind": "linear", "in_features": 8, "out_features": 4, "bits": 8, "bias": False}
    return [{"segment": "body", "bits": bits_of_the_wire, "layers": [fields | changes]}]


DAMAGED: list[tuple[Any, str]] = [
    (None, "not what this version writes"),
    ([{"segment": "body"}], "not what this version writes"),
    ([{"layers": []}], "not what this version writes"),
    ([{"segment": "body", "layers": [{"name": "a"}]}], "not what this version writes"),
    (as_json(extra=1), "not what this version writes"),
    ([], "0 outputs"),
    ([{"segment": "body", "layers": as_json()[0]["layers"]}], "not what this version writes: 'bits'"),
    ([{"segment": "body", "bits": [24, 16], "layers": []}], "one input width"),
    ([as_json()[0] | {"segment": "tail"}], "segment 'tail'"),
    (as_json((24, 7)), r"values of \(24, 7\) bits, expected 8 to 32"),
    (as_json((33, 16)), r"values of \(33, 16\) bits, expected 8 to 32"),
    (as_json((24.0, 16)), "bits, expected 8 to 32"),
    (as_json((24, 16, 16)), "not what this version writes"),
    (as_json(24), "not what this version writes"),
    (as_json() + as_json(), "twice"),
    (as_json(kind="lstm"), "of kind 'lstm'"),
    (as_json(name="../../etc/passwd"), "named '../../etc/passwd'"),
    (as_json(name=""), "named ''"),
    (as_json(name=7), "wrong type"),
    (as_json(in_features="8"), "wrong type"),
    (as_json(in_features=8.5), "wrong type"),
    (as_json(in_features=0), "outside the limits"),
    (as_json(in_features=MAX_WIDTH + 1), "outside the limits"),
    (as_json(out_features=-1), "outside the limits"),
    (as_json(out_features=MAX_SLOTS + 1), "outside the limits"),
    (as_json(bits=9), "outside the limits"),
    (as_json(bits=1), "outside the limits"),
    (as_json(out_features=MAX_SLOTS) + as_json(name="b"), f"expected 1 to {MAX_SLOTS}"),
]


@pytest.mark.parametrize(("value", "message"), DAMAGED, ids=[str(place) for place in range(len(DAMAGED))])
def test_a_damaged_manifest_is_refused(value: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(value)


def test_layers_of_different_widths_are_no_group() -> None:
    with pytest.raises(BundleError, match="one input width"):
        Manifest((Group((Q, UP), "body"),)).check()
