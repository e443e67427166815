"""Compiling a float model: calibrate the groups, quantize the weights, keep what each side needs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from veil.kernels.memory import side_by_side
from veil.model.constants import GroupConstants
from veil.model.experts import calibrating
from veil.model.fold_weights import quantize_folded
from veil.model.folds import Folds, StreamWatch, fold_groups
from veil.model.last_rows import last_row_layers
from veil.model.layers import RemoteLayer, float_bias, float_weight
from veil.model.manifest import Group, Layer, Manifest, make_groups
from veil.model.quantize import quantize_weight, row_norms
from veil.noise import wire_bits
from veil.params import Params
from veil.progress import Progress
from veil.seed import PublicSeed

I8 = NDArray[np.int8]
FOLD_NORMS = ("auto", "on", "off")


@dataclass(frozen=True, eq=False)
class Compiled:
    """A compiled model: public parameters, seed and manifest; the client's constants; the server's weights.

    ``weights`` is None where only the client half of a bundle is here.
    """

    params: Params
    seed: PublicSeed
    manifest: Manifest
    constants: tuple[GroupConstants, ...]
    weights: tuple[I8, ...] | None
    unfolded: tuple[str, ...] = ()
    """Why norms stayed that folding was tried on; known when a model is compiled, not kept in a bundle."""


def compile_layers(
    model: nn.Module,
    layers: dict[str, RemoteLayer],
    run: Callable[[], Any],
    n_bits: int | dict[str, int],
    dynamic: bool,
    params: Params,
    report: Progress,
    fold_norms: str = "off",
    sample: Any = None,
) -> Compiled:
    """Calibrate with one forward pass (``run``), group, and quantize every layer; ``fold_norms`` is auto, on or off.

    ``sample`` are the token ids of that pass, where there are any.

    Raises `ValueError` for bits outside 2 to 8, a name in ``n_bits`` that is not remote, a weight that is not finite, a
    layer that computes something else or that the model goes around, or a norm that ``on`` wants folded and that cannot be.
    """
    if fold_norms not in FOLD_NORMS:
        raise ValueError(f"fold_norms is {fold_norms!r}, expected one of {', '.join(FOLD_NORMS)}")
    bits = _bits_by_name(layers, n_bits)
    watch = StreamWatch(model, layers)
    with calibrating(model), nullcontext() if fold_norms == "off" else watch:
        seen = _calibrate(layers, run)
    apart = last_row_layers(model, layers, [name for name, _, _ in seen], sample) if fold_norms == "off" else set()
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
    order = [(described[name], tensor) for name, tensor, _ in seen]
    missing = [name for name in layers if name not in {name for name, _, _ in seen}]
    order += [(described[name], -2 - position) for position, name in enumerate(missing)]
    manifest = make_groups(order, _head_name(model, layers))
    folds = _folds(watch, manifest, fold_norms)
    manifest = fold_groups(manifest, folds.found)
    by_producer = {fold.producer: fold for fold in folds.found}
    modules = {name: _inner(layer) for name, layer in layers.items()}
    norms = {name: norm for name, _, norm in seen}
    weights, constants, groups = [], [], []
    for index, group in enumerate(manifest.groups):
        report("quantizing", index, len(manifest.groups))
        if group.fold is not None:
            found = by_producer[group.layers[0].name]
            matrix, parts = quantize_folded(group, found, modules, params, dynamic=dynamic)
            weights.append(matrix)
            constants.append(parts)
            groups.append(_with_bits(group, matrix, params))
            continue
        matrix, parts = _quantize_group([(layer, modules[layer.name]) for layer in group.layers])
        if not dynamic:
            parts = replace(parts, fixed_norm=max(norms.get(group.layers[0].name, 0.0), 1e-30))
        weights.append(matrix)
        constants.append(parts)
        groups.append(_with_bits(group, matrix, params))
    manifest = Manifest(tuple(groups))
    report("quantizing", len(manifest.groups), len(manifest.groups))
    return Compiled(params, PublicSeed.fresh(), manifest, tuple(constants), side_by_side(weights), folds.reasons)


def _folds(watch: StreamWatch, manifest: Manifest, fold_norms: str) -> Folds:
    """What is to be folded; ``auto`` takes what there is, ``on`` insists on everything."""
    if fold_norms == "off":
        return Folds((), ())
    folds = watch.folds(manifest)
    if fold_norms == "on" and (folds.reasons or not folds.found):
        reason = folds.reasons[0] if folds.reasons else "no norm stands between two remote layers"
        raise ValueError(f"the norms cannot all be folded: {reason}; use fold_norms='auto' or 'off'")
    return folds


def _with_bits(group: Group, weights: I8, params: Params) -> Group:
    """A group with the bits of the wire that its weights and width need."""
    largest = float(row_norms(weights).max(initial=1.0))
    width = 16 if group.layers[0].kind == "embedding" else group.width  # of a one-hot row one input is not zero
    bits = wire_bits(params, width, group.rows, largest)
    return replace(group, input_bits=bits.input, result_bits=bits.result)


def _quantize_group(members: list[tuple[Layer, nn.Module]]) -> tuple[I8, GroupConstants]:
    parts, scales, biases = [], [], []
    for layer, module in members:
        try:
            quantized, scale = quantize_weight(float_weight(module, layer.kind), layer.bits)
        except ValueError as error:
            raise ValueError(f"{layer.name}: {error}") from None
        bias = float_bias(module)
        if bias is not None and not np.isfinite(bias).all():
            raise ValueError(f"{layer.name}: the bias holds NaN or infinity")
        parts.append(quantized)
        scales.append(scale)
        biases.append(np.zeros(layer.out_features, dtype=np.float32) if bias is None else bias)
    matrix = np.ascontiguousarray(np.concatenate(parts))
    one_hot = members[0][0].kind == "embedding"
    bound = float(np.abs(matrix.astype(np.int32)).max(initial=0) if one_hot else row_norms(matrix).max(initial=0.0))
    return matrix, GroupConstants(np.concatenate(scales), np.concatenate(biases), bound)


def _calibrate(layers: dict[str, RemoteLayer], run: Callable[[], Any]) -> list[tuple[str, int, float]]:
    """(name, id of the input tensor, largest row norm) of each layer in calling order."""
    seen: dict[str, tuple[int, float]] = {}
    alive: list[torch.Tensor] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0]
            alive.append(x)
            rows = x.detach().reshape(-1, x.shape[-1]).float() if x.is_floating_point() else torch.ones(1, 1)
            norm = float(rows.norm(dim=1).max()) if rows.numel() else 0.0
            identity, largest = seen.get(name, (id(x), 0.0))
            seen[name] = (identity, max(largest, norm))

        return hook

    for layer in layers.values():
        layer.weight_read = False
    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    around = next((name for name, layer in layers.items() if layer.weight_read and name not in seen), None)
    if around is not None:
        raise ValueError(f"the model uses the weight of {around!r} without calling it; leave it out of module_names")
    return [(name, tensor, norm) for name, (tensor, norm) in seen.items()]


def _bits_by_name(layers: dict[str, RemoteLayer], n_bits: int | dict[str, int]) -> dict[str, int]:
    if isinstance(n_bits, dict):
        unknown = sorted(set(n_bits) - set(layers))
        if unknown:
            raise ValueError(f"n_bits names {unknown[0]!r}, which is not a remote module")
    bits = {name: n_bits.get(name, 8) if isinstance(n_bits, dict) else n_bits for name in layers}
    for name, value in bits.items():
        if not isinstance(value, int) or not 2 <= value <= 8:
            raise ValueError(f"n_bits of {name!r} is {value!r}, expected an integer from 2 to 8")
    return bits


def _head_name(model: nn.Module, layers: dict[str, RemoteLayer]) -> str | None:
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    return next((name for name, layer in layers.items() if layer is head or layer.inner is head), None)


def _inner(layer: RemoteLayer) -> nn.Module:
    assert layer.inner is not None
    return layer.inner
