"""Compiling a float model: calibrate the groups, quantize the weights, keep what each side needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from veil.bundle.compiled import Compiled
from veil.bundle.constants import GroupConstants, row_norms
from veil.bundle.manifest import Group, Layer, Manifest, make_groups
from veil.checks.candidates import tied_embedding
from veil.compile import words
from veil.compile.balance import Inputs, bias_correction, divisors_for
from veil.compile.fused_weights import quantize_fused
from veil.compile.last_rows import last_row_layers
from veil.compile.norm_fusion import Fusions, StreamWatch, fuse_groups
from veil.compile.observing import SeenInputs, calibrate
from veil.compile.quantize import quantize_weight
from veil.compile.transposed import gradients_seen, transposed
from veil.kernels.memory import side_by_side
from veil.noise import wire_bits
from veil.params import Params
from veil.progress import Progress
from veil.runtime.experts import RemoteExperts, calibrating
from veil.runtime.layers import RemoteLayer, float_bias, float_weight
from veil.runtime.modules import output_head
from veil.seed import PublicSeed

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]
FUSE_NORMS = ("auto", "on", "off")


def compile_layers(
    model: nn.Module,
    layers: dict[str, RemoteLayer],
    run: Callable[[], object],
    n_bits: int | dict[str, int],
    dynamic: bool,
    params: Params,
    report: Progress,
    fuse_norms: str = "off",
    sample: object = None,
    trainable: bool = False,
) -> Compiled:
    """Calibrate with one forward pass (``run``), group, and quantize every layer; ``fuse_norms`` is auto, on or off.

    ``sample`` are the token ids of that pass, where there are any. ``trainable`` adds the transposed groups.

    Raises `ValueError` for bits outside 2 to 8, a name in ``n_bits`` that is not remote, a weight that is not finite, a
    layer that computes something else, that the model goes around or that calibration has to reach and does not, or a norm
    that ``on`` wants fused and that cannot be.
    """
    if trainable and fuse_norms == "on":
        raise ValueError("fused norms cannot be trained through; leave out fuse_norms='on'")
    fuse_norms = "off" if trainable else fuse_norms
    if fuse_norms not in FUSE_NORMS:
        raise ValueError(f"fuse_norms is {fuse_norms!r}, expected one of {', '.join(FUSE_NORMS)}")
    bits = _bits_by_name(layers, n_bits)
    watch = StreamWatch(model, layers)
    with calibrating(model), nullcontext() if fuse_norms == "off" else watch:
        seen = calibrate(layers, run)
    apart = last_row_layers(model, layers, list(seen), sample) if fuse_norms == "off" else set()
    described = {
        name: Layer(
            name,
            layer.kind,
            layer.in_features,
            layer.out_features,
            bits[name],
            float_bias(_inner(layer)) is not None,
            name in apart,
        )
        for name, layer in layers.items()
    }
    order = [(described[name], found.tensor) for name, found in seen.items()]
    missing = [name for name in layers if name not in seen]
    unscaled = next((name for name in layers if name not in seen or not seen[name].largest), None)
    if unscaled is not None and not dynamic:
        how = "did not reach" if unscaled in missing else "brought nothing but zeros to"
        raise ValueError(
            f"calibration {how} {unscaled!r}, so its inputs have no scale; give inputs that reach it, leave it "
            "out, or use dynamic quantization"
        )
    order += [(described[name], -2 - position) for position, name in enumerate(missing)]
    manifest = make_groups(order, _head_name(model, layers))
    fusions = _fusions(watch, manifest, fuse_norms)
    manifest = fuse_groups(manifest, fusions.found)
    by_producer = {fusion.producer: fusion for fusion in fusions.found}
    modules = {name: _inner(layer) for name, layer in layers.items()}
    weights, constants, groups = [], [], []
    for index, group in enumerate(manifest.groups):
        report("quantizing", index, len(manifest.groups))
        if group.fusion is not None:
            found = by_producer[group.layers[0].name]
            matrix, parts = quantize_fused(group, found, modules, params, dynamic=dynamic)
            weights.append(matrix)
            constants.append(parts)
            groups.append(_with_bits(group, matrix, params))
            continue
        read = seen.get(group.layers[0].name)
        group = replace(group, words=words.forward_words(group)) if trainable else group
        matrix, parts = _quantize_group(group, modules, read, params)
        if not dynamic:
            parts = replace(parts, fixed_norm=max(read.norm(parts.divisors) if read else 0.0, 1e-30))
        weights.append(matrix)
        constants.append(parts)
        groups.append(_with_bits(group, matrix, params))
    manifest = Manifest(tuple(groups))
    if trainable:
        gradients, here = gradients_seen(model, layers, run, sample), _head_here(model, layers, manifest)
        for index, group in reversed(list(enumerate(manifest.groups))):  # the last first: gradients go that way
            report("quantizing for gradients", len(manifest.groups) - 1 - index, len(manifest.groups))
            if group.layers[0].kind == "embedding" or index == here:
                continue
            own, matrix, parts = transposed(index, group, modules, gradients, params)
            groups.append(own)
            weights.append(matrix)
            constants.append(parts)
        report("quantizing for gradients", len(manifest.groups), len(manifest.groups))
        manifest = Manifest(tuple(groups))
    report("quantizing", len(manifest.groups), len(manifest.groups))
    seed, packed = PublicSeed.fresh(), side_by_side(weights)
    return Compiled(params, seed, manifest, tuple(constants), packed, fusions.reasons, frozenset(seen))


def _fusions(watch: StreamWatch, manifest: Manifest, fuse_norms: str) -> Fusions:
    """What is to be fused; ``auto`` takes what there is, ``on`` insists on everything."""
    if fuse_norms == "off":
        return Fusions((), ())
    fusions = watch.fusions(manifest)
    if fuse_norms == "on" and (fusions.reasons or not fusions.found):
        reason = fusions.reasons[0] if fusions.reasons else "no norm stands between two remote layers"
        raise ValueError(f"the norms cannot all be fused: {reason}; use fuse_norms='auto' or 'off'")
    return fusions


def _with_bits(group: Group, weights: I8, params: Params) -> Group:
    """A group with the bits of the wire that its weights and width need."""
    return with_bits(group, float(row_norms(weights).max(initial=1.0)), params)


def with_bits(group: Group, largest: float, params: Params) -> Group:
    """A group with the bits of the wire that it needs, for the ``largest`` norm of a row of its weights."""
    width = 16 if group.layers[0].kind == "embedding" else group.width  # of a one-hot row one input is not zero
    bits = wire_bits(params, width, group.rows, largest)
    return replace(group, input_bits=bits.input, result_bits=bits.result)


def _quantize_group(
    group: Group, modules: Mapping[str, nn.Module], read: SeenInputs | None, params: Params
) -> tuple[I8, GroupConstants]:
    floats, biases = [], []
    for layer in group.layers:
        module = modules[layer.name]
        try:
            weight = float_weight(module, layer.kind)
        except ValueError as error:
            raise ValueError(f"{layer.name}: {error}") from None
        bias = float_bias(module)
        for what, values in (("weight", weight), ("bias", bias)):
            if values is not None and not np.isfinite(values).all():
                raise ValueError(f"{layer.name}: the {what} holds NaN or infinity")
        floats.append((weight, layer.bits))
        biases.append(np.zeros(layer.out_features, dtype=np.float32) if bias is None else bias)
    one_hot = group.layers[0].kind == "embedding"
    inputs = None if one_hot or read is None else Inputs.of(read.rows)
    divisors = None if inputs is None else divisors_for(floats, inputs, params)
    pieces = [quantize_weight(weight, bits, divisors) for weight, bits in floats]
    if inputs is not None and group.words == 1:
        biases = [
            bias + bias_correction(weight, quantized, scale, inputs, divisors)
            for (weight, _), (quantized, scale), bias in zip(floats, pieces, biases, strict=True)
        ]
    if group.words == 2:
        pieces = [words.two_words(weight, *own, divisors) for (weight, _), own in zip(floats, pieces, strict=True)]
        biases = [words.by_output(bias, np.zeros_like(bias)) for bias in biases]
    matrix = np.ascontiguousarray(np.concatenate([quantized for quantized, _ in pieces]))
    scales = np.concatenate([scale for _, scale in pieces])
    bound = float(np.abs(matrix.astype(np.int32)).max(initial=0) if one_hot else row_norms(matrix).max(initial=0.0))
    return matrix, GroupConstants(scales, np.concatenate(biases), bound, divisors=divisors)


def compiled_modules(model: nn.Module, layers: dict[str, RemoteLayer], manifest: Manifest) -> dict[str, nn.Module]:
    """The float modules, by name, whose weights a compiled model holds: the layers', and the norms that were fused in."""
    fusions = [group.fusion for group in manifest.groups if group.fusion]
    norms = {fusion.after: model.get_submodule(fusion.after) for fusion in fusions}
    mixtures = {name: part.original for name, part in model.named_modules() if isinstance(part, RemoteExperts)}
    return {name: _inner(layer) for name, layer in layers.items()} | norms | mixtures


