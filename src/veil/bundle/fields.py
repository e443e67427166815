"""What stands in the header of a bundle's half, as JSON: `veil.bundle.header_file` reads and checks it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from veil.bundle.terms import ExpertLeak

if TYPE_CHECKING:
    from veil.bundle.manifest import Kind


class _LayerNeeds(TypedDict):
    name: str
    kind: Kind
    in_features: int
    out_features: int
    bits: int
    bias: bool


class LayerFields(_LayerNeeds, total=False):
    """One layer of a group."""

    last_row: bool


class FusionFields(TypedDict):
    """The norm that a group is fused over."""

    before: str
    after: str
    width: int


class _GroupNeeds(TypedDict):
    segment: str
    bits: list[int]
    layers: list[LayerFields]


class GroupFields(_GroupNeeds, total=False):
    """One group of a manifest; ``bits`` are those of its inputs and its results."""

    fusion: FusionFields
    transposed: int
    words: int


Header = TypedDict(
    "Header",
    {
        "format": int,
        "half": str,
        "sha256": dict[str, str],
        "params": dict[str, float],
        "seed": str,
        "manifest": list[GroupFields],
        "client": str,
        "class": str,
        "model": str,
        "norms": list[tuple[float, float | None]],
        "places": dict[str, str],
        "experts": dict[str, ExpertLeak],
        "absent": list[str],
    },
    total=False,
)
"""A half's ``bundle.json``. ``format`` to ``manifest`` are in both halves, ``client`` in the server's (the digest of the
other half), the rest in the client's.

Files say what their makers want: who reads one checks what it uses, and takes other types than these for damage.
"""
