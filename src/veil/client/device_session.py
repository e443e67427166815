"""The trusted half on a CUDA device, beside a server's half on the same card: nothing but masks' seeds leaves the host.

A single row, the step of decoding, is one CUDA graph for each group: scale and encrypt, the server's answer, decrypt and
scale back. Its masks are copied to where the graphs read them, once for all groups. More rows go launch by launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from veil.client.device_factory import DeviceFactory
from veil.client.factory import ClientModel
from veil.client.filler import Ready
from veil.client.pool import MaskPool
from veil.client.stats import Stats
from veil.client.supply import MaskSupply
from veil.errors import NotFiniteActivation
from veil.kernels import cuda
from veil.kernels.cuda_rows import gathered
from veil.model.quantize import target_norm
from veil.params import packed_bytes
from veil.random import SecretRng

Tensor = torch.Tensor


class DeviceTransport(Protocol):
    """`veil.wire.transport.Transport` for tensors of packed bytes; `veil.server.device_engine.DeviceEngine` is one."""

    def load_epoch(self, epoch: int, keys: Tensor) -> None: ...
    def prepare(
        self, epoch: int, numbers: Sequence[int], sets: Sequence[int], data: Tensor, segments: Sequence[str]
    ) -> None: ...
    def claim(self, group: int, numbers: Sequence[int]) -> None: ...
    def claim_all(self, groups: Sequence[int], number: int) -> None: ...
    def answer(self, group: int, numbers: Sequence[int], data: Tensor) -> Tensor: ...
    def select(self, number: int) -> None: ...
    def answer_current(self, group: int, data: Tensor) -> Tensor: ...
    def release(self, numbers: Sequence[int]) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, eq=False)
class Scaling:
    """How a group's inputs are scaled and its results scaled back; c and biases [rows] on the device."""

    scale: Tensor
    bias: Tensor
    bound: float
    fixed_norm: float | None


@dataclass(frozen=True, eq=False)
class _Step:
    """One group's recorded step: write ``x``, call ``replay``, read ``y`` before the next replay."""

    x: Tensor
    y: list[Tensor]
    replay: Callable[[], None]


