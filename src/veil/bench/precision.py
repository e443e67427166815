"""Signal to noise of one encrypted layer by width: Gaussian inputs and weights, real encryption, beside the prediction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from veil import noise
from veil.bench import machine
from veil.bench.record import SignalPoint, SignalSeries
from veil.bundle.client_half import ClientModel
from veil.bundle.constants import GroupConstants, row_norms, scalings_of
from veil.bundle.manifest import Group, Layer, Manifest
from veil.bundle.server_half import ServerModel
from veil.client.session import ClientSession
from veil.client.stats import Stats
from veil.compile.quantize import quantize_weight
from veil.kernels.backend import kernels_for
from veil.kernels.interface import Kernels
from veil.params import Params
from veil.progress import Progress
from veil.random import SecretRng
from veil.seed import PublicSeed
from veil.server.engine import Engine
from veil.server.local import LocalServer

WIDTHS = (512, 2048, 8192, 14336, 28672)
SLOTS = 64
ROWS = 64


def measure(device: str, widths: Sequence[int], progress: Progress, params: Params | None = None) -> SignalSeries:
    """A layer of each width and 64 outputs on 64 rows; its wire has the bits that a square layer of that width gets."""
    params, kernels = params or Params.default(), kernels_for(device)
    points = []
    for number, width in enumerate(widths):
        progress("signal to noise by width", number, len(widths))
        points.append(of_width(params, kernels, width))
    progress("signal to noise by width", len(widths), len(widths))
    return SignalSeries(
        commit=machine.commit(),
        versions=machine.versions(),
        device=kernels.name,
        parameters={**params.spec.to_dict(), "security_bits": params.security_bits},
        points=tuple(points),
    )


def of_width(params: Params, kernels: Kernels, width: int) -> SignalPoint:
    """One layer: engine and session in this process, its outputs against the exact product of the same integer weights."""
    draw = np.random.default_rng(width)
    weights, scale = quantize_weight(draw.standard_normal((SLOTS, width), dtype=np.float32), 8)
    x = draw.standard_normal((ROWS, width), dtype=np.float32)
    norms = row_norms(weights)
    bits = noise.wire_bits(params, width, width, float(norms.max()))
    layer = Layer("layer", "linear", width, SLOTS, 8, False)
    manifest = Manifest((Group((layer,), "body", None, bits.input, bits.result),))
    seed = PublicSeed.fresh()
    engine = Engine.build(ServerModel(params, seed, manifest, (weights,)), kernels)
    client = ClientModel(params, seed, manifest, engine.hint.public_tables(seed, params))
    constants = GroupConstants(scale, np.zeros(SLOTS, dtype=np.float32), float(norms.max()))
    server = LocalServer(engine)
    session = ClientSession(client, server, kernels, scalings_of([constants], params, kernels), SecretRng(), Stats())
    session.begin_forward()
    outputs = kernels.to_numpy(session.evaluate(0, kernels.asarray(x))).astype(np.float64)
    session.end_forward()
    session.close()
    exact = x.astype(np.float64) @ weights.astype(np.float64).T * scale
    error = outputs - exact
    signal = noise.signal(params, width) * np.mean((norms / norms.max()) ** 2)
    return SignalPoint(
        width=width,
        slots=SLOTS,
        rows=ROWS,
        input_bits=bits.input,
        result_bits=bits.result,
        measured_db=float(10 * np.log10(np.mean(exact**2) / np.mean(error**2))),
        predicted_db=float(10 * np.log10(signal / np.mean(noise.result(params, norms, bits)))),
        largest_slot_db=noise.signal_to_noise_db(params, width, float(norms.max()), bits),
        error_ratio=float(np.sqrt(np.mean((error / _predicted(params, x, norms, scale, bits)) ** 2))),
    )


def _predicted(
    params: Params, x: NDArray[np.float32], norms: NDArray[np.float64], scale: NDArray[np.float32],
    bits: noise.WireBits,
) -> NDArray[np.float64]:  # fmt: skip
    """The deviation [rows, slots] that `veil.noise.result` predicts, in units of the outputs."""
    lengths = np.linalg.norm(x.astype(np.float64), axis=1)
    tau = params.spec.headroom * 2.0**31 / norms.max() / lengths
    return np.sqrt(noise.result(params, norms, bits))[None] * scale[None] / tau[:, None]