def _bits_by_name(layers: dict[str, RemoteLayer], n_bits: int | dict[str, int]) -> dict[str, int]:
    if isinstance(n_bits, dict):
        unknown = sorted(set(n_bits) - set(layers))
        if unknown:
            raise ValueError(f"n_bits names {unknown[0]!r}, which is not a remote module")
    bits = {name: n_bits.get(name, 8) if isinstance(n_bits, dict) else n_bits for name in layers}
    for name, value in bits.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or not 2 <= value <= 8:
            raise ValueError(f"n_bits of {name!r} is {value!r}, expected an integer from 2 to 8")
    return {name: int(value) for name, value in bits.items()}


def _head_name(model: nn.Module, layers: dict[str, RemoteLayer]) -> str | None:
    head = output_head(model)
    return next((name for name, layer in layers.items() if head is not None and head in (layer, layer.inner)), None)


def _head_here(model: nn.Module, layers: dict[str, RemoteLayer], manifest: Manifest) -> int | None:
    """The group of a head whose gradient needs no server: not the only one, and tied to an embedding that stays here."""
    found = tied_embedding(model, manifest)
    if found is None or all(group.segment == "head" or group.layers[0].kind == "embedding" for group in manifest.groups):
        return None
    group, embedding = found
    return group if _inner(layers[manifest.groups[group].layers[0].name]).weight is embedding.weight else None


def _inner(layer: RemoteLayer) -> nn.Module:
    assert layer.inner is not None
    return layer.inner