class DeviceSession:
    """Keys, masks ahead and rows of one client on the card, with one mask for each row; see `session.ClientSession`.

    ``last_pass`` has the groups that the forward pass before this one evaluated, in order.

    ``scalings`` has one entry a group. Steps are recorded when the session is made, before there is a mask.
    """

    def __init__(
        self, model: ClientModel, transport: DeviceTransport, scalings: Sequence[Scaling], rng: SecretRng, stats: Stats
    ) -> None:
        self.model = model
        self.stats = stats
        self._transport = transport
        self._scalings = scalings
        pool = MaskPool(model.manifest)
        pool.start_session("card")
        self._factory = DeviceFactory(model, transport, rng, stats, pool)
        self._supply = MaskSupply(model.manifest, pool, self._factory, stats, model.params.masks_per_epoch)
        self._targets = [target_norm(model.params, scaling.bound) for scaling in scalings]
        self._recording: list[int] | None = None
        self.last_pass: list[int] = []
        self._pass: list[int] = []
        spec = model.params.spec
        self._row_bytes = [
            (packed_bytes(info.width, spec.input_bits), packed_bytes(info.rows, spec.result_bits))
            for info in model.manifest.groups
        ]
        device = scalings[0].scale.device
        self._taus = torch.zeros(len(scalings), dtype=torch.float64, device=device)
        self._rows = torch.zeros((1, self._factory.maker.row_words), dtype=torch.int32, device=device).view(torch.uint32)
        self._mu = {
            name: torch.zeros((1, slots), dtype=torch.int32, device=device).view(torch.uint32)
            for name, slots in model.manifest.segments.items()
        }
        self._sent = torch.zeros(self._row_bytes[0][0], dtype=torch.uint8, device=device)
        self._selected: Any = None
        memory = cuda.graph_pool()
        self._steps = [self._record(group, memory) for group in range(len(scalings))]

    def begin_forward(self) -> None:
        """Tell the session that a forward pass starts: groups are brought level, used masks are forgotten."""
        self.last_pass, self._pass = self._pass, []
        _, gone = self._supply.begin_forward()
        if gone:
            self._transport.release(gone)

    def end_forward(self) -> None:
        """Wait for the card; raise `NotFiniteActivation` if NaN or infinity reached a group in this forward pass.

        What was sent of such a row is encrypted like any other; its results go nowhere.
        """
        finite = torch.isfinite(self._taus)
        if bool(finite.all().item()):
            return
        first = int((~finite).nonzero()[0].item())
        self._taus.zero_()
        name = self.model.manifest.groups[first].name
        raise NotFiniteActivation(f"NaN or infinity reached {name}; generation stops here")

    def reserve(self, body: int = 0, full: int = 0) -> None:
        """Have at least ``body`` masks without the head and ``full`` masks with it ready; returns when they are."""
        self._supply.reserve(body, full)

    def expect(self, prompt_rows: int, new_tokens: int) -> None:
        """Nothing: a mask takes a tenth of a millisecond here."""

    @property
    def ready(self) -> Ready:
        """Masks that are ready now."""
        return self._supply.ready

    @property
    def last_sent(self) -> bytes:
        """The packed row that was sent last to the first group, as the server got it; empty before the first."""
        return cuda.to_numpy(self._sent).tobytes() if self.stats.rows else b""

    def evaluate(self, group: int, x: Tensor) -> Tensor:
        """``W·x + bias`` for rows x [R, width] of one group, encrypted → float32 [R, rows]; takes R fresh masks."""
        count = len(x)
        info = self.model.manifest.groups[group]
        if self._recording is not None:
            return self._evaluate_current(group, x)
        if not count:
            return torch.empty((0, info.rows), dtype=torch.float32, device=x.device)
        _, masks = self._supply.take(group, count, self._supply.count(group, count))
        numbers = [mask.number for mask in masks]
        self._transport.claim(group, numbers)
        self._pass.append(group)
        up, down = self._row_bytes[group]
        self.stats.bytes_up_online += count * up
        self.stats.bytes_down_online += count * down
        if count > 1:
            return self._many(group, x, masks, numbers)
        self._select(masks[0])
        step = self._steps[group]
        step.x.copy_(x)
        step.replay()
        return step.y[0].clone()

    # A whole forward pass of one row ------------------------------------------------------------------------------------

    @contextmanager
    def recording(self, groups: list[int]) -> Iterator[None]:
        """Within it `evaluate` launches the steps of single rows under the mask that `arm` will choose, and takes none.

        The groups are appended to ``groups``. A second call of one, or more rows than one, raises `ValueError`.
        """
        self._recording = groups
        try:
            yield
        finally:
            self._recording = None

    def arm(self, groups: Sequence[int]) -> bool:
        """Take one mask for a row of all these groups and put it where recorded steps read it.

        False if the groups are not level, so that there is no such mask.
        """
        if not groups:
            return True
        mask = self._supply.take_level(groups)
        if mask is None:
            return False
        self._transport.claim_all(groups, mask.number)
        for group in groups:
            up, down = self._row_bytes[group]
            self.stats.bytes_up_online += up
            self.stats.bytes_down_online += down
        self._pass += groups
        self._select(mask)
        return True

    def _evaluate_current(self, group: int, x: Tensor) -> Tensor:
        assert self._recording is not None
        if len(x) != 1 or group in self._recording:
            raise ValueError("a recorded pass has one row, and each group once")
        self._recording.append(group)
        return self._step_of(group, x.to(torch.float32).contiguous())

    def close(self) -> None:
        """Forget keys and masks."""
        self._factory.close()
        self._selected = None
        for held in (self._rows, *self._mu.values()):
            held.view(torch.int32).zero_()
        self._transport.close()

    # One row -------------------------------------------------------------------------------------------------------------

    def _record(self, group: int, memory: Any) -> _Step:
        """The group's step as a graph. It runs once meanwhile, under a mask of zeros and on a row of zeros."""
        width = self.model.manifest.groups[group].width
        x = torch.zeros((1, width), dtype=torch.float32, device=self._taus.device)
        y: list[Tensor] = [x]

        def step() -> None:
            y[0] = self._step_of(group, x)

        return _Step(x, y, cuda.capture(step, memory))

    def _step_of(self, group: int, x: Tensor) -> Tensor:
        """Launch the step of one row under the selected mask."""
        info = self.model.manifest.groups[group]
        first, start = self._factory.maker.group_start(group), self.model.manifest.starts[group]
        data, tau = self._encrypt(group, x, self._rows[:, first : first + info.width])
        mu = self._mu[info.segment][:, start : start + info.rows]
        return self._decrypt(group, self._transport.answer_current(group, data), mu, tau)

    def _select(self, mask: Any) -> None:
        """Copy a mask's material, and the server its shares, to where the graphs read them."""
        if mask is self._selected:
            return
        self._rows.view(torch.int32).copy_(mask.rows.view(torch.int32)[None])
        for name, share in mask.mu.items():
            self._mu[name].view(torch.int32).copy_(share.view(torch.int32)[None, : self._mu[name].shape[1]])
        self._transport.select(mask.number)
        self._selected = mask

    # Rows ----------------------------------------------------------------------------------------------------------------

    def _many(self, group: int, x: Tensor, masks: Sequence[Any], numbers: Sequence[int]) -> Tensor:
        info = self.model.manifest.groups[group]
        first, start = self._factory.maker.group_start(group), self.model.manifest.starts[group]
        rows = gathered([(mask.batch.rows, mask.place) for mask in masks], first, first + info.width)
        data, tau = self._encrypt(group, x.to(torch.float32).contiguous(), rows)
        reply = self._transport.answer(group, numbers, data)
        shares = [(mask.batch.mu[info.segment], mask.place) for mask in masks]
        return self._decrypt(group, reply, gathered(shares, start, start + info.rows), tau)

    def _encrypt(self, group: int, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Packed rows [T, bytes], and the scales τ [T] of their results; what was not finite shows in ``_taus``."""
        bits, target, fixed = self.model.params.spec.input_bits, self._targets[group], self._scalings[group].fixed_norm
        slot = self._taus[group : group + 1]
        if fixed is None and bits % 8 == 0:
            data, shown = cuda.encrypt_scaled(x, target, rows, bits, slot if len(x) == 1 else None)
            made = shown
        else:
            made = shown = cuda.scales(x, target)
            if fixed is not None:
                shown = torch.full_like(made, target / fixed)
                made = torch.minimum(torch.where(made == 0, shown, made), shown)
            data = cuda.encrypt(x, made, rows, bits)
        if made is not slot:
            slot.copy_(made.sum())
        if group == 0:
            self._sent[: data.shape[1]].copy_(data[-1])
        return data, shown

    def _decrypt(self, group: int, reply: Tensor, mu: Tensor, tau: Tensor) -> Tensor:
        scaling = self._scalings[group]
        return cuda.decrypt_scaled(reply, mu, self.model.params.spec.result_bits, tau, scaling.scale, scaling.bias)
