"""Which layers are remote, in which groups, and where their outputs (slots) stand.

A group is a set of layers that read the same tensor: its input goes up once and one reply carries all outputs. Groups
belong to a segment: ``body``, or ``head`` for the output embedding, which most prompt rows do not need. A group with a
`NormFusion` reads the residual stream and a layer's input together, and answers for the layers behind the next norm as well.
A model compiled for training has, behind all others, the transposed groups of segment ``back``, which gradients go through.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar

from veil.bundle.fields import FusionFields, GroupFields, LayerFields
from veil.errors import BundleError

Kind = Literal["linear", "conv1d", "embedding"]
Sums = TypeVar("Sums", bound=Any)
"""Arrays of any backend."""
SEGMENTS = ("body", "head", "back")

MAX_WIDTH = 1 << 20
MAX_SLOTS = 1 << 24
NAME = r"[\w.\-]{1,256}"


@dataclass(frozen=True)
class Layer:
    """One remote module: its name, kind, widths, bits of its weights and whether it has a bias.

    Of a layer with ``last_row`` nothing but the last row of a sequence matters where only its logits are asked for.
    """

    name: str
    kind: Kind
    in_features: int
    out_features: int
    bits: int
    bias: bool
    last_row: bool = False


@dataclass(frozen=True)
class NormFusion:
    """A norm that a group was fused over: names of the norms whose inputs are the stream before and after, its width."""

    before: str
    after: str
    width: int


@dataclass(frozen=True)
class Group:
    """Layers that read the same tensor, stacked in this order.

    With a ``fusion`` the input is the residual stream, then what the first layer reads; the first layer adds to the stream,
    and the others read it through the norm ``fusion.after``. Values go up and results come down with as many bits as the
    compiler found to be enough.
    """

    layers: tuple[Layer, ...]
    segment: str
    fusion: NormFusion | None = None
    input_bits: int = 24
    result_bits: int = 16
    transposed: int | None = field(default=None, kw_only=True)
    """Of a group of segment ``back``: which group's weights it multiplies with, transposed."""
    words: int = field(default=1, kw_only=True)
    """Slots of an output, next to each other: of two, the second has what rounding takes from the first one's weights."""

    @cached_property
    def name(self) -> str:
        """The names of the layers, for people and files."""
        return "+".join(layer.name for layer in self.layers)

    @cached_property
    def width(self) -> int:
        """Width of the shared input."""
        return self.layers[0].in_features + (self.fusion.width if self.fusion else 0)

    @cached_property
    def outputs(self) -> int:
        """Outputs of all layers together."""
        return sum(layer.out_features for layer in self.layers)

    @cached_property
    def rows(self) -> int:
        """Slots: rows of the integer weights, one for each output and word."""
        return self.words * self.outputs

    @cached_property
    def prompt_rows(self) -> int:
        """Slots, the first ones, that matter for every row of a prompt and not for the last alone."""
        return self.words * sum(layer.out_features for layer in self.layers if not layer.last_row)

    def whole(self, slots: Sums) -> Sums:
        """Outputs [R, outputs] of results [R, slots], some first ones or all: the sums of each output's words."""
        return slots if self.words == 1 else slots[:, ::2] + slots[:, 1::2]


