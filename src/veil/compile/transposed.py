"""Transposed groups: what a bundle holds besides for training, so that gradients go back through integer weights as well.

A group's gradient ``g_x = Wᵀ·g`` is a product like any other: its inputs are the gradients by the outputs, its slots the
group's inputs. Its integers are rounded from the float weights anew: those of the forward product have one scale an output
and are balanced for activations, which leaves the columns that activations use little too coarse for gradients. It takes
rows of its own, under public polynomials and a hint of its own; docs/protocol.md, sections 6 and 7, holds for it as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from veil import noise
from veil.bundle.constants import GroupConstants, row_norms
from veil.bundle.manifest import Group, Layer
from veil.compile import words
from veil.compile.balance import Inputs, divisors_for
from veil.compile.quantize import quantize_weight
from veil.noise import WireBits, wire_bits
from veil.params import INNER_MODULUS_BITS, Params
from veil.runtime.layers import RemoteLayer, float_weight

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]
SUFFIX = ".transposed"
_KEPT_ROWS = 256


def transposed(
    index: int, group: Group, modules: Mapping[str, nn.Module], gradients: Mapping[str, F32], params: Params
) -> tuple[Group, I8, GroupConstants]:
    """The transposed group of group ``index``, its integers [slots, outputs] and constants.

    ``gradients`` are rows of gradients by the layers' outputs, where a calibration saw any: the inputs are balanced for
    them. Gradients are scaled row by row, whether or not activations are.
    """
    weight = np.concatenate([float_weight(modules[layer.name], layer.kind) for layer in group.layers]).T
    bits = max(layer.bits for layer in group.layers)
    seen = [gradients[layer.name] for layer in group.layers if layer.name in gradients]
    inputs = Inputs.of(np.concatenate(seen, axis=1)) if len(seen) == len(group.layers) else None
    divisors = None if inputs is None else divisors_for([(weight, bits)], inputs, params)
    matrix, scale = quantize_weight(weight, bits, divisors)
    count = words.back_words(group)
    if count == 2:
        matrix, scale = words.two_words(weight, matrix, scale, divisors)
    largest = float(row_norms(matrix).max(initial=0.0))
    name = f"{group.layers[0].name[: 256 - len(SUFFIX)]}{SUFFIX}"
    wire = unbiased(wire_bits(params, group.outputs, len(matrix), max(largest, 1.0)), matrix, params)
    layer = Layer(name, "linear", group.outputs, group.width, bits, False)
    made = Group((layer,), "back", None, wire.input, wire.result, transposed=index, words=count)
    return made, matrix, GroupConstants(scale, np.zeros(made.rows, dtype=np.float32), largest, divisors=divisors)


def unbiased(bits: WireBits, matrix: I8, params: Params) -> WireBits:
    """The bits, or whole words up where rounding has a mean that counts.

    Words are rounded halves up, which adds 1/2 on average: ``Σ_i W_q[j, i]/2`` in slot j. Rows whose weights have a mean,
    such as an embedding's columns over a whole vocabulary, add it up; those whose signs are mixed do not.
    """
    return unbiased_for(bits, matrix.sum(axis=1, dtype=np.int64), row_norms(matrix), params)


def unbiased_for(bits: WireBits, sums: NDArray[np.int64], norms: NDArray[np.float64], params: Params) -> WireBits:
    """`unbiased` for the sums and norms of a matrix's rows [slots]."""
    counts = bool(((0.5 * sums) ** 2 > 0.1 * noise.result(params, norms, bits)).any())
    return WireBits(INNER_MODULUS_BITS, bits.result) if counts else bits


def gradients_seen(
    model: nn.Module, layers: Mapping[str, RemoteLayer], run: Callable[[], object], ids: object
) -> dict[str, F32]:
    """Rows of gradients [≤ 256, out] by the outputs of the float layers, for the loss of predicting ``ids`` [B, S].

    Empty for a model whose output has no logits for each id.
    """
    if not isinstance(ids, torch.Tensor) or ids.is_floating_point() or ids.ndim != 2 or ids.shape[1] < 2:
        return {}
    outputs: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[object, ...], torch.Tensor], torch.Tensor]:
        def hook(module: nn.Module, args: tuple[object, ...], output: torch.Tensor) -> torch.Tensor:
            output = output if output.requires_grad else output.detach().requires_grad_()
            outputs.setdefault(name, output)
            return output

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items() if layer.kind != "embedding"]
    try:
        with torch.enable_grad():
            logits = getattr(run(), "logits", None)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(logits, torch.Tensor) or logits.shape[:2] != ids.shape or not logits.requires_grad:
        return {}
    wanted = ids[:, 1:].reshape(-1).to(logits.device)
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted)
    gradients = torch.autograd.grad(loss, list(outputs.values()), allow_unused=True)
    return {name: _some_rows(own) for name, own in zip(outputs, gradients, strict=True) if own is not None}


def _some_rows(gradient: torch.Tensor) -> F32:
    rows = gradient.detach().reshape(-1, gradient.shape[-1])
    places = torch.linspace(0, len(rows) - 1, min(len(rows), _KEPT_ROWS), device="cpu").long()
    chosen: F32 = rows[places.to(rows.device)].to(device="cpu", dtype=torch.float32).numpy()
    return chosen
