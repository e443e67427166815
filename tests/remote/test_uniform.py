"""What a server receives looks uniform without the key, and does not with it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from veil.bundle.client_half import ClientModel
from veil.bundle.header_file import half_digest
from veil.client.connection import Address
from veil.client.remote import RemoteTransport
from veil.client.session import ClientSession, OfflineRows
from veil.client.stats import Stats
from veil.kernels.ring import ring_of
from veil.network.timeouts import Timeouts
from veil.random import SecretRng
from veil.wire.messages import Upload

GROUP = 0
ROWS = 200
FALSE_ALARM = 1e-6


def statistic(words: NDArray[np.uint32]) -> float:
    """Chi-square of the top bytes of 32-bit words against the uniform distribution, 255 degrees of freedom."""
    counts = np.bincount((words >> np.uint32(24)).reshape(-1), minlength=256)
    mean = counts.sum() / 256
    return float(((counts - mean) ** 2 / mean).sum())


def test_received_rows_are_uniform_without_the_right_key(llama: Any, serve: Any) -> None:
    """200 equal rows of 32 values: 6,400 samples, 25 a bin; uniform data fails once in a million runs."""
    compiled = llama.local.sides.compiled
    model = ClientModel(compiled.params, compiled.seed, compiled.manifest, llama.local.sides.tables)
    info, kernels, scalings = compiled.manifest.groups[GROUP], llama.engine.kernels, llama.local.sides.scalings
    width, bits = info.width, info.input_bits
    received: list[bytes] = []
    right: list[NDArray[np.uint32]] = []
    with serve(llama) as server:
        address = Address(target=f"127.0.0.1:{server.port}")
        transport = RemoteTransport(model, address, kernels, Stats(), Timeouts(), half_digest(llama.path / "client"))
        session = ClientSession(model, transport, kernels, scalings, SecretRng(), Stats())
        take = session.pass_rows.take

        def keep(group: int, rows: int, prompt_rows: int) -> Any:
            name, parts = take(group, rows, prompt_rows)
            first = session.pad_column(GROUP)
            right.extend(part.batch.pads[part.first : part.first + part.count, first : first + width] for part in parts)
            return name, parts

        session.pass_rows.take = keep  # type: ignore[method-assign]
        _spy_on(server, received)
        x = np.linspace(-1, 1, width, dtype=np.float32)[None]
        for _ in range(ROWS):
            session.evaluate(GROUP, x)
            session.begin_forward()
        session.close()
    packed = np.frombuffer(b"".join(received), dtype=np.uint8).reshape(ROWS, -1)
    words = kernels.unpack(packed, width, bits) << np.uint32(32 - bits)
    keys = np.concatenate(right)
    limit = chi2.ppf(1 - FALSE_ALARM, 255)
    assert statistic(words) < limit
    assert statistic(words - np.roll(keys, 1, axis=0)) < limit, "a wrong key"
    assert statistic(words - keys) > 100 * limit, "the right key shows the activations"


def test_received_batches_are_uniform(llama: Any, serve: Any) -> None:
    """Residues of what a client uploads, as shares of their primes, in 256 bins; uniform ones fail once in a million."""
    seen: list[Upload] = []
    with serve(llama) as server:
        admission, engine = server.service.shared.admission, llama.engine
        admit = admission.admit

        def keep(session: Any, upload: Any) -> Any:
            seen.append(upload)
            return admit(session, upload)

        admission.admit = keep
        remote = llama.connect(server.port, offline_rows=OfflineRows(tokens=0, prompt_rows=0))
        remote.reserve(rows_full=32)
        remote.close()
    params = engine.model.params
    data = np.stack([batch.data for upload in seen for batch in upload.batches])
    assert len(data) >= 4
    points = engine.kernels.decode_batches(data, ring_of(params))
    limit = chi2.ppf(1 - FALSE_ALARM, 255)
    for i, p in enumerate(params.outer_primes):
        residues = points[:, :, i].astype(np.uint64)
        assert residues.size >= 256 * 5
        assert statistic(((residues << np.uint64(32)) // np.uint64(p)).astype(np.uint32)) < limit


def _spy_on(server: Any, received: list[bytes]) -> None:
    admission = server.service.shared.admission
    claim = admission.claim

    def spy(session: Any, group: int, spans: Any, data: Any, slots: int) -> Any:
        received.append(data.tobytes())
        return claim(session, group, spans, data, slots)

    admission.claim = spy