@dataclass(frozen=True)
class Manifest:
    """All groups, in slot order within each segment."""

    groups: tuple[Group, ...]

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First slot of each group within its segment."""
        used = dict.fromkeys(SEGMENTS, 0)
        starts = []
        for group in self.groups:
            starts.append(used[group.segment])
            used[group.segment] += group.rows
        return tuple(starts)

    @cached_property
    def segments(self) -> dict[str, int]:
        """Slots of each segment that has any."""
        sizes = {name: sum(g.rows for g in self.groups if g.segment == name) for name in SEGMENTS}
        return {name: size for name, size in sizes.items() if size}

    @cached_property
    def by_layer(self) -> dict[str, tuple[int, slice]]:
        """For each layer its group's index and its part of the group's outputs (not slots)."""
        places = {}
        for index, group in enumerate(self.forward):
            first = 0
            for layer in group.layers:
                places[layer.name] = (index, slice(first, first + layer.out_features))
                first += layer.out_features
        return places

    @cached_property
    def forward(self) -> tuple[Group, ...]:
        """The groups that a forward pass asks: all but the transposed ones, which stand behind them."""
        return tuple(group for group in self.groups if group.transposed is None)

    @cached_property
    def back(self) -> dict[int, int]:
        """For each group that has a transposed one, the index of that; empty unless compiled for training."""
        return {group.transposed: index for index, group in enumerate(self.groups) if group.transposed is not None}

    @property
    def widths(self) -> list[int]:
        """Input width of each group."""
        return [group.width for group in self.groups]

    @property
    def total_slots(self) -> int:
        """S, the outputs of all layers."""
        return sum(self.segments.values())

    @property
    def total_inputs(self) -> int:
        """I, the inputs of all groups."""
        return sum(self.widths)

    def to_json(self) -> list[GroupFields]:
        """As JSON types; ``fusion`` and ``transposed`` are there only where there is one, ``words`` where there are two."""
        return [_fields_of(group) for group in self.groups]

    @classmethod
    def from_json(cls, value: Sequence[GroupFields]) -> Manifest:
        """Checked inverse of `to_json`; anything unexpected raises `BundleError`."""
        try:
            groups = tuple(
                Group(
                    tuple(Layer(**fields) for fields in g["layers"]),
                    g["segment"],
                    NormFusion(**g["fusion"]) if "fusion" in g else None,
                    *g["bits"],
                    transposed=g.get("transposed"),
                    words=g.get("words", 1),
                )
                for g in value
            )
            manifest = cls(groups)
            manifest.check()
        except (TypeError, KeyError) as error:
            raise BundleError(f"the manifest is not what this version writes: {error}") from None
        return manifest

    def check(self) -> None:
        """Raise `BundleError` unless names are unique and every size is within limits."""
        names = [layer.name for group in self.groups for layer in group.layers]
        if len(set(names)) != len(names):
            raise BundleError("the manifest names a layer twice")
        for index, group in enumerate(self.groups):
            _check_group(group)
            check_transposed(self.groups, index)
        if not 0 < self.total_slots <= MAX_SLOTS:
            raise BundleError(f"the manifest has {self.total_slots} outputs, expected 1 to {MAX_SLOTS}")


def _fields_of(group: Group) -> GroupFields:
    fields = GroupFields(segment=group.segment, bits=[group.input_bits, group.result_bits], layers=[])
    fields["layers"] += map(_fields_of_layer, group.layers)
    if group.fusion is not None:
        fields["fusion"] = FusionFields(before=group.fusion.before, after=group.fusion.after, width=group.fusion.width)
    if group.transposed is not None:
        fields["transposed"] = group.transposed
    if group.words != 1:
        fields["words"] = group.words
    return fields


def _fields_of_layer(layer: Layer) -> LayerFields:
    return LayerFields(
        name=layer.name,
        kind=layer.kind,
        in_features=layer.in_features,
        out_features=layer.out_features,
        bits=layer.bits,
        bias=layer.bias,
        last_row=layer.last_row,
    )


def _check_group(group: Group) -> None:
    if group.segment not in SEGMENTS:
        raise BundleError(f"group {group.name!r} is in segment {group.segment!r}, expected one of {SEGMENTS}")
    bits = (group.input_bits, group.result_bits)
    if not all(isinstance(value, int) for value in bits) or bits[0] not in range(8, 33) or bits[1] not in range(8, 33):
        raise BundleError(f"group {group.name!r} has values of {bits} bits, expected 8 to 32")
    read = [layer.in_features for layer in group.layers]
    if group.fusion is not None:
        _check_fusion(group)
        read = read[1:]
    if not group.layers or len(set(read)) != 1:
        raise BundleError(f"group {group.name!r} does not have one input width")
    flags = [layer.last_row for layer in group.layers]
    if flags != sorted(flags) or (group.fusion is not None and any(flags)):
        raise BundleError(f"group {group.name!r} has layers for the last row before others, or is fused")
    if type(group.words) is not int or group.words not in (1, 2) or (group.words == 2 and group.fusion is not None):
        raise BundleError(f"group {group.name!r} has weights of {group.words!r} words, expected 1, or 2 without a fusion")
    for layer in group.layers:
        sizes = (layer.in_features, layer.out_features, layer.bits)
        if not all(isinstance(size, int) for size in sizes) or not isinstance(layer.name, str):
            raise BundleError("the manifest has a field of the wrong type")
        if not re.fullmatch(NAME, layer.name) or layer.kind not in ("linear", "conv1d", "embedding"):
            raise BundleError(f"the manifest has a layer named {layer.name!r} of kind {layer.kind!r}")
        if not (1 <= layer.in_features <= MAX_WIDTH and 1 <= layer.out_features <= MAX_SLOTS and 2 <= layer.bits <= 8):
            raise BundleError(f"layer {layer.name!r} has sizes {sizes}, outside the limits")


def check_transposed(groups: Sequence[Group], index: int) -> None:
    """Raise `BundleError` for a group of segment ``back`` that is not the transpose of one before, or before another."""
    group, source = groups[index], groups[index].transposed
    if (source is not None) != (group.segment == "back"):
        raise BundleError(f"group {group.name!r} is in segment {group.segment!r} and transposes {source!r}")
    if source is None:
        if index and groups[index - 1].transposed is not None:
            raise BundleError(f"group {group.name!r} stands behind a transposed one")
        return
    if type(source) is not int or not 0 <= source < index or groups[source].transposed is not None:
        raise BundleError(f"group {group.name!r} transposes {source!r}, which is no group before it")
    if source in [other.transposed for other in groups[:index]]:
        raise BundleError(f"group {group.name!r} transposes one that another transposes already")
    sizes = (groups[source].outputs, groups[source].width)
    if len(group.layers) != 1 or (group.width, group.outputs) != sizes or group.fusion:
        raise BundleError(f"group {group.name!r} is not the transpose of {groups[source].name!r}")


def _check_fusion(group: Group) -> None:
    fusion = group.fusion
    assert fusion is not None
    if not isinstance(fusion.width, int) or not 1 <= fusion.width <= MAX_WIDTH:
        raise BundleError(f"group {group.name!r} is fused over a stream of width {fusion.width!r}, outside the limits")
    if not all(isinstance(name, str) and re.fullmatch(NAME, name) for name in (fusion.before, fusion.after)):
        raise BundleError(f"group {group.name!r} is fused over norms with names that no module has")
    sizes = [layer.out_features for layer in group.layers[:1]] + [layer.in_features for layer in group.layers[1:]]
    if len(sizes) < 2 or set(sizes) != {fusion.width} or any(layer.kind == "embedding" for layer in group.layers):
        raise BundleError(f"the layers of group {group.name!r} do not fit the norm that it is fused over")


def make_groups(inputs: Sequence[tuple[Layer, int]], head: str | None) -> Manifest:
    """Group layers by the identity of the tensor that they read.

    ``inputs`` lists (layer, id of its input) in calling order; layers of one id, kind and width that follow each other
    become one group. ``head`` names the output embedding, which becomes the head segment.
    """
    groups: list[tuple[int, list[Layer]]] = []
    for layer, tensor in inputs:
        alone = layer.name == head or layer.kind == "embedding"
        if groups and not alone and groups[-1][0] == tensor and groups[-1][1][0].in_features == layer.in_features:
            groups[-1][1].append(layer)
        else:
            groups.append((-1 if alone else tensor, [layer]))
    made = [
        Group(tuple(sorted(layers, key=lambda layer: layer.last_row)), "head" if layers[0].name == head else "body")
        for _, layers in groups
    ]
    manifest = Manifest(tuple(made))
    manifest.check()
    return manifest
