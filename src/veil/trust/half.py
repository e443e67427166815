"""A client half against weights that its user trusts: all that enters its answers, and the vectors that check the server's.

Integers are made anew from the trusted weights by the half's divisors (`quantize.rounded`); the half's scales, norms, bits
of the wire and tensors have to be what follows from those. What nothing follows from is bounded, see docs/protocol.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from veil.bundle.constants import GroupConstants, row_norms, target_norm
from veil.bundle.header_file import read_header
from veil.bundle.manifest import Group, Layer
from veil.bundle.terms import Terms
from veil.checks.files import Vectors
from veil.checks.spread import covariance
from veil.checks.vectors import GroupVectors, VectorMaker
from veil.compile.compiler import with_bits
from veil.compile.fused_weights import fused_matrix, fusion_parts
from veil.compile.quantize import quantize_weight
from veil.compile.transposed import unbiased_for
from veil.compile.words import two_words
from veil.errors import HalfDiffers
from veil.noise import WireBits
from veil.progress import Progress
from veil.random import SecretRng
from veil.runtime.norms import norm_of
from veil.runtime.saved_model import Opened, load_client
from veil.trust.remainder import check_rest
from veil.trust.trusted import TrustedWeights, trusted_weights

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I8 = NDArray[np.int8]

MOST_LOSS = 16.0
"""How many times what plain rounding loses of weights a half's divisors may lose, the worth of two bits."""

MOST_CORRECTION = 24.0
"""How many times the median of its group a bias's correction may be, each beside what rounding loses in its row."""

_FEW = 16
"""Rows of a group below which a median says little; the root mean square stands in for it."""

_SURE = 12.0
"""Deviations of a change that honest noise brings below the bound in both of two vectors once in 10^9."""

_MOST_CHANGE = 2.0
"""A half whose noise hides larger changes, in a slot's own size, has parameters that make checks worthless."""


@dataclass
class Findings:
    """What a check saw: per group the loss beside plain rounding, and the least change of one slot that is surely caught.

    ``trusted`` says in words what of the half could not be checked.
    """

    origin: str = ""
    losses: list[float] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    bits: int = 8
    trusted: list[str] = field(default_factory=list)


def check_half(
    folder: Path, source: str, terms: Terms, progress: Progress, *, name: str | None = None
) -> tuple[Vectors, Findings]:
    """Fresh vectors for the half in ``folder``, of the weights of ``source``, if the half is that model's.

    Raises `HalfDiffers` for the first thing that is not, `ModelSourceError`, `BundleError`.
    """
    opened = load_client(folder, terms)
    mixtures = read_header(folder, "client", verify=False)["experts"]
    manifest = opened.compiled.manifest
    weights = trusted_weights(source, opened.model, manifest, mixtures, progress)
    findings = Findings(origin=weights.origin, bits=min(layer.bits for g in manifest.groups for layer in g.layers))
    findings.trusted += check_rest(opened, source, weights, progress)
    rng, made = SecretRng(), []
    for index, (group, constants) in enumerate(zip(manifest.groups, opened.compiled.constants, strict=True)):
        progress("checking the half", index, len(manifest.groups))
        made.append(_Group(group, constants, opened, weights).vectors(rng, findings))
        findings.changes.append(_least_change(made[-1], group, constants, opened))
        if findings.changes[-1] > _MOST_CHANGE:
            raise HalfDiffers(
                f"the half's parameters make so much noise that its group {group.layers[0].name} cannot be checked: a slot "
                f"could change by {findings.changes[-1]:.1f} of its size; distrust who made it"
            )
    progress("checking the half", len(manifest.groups), len(manifest.groups))
    if any(own.fixed_norm for own in opened.compiled.constants):
        findings.trusted.append("the fixed lengths of rows of static quantization")
    label = name or source
    return Vectors(label if findings.bits == 8 else f"{label} ({findings.bits} bits)", made), findings


