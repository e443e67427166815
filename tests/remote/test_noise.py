"""What comes back over the network, row by row, while masks are made in the background."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from veil import noise
from veil.client.session import Ahead


@pytest.mark.parametrize("ahead", [Ahead(tokens=0, prompt_rows=0), Ahead(tokens=8, prompt_rows=8)])
def test_every_row_is_the_exact_product_plus_the_predicted_noise(
    bundle: Any, serve: Any, generated: Any, ahead: Ahead
) -> None:
    """From the first row of a fresh server on, no error beyond 7 predicted standard deviations (3·10^-12 of normal ones)."""
    llama = bundle("llama")
    with serve(llama) as server:
        remote = llama.connect(server.port, ahead=ahead)
        session, worst, rows = remote._remote, [0.0], [0]
        evaluate = session.evaluate

        def checked(group: int, x: Any, tau: Any) -> Any:
            result = evaluate(group, x, tau)
            weights = llama.engine.model.weights[group].astype(np.float64)
            exact = np.rint(x.astype(np.float64) * tau[:, None]) @ weights.T
            deviation = np.sqrt(noise.result(session.model.params, np.linalg.norm(weights, axis=1)))
            worst[0] = max(worst[0], float(np.abs((result - exact) / deviation).max()))
            rows[0] += len(x)
            return result

        session.evaluate = checked
        remote.set_fhe_mode("remote")  # takes it up
        remote.expect(9, 12)
        generated(remote, 12)
        remote.close()
    assert rows[0] > 100
    assert worst[0] < 7
