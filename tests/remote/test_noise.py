"""What comes back over the network, row by row, while batches are made in the background."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from veil import noise
from veil.client.session import OfflineRows


@pytest.mark.parametrize("offline_rows", [OfflineRows(tokens=0, prompt_rows=0), OfflineRows(tokens=16, prompt_rows=16)])
def test_every_row_is_the_exact_product_plus_the_predicted_noise(
    bundle: Any, serve: Any, generated: Any, offline_rows: OfflineRows
) -> None:
    """From the first row of a fresh server on, no error beyond 7 predicted standard deviations (3·10^-12 of normal ones)."""
    llama = bundle("llama")
    with serve(llama) as server:
        remote = llama.connect(server.port, offline_rows=offline_rows)
        session, worst, rows = remote.sides.remote, [0.0], [0]
        evaluate = session.evaluate

        def checked(group: int, x: Any, slots: int | None = None) -> Any:
            result = evaluate(group, x, slots)
            info, scaling = session.model.manifest.groups[group], session.scalings[group]
            weights = llama.engine.model.weights[group].astype(np.float64)[: result.shape[1]]
            divided = x.astype(np.float64) if scaling.divisors is None else x.astype(np.float64) / scaling.divisors
            tau = scaling.target / np.sqrt((divided**2).sum(axis=1, keepdims=True))
            exact = np.rint(divided * tau) @ weights.T
            scale, bias = scaling.scale[: result.shape[1]], scaling.bias[: result.shape[1]]
            bits = noise.WireBits(info.input_bits, info.result_bits)
            deviation = np.sqrt(noise.result(session.model.params, np.linalg.norm(weights, axis=1), bits))
            errors = np.abs((result - bias) / scale * tau - exact) / deviation
            worst[0] = max(worst[0], float(errors.max()))
            rows[0] += len(x)
            return result

        session.evaluate = checked
        remote.set_fhe_mode("remote")  # takes it up
        remote.expect(9, 12)
        generated(remote, 12)
        remote.close()
    assert rows[0] > 100
    assert 1 < worst[0] < 7