class _Group:
    """One group of a half, its weights made anew."""

    def __init__(self, group: Group, constants: GroupConstants, opened: Opened, weights: TrustedWeights) -> None:
        self._group, self._constants, self._opened, self._weights = group, constants, opened, weights
        self._transpose: F32 | None = None
        if group.transposed is not None:
            layers = opened.compiled.manifest.groups[group.transposed].layers
            self._transpose = np.concatenate([weights.rows(layer, 0, layer.out_features) for layer in layers]).T

    def vectors(self, rng: SecretRng, findings: Findings) -> GroupVectors:
        maker, norms, sums, largest = VectorMaker(self._group, rng), [], [], 0.0
        chunks = iter(self._fused(maker.chunks) if self._group.fusion else self._plain(maker.chunks, findings))
        for matrix in chunks:
            maker.add(matrix)
            norms.append(row_norms(matrix))
            sums.append(matrix.sum(axis=1, dtype=np.int64))
            largest = max(largest, float(np.abs(matrix.astype(np.int32)).max(initial=0)))
        longest = float(np.concatenate(norms).max(initial=0.0))
        one_hot = self._group.layers[0].kind == "embedding"
        self._same_number("norm", self._constants.bound, largest if one_hot else longest)
        params = self._opened.compiled.params
        fitting = with_bits(self._group, max(longest, 1.0), params)
        bits = WireBits(fitting.input_bits, fitting.result_bits)
        if self._transpose is not None:
            bits = unbiased_for(bits, np.concatenate(sums), np.concatenate(norms), params)
        if bits != (self._group.input_bits, self._group.result_bits):
            raise self._differs("has other bits of the wire than its weights need")
        return maker.done()

    def _plain(self, chunks: list[tuple[int, int]], findings: Findings) -> Iterator[I8]:
        lost = plain = 0.0
        corrections: list[F64] = []
        for first, last in chunks:
            pieces = []
            for layer, own, own_first, own_last in self._pieces(first, last):
                words, divisors = self._group.words, self._constants.divisors
                outputs = slice(own_first // words, -(-own_last // words))
                weight = self._rows(layer, outputs)
                start = own.start - own_first % words
                slots = slice(start, start + words * len(weight))  # whole outputs: a chunk may begin or end within one
                integers, scale = self._quantized(weight, layer, slots)
                pieces.append(integers[own.start - start : own.stop - start])
                divided = self._group.whole((integers * scale[:, None]).T).T
                loss = weight - (divided if divisors is None else divided / divisors)
                size = np.sqrt(np.square(loss, dtype=np.float64).sum(axis=1))
                lost += float((size**2).sum())
                if divisors is None:
                    plain += float((size**2).sum())
                else:
                    simple, steps = quantize_weight(weight, layer.bits)
                    plain += float(np.square(weight - simple * steps[:, None], dtype=np.float64).sum())
                corrections.append(self._correction(layer, slots, outputs, size))
            yield np.concatenate(pieces)
        findings.losses.append(lost / plain if plain else 1.0)
        if lost > MOST_LOSS * plain:
            raise self._differs(f"loses {lost / plain:.0f} times what rounding its weights loses")
        found = np.concatenate(corrections)
        middle = np.sqrt(np.mean(found**2)) if len(found) < _FEW else np.median(np.abs(found))
        if float(np.abs(found).max(initial=0.0)) > MOST_CORRECTION * float(middle):
            raise self._differs("has a bias that no correction of rounding explains")

    def _pieces(self, first: int, last: int) -> Iterator[tuple[Layer, slice, int, int]]:
        """The parts of layers that a group's slots from first to last are: of the group's slots, and of the layer's."""
        start = 0
        for layer in self._group.layers:
            own = self._group.words * layer.out_features
            low, high = max(first, start), min(last, start + own)
            if low < high:
                yield layer, slice(low, high), low - start, high - start
            start += own

    def _rows(self, layer: Layer, outputs: slice) -> F32:
        """A layer's weights for some outputs [n, in_features]; of a transposed group, of the layers' transpose."""
        if self._transpose is not None:
            return self._transpose[outputs]
        return self._weights.rows(layer, outputs.start, outputs.stop)

    def _quantized(self, weight: F32, layer: Layer, own: slice) -> tuple[I8, F32]:
        divisors = self._constants.divisors
        integers, scale = quantize_weight(weight, layer.bits, divisors)
        if self._group.words == 2:
            integers, scale = two_words(weight, integers, scale, divisors)
        if not np.array_equal(scale, self._constants.scale[own]):
            raise self._differs(f"has other scales than the weights of {layer.name}")
        return integers, scale

    def _correction(self, layer: Layer, slots: slice, outputs: slice, size: F64) -> F64:
        """What the half adds to the biases beside what rounding loses of the rows."""
        bias = None if self._transpose is not None else self._weights.bias(layer)
        stored = self._group.whole(self._constants.bias[None, slots].astype(np.float64))[0]
        added = stored if bias is None else stored - bias[outputs]
        floor = 1e-6 * float(np.abs(stored).max(initial=0.0))
        if (np.abs(added[size == 0]) > floor).any():
            raise self._differs(f"has other biases than {layer.name}")
        ratios: F64 = np.divide(added, size, out=np.zeros_like(added), where=size > 0)
        return ratios

    def _fused(self, chunks: list[tuple[int, int]]) -> Iterator[I8]:
        group, constants = self._group, self._constants
        assert group.fusion is not None and constants.divisors is not None and constants.shift is not None
        norm = norm_of(self._opened.model.get_submodule(group.fusion.after))
        if norm is None:
            raise self._differs(f"is fused over {group.fusion.after}, which is no norm")
        layers = {layer.name: layer for layer in group.layers}
        names = [layer.name for layer in group.layers]
        parts = fusion_parts(names[0], names[1:], norm, lambda name: self._affine(layers[name]))
        matrix, scale = fused_matrix(parts, constants.divisors, group)
        for what, stored, found in (
            ("scales", constants.scale, scale),
            ("biases", constants.bias, parts.before),
            ("shifts", constants.shift, parts.after),
        ):
            if not np.allclose(stored, found, rtol=1e-5, atol=1e-5 * float(np.abs(found).max(initial=0.0))):
                raise self._differs(f"has other {what} than its weights")
        for first, last in chunks:
            yield matrix[first:last]

    def _affine(self, layer: Layer) -> tuple[F32, F32]:
        bias = self._weights.bias(layer)
        weight = self._weights.rows(layer, 0, layer.out_features)
        return weight, np.zeros(layer.out_features, np.float32) if bias is None else bias

    def _same_number(self, what: str, stored: float, found: float) -> None:
        if not abs(stored - found) <= 1e-6 * max(abs(found), 1.0):
            raise self._differs(f"has another {what} than its weights")

    def _differs(self, how: str) -> HalfDiffers:
        return HalfDiffers(
            f"the half's group {self._group.layers[0].name} {how}: it was not made from {self._weights.origin}, or was "
            "changed; name the model that it was made from, or distrust who made it"
        )


def _least_change(vectors: GroupVectors, group: Group, constants: GroupConstants, opened: Opened) -> float:
    """The change of one slot that is caught at once, in root mean squares of a slot of the largest norm.

    Of the chunk with the most noise; a slot of inputs of random signs has the mean square (norm·target)²/width.
    """
    params = opened.compiled.params
    spread = covariance(vectors, group, params)
    deviation = float(np.sqrt(np.diagonal(spread, axis1=1, axis2=2).max()))
    width = 1 if group.layers[0].kind == "embedding" else group.width
    rms = target_norm(params, constants.bound) * constants.bound / np.sqrt(width)
    return _SURE * deviation / float(rms)
