"""The trusted half: keys, masks ahead of time, encryption and decryption of rows. It talks bytes to a `Transport`."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from veil.client.factory import ClientModel, MaskFactory
from veil.client.filler import Ahead, Filler, Ready
from veil.client.pool import MaskPool
from veil.client.stats import Stats
from veil.client.supply import MaskSupply
from veil.crypto.mask import ClientMask
from veil.errors import NotFiniteActivation, UnknownMask, UnknownSession
from veil.random import SecretRng
from veil.wire import codec
from veil.wire.patience import Patience
from veil.wire.transport import Transport

__all__ = ["Ahead", "ClientModel", "ClientSession", "Ready"]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

_RECOVERIES = 3


class ClientSession:
    """One session after another with one server: fresh keys every epoch, masks ahead, rows evaluated with one mask each.

    With ``ahead`` masks are made in the background. When the server forgets the session, the next one has fresh keys, and
    what was under way is encrypted anew under fresh masks.
    """

    def __init__(
        self,
        model: ClientModel,
        transport: Transport,
        kernels: ModuleType,
        rng: SecretRng,
        stats: Stats,
        *,
        ahead: Ahead | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.model = model
        self.stats = stats
        self._transport = transport
        self._kernels = kernels
        self._pool = MaskPool(model.manifest)
        self._factory = MaskFactory(model, transport, kernels, rng, stats, self._pool, patience or Patience())
        self._filler = Filler(self._factory, self._pool, ahead) if ahead else None
        self._supply = MaskSupply(
            model.manifest, self._pool, self._factory, stats, model.params.masks_per_epoch, self._filler
        )
        self.last_sent = b""

    def begin_forward(self) -> None:
        """Tell the session that a forward pass starts: groups are brought level, used masks are forgotten."""
        session, gone = self._supply.begin_forward()
        if gone:
            try:
                self._transport.release(session, gone)
            except UnknownSession:
                self._factory.reopen(session)

    def end_forward(self) -> None:
        """Tell the session that a forward pass ended."""

    def reserve(self, body: int = 0, full: int = 0) -> None:
        """Have at least ``body`` masks without the head and ``full`` masks with it ready; returns when they are."""
        self._supply.reserve(body, full)

    def expect(self, prompt_rows: int, new_tokens: int) -> None:
        """Begin to prepare in the background for a generation of about this size; nothing without a background."""
        if self._filler is not None:
            self._filler.expect(prompt_rows, new_tokens)

    @property
    def ready(self) -> Ready:
        """Masks that are ready now."""
        return self._supply.ready

    def evaluate(self, group: int, x: F32, tau: NDArray[np.float64]) -> I32:
        """``W_q·round(τ·x)`` plus noise for rows x [R, width] of one group → [R, rows] integers.

        Takes R fresh masks, marked spent before a byte leaves; waits for more if the pool is short. Raises
        `NotFiniteActivation` if τ is not finite.
        """
        info = self.model.manifest.groups[group]
        if not np.isfinite(tau).all():
            raise NotFiniteActivation(f"NaN or infinity reached {info.name}; nothing was sent")
        prompt_rows = self._supply.count(group, len(x))
        spec = self.model.params.spec
        first = self._factory.maker.group_start(group)
        for left in reversed(range(_RECOVERIES)):
            session, masks = self._supply.take(group, len(x), prompt_rows)
            rows = _stack([mask.rows[first : first + info.width] for mask in masks], info.width)
            payload = self._kernels.encrypt(x, tau, rows, spec.input_bits).tobytes()
            self.last_sent = payload
            try:
                with self.stats.phase("online_server"):
                    reply = self._transport.evaluate(session, group, [mask.number for mask in masks], payload)
            except (UnknownSession, UnknownMask):
                if not left:
                    raise
                self._factory.reopen(session)
                continue
            self.stats.trips += 1
            self.stats.bytes_up_online += len(payload)
            self.stats.bytes_down_online += len(reply)
            return self._decrypt(group, masks, reply)
        raise AssertionError

    def close(self) -> None:
        """End the session and forget keys and masks."""
        if self._filler is not None:
            self._filler.stop()
        session = self._pool.session
        self._factory.close()
        if session:
            try:
                self._transport.close(session)
            except UnknownSession:
                return

    def _decrypt(self, group: int, masks: Sequence[ClientMask], reply: bytes) -> I32:
        info = self.model.manifest.groups[group]
        start = self.model.manifest.starts[group]
        bits = self.model.params.spec.result_bits
        data = codec.rows_from(reply, len(masks), info.rows, bits)
        mu = _stack([mask.mu[info.segment][start : start + info.rows] for mask in masks], info.rows)
        result: I32 = self._kernels.decrypt(data, mu, bits)
        return result


def _stack(rows: list[NDArray[np.uint32]], width: int) -> NDArray[np.uint32]:
    if not rows:
        return np.empty((0, width), dtype=np.uint32)
    return rows[0][None] if len(rows) == 1 else np.stack(rows)
