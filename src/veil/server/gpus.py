"""A bundle on several GPUs: cut by slots where it is too large for one, or copies of it, one a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

from veil.bundle.server_half import ServerModel
from veil.crypto.hint import HintRows, ServerHint, hint_bytes, share_bytes
from veil.errors import DeviceUnavailable
from veil.kernels.backend import kernels_for
from veil.kernels.gpus import OnGpu, SpreadArray, SpreadKernels, SpreadWeights, cuts
from veil.kernels.interface import Array, Kernels
from veil.progress import Progress
from veil.server.engine import I8, Engine, record_bytes

_SPARE_BYTES = 1 << 30
"""Of a GPU's memory, for what kernels need while they work."""


@dataclass(frozen=True, kw_only=True)
class ServerGpu:
    """A device: its kernels, and the memory that is free on it; None for one that is not asked."""

    kernels: Kernels
    free_bytes: int | None = None


def find_gpus(device: str, count: int) -> list[ServerGpu]:
    """The first ``count`` GPUs of a kind; on a processor they are parts of one, which is of use for trying it.

    `DeviceUnavailable` where there are fewer.
    """
    first = kernels_for(device)
    if first.name != "cuda":
        return [ServerGpu(kernels=first) for _ in range(count)]
    import torch

    found = torch.cuda.device_count()
    if count > found:
        raise DeviceUnavailable(f"--gpus {count}, but torch sees {found}; ask for {found} or fewer")
    gpus = []
    for index in range(count):
        on = OnGpu(first, lambda index=index: torch.cuda.device(index))  # type: ignore[misc]
        gpus.append(ServerGpu(kernels=cast(Kernels, on), free_bytes=int(torch.cuda.mem_get_info(index)[0])))
    return gpus


def gpu_bytes(model: ServerModel, batches_bytes: int) -> int:
    """Memory that a whole model takes on a GPU, with its hint and so much for batches."""
    weights = sum(own.size for own in model.weights)
    return weights + hint_bytes(model.params, list(model.manifest.segments.values())) + batches_bytes + _SPARE_BYTES


def fits_one(model: ServerModel, gpus: Sequence[ServerGpu], batches_bytes: int) -> bool:
    """Whether each GPU has room for all of a model."""
    needed = gpu_bytes(model, batches_bytes)
    return all(gpu.free_bytes is None or needed <= gpu.free_bytes for gpu in gpus)


class SpreadHint:
    """The hints of all devices' slots; see `veil.crypto.hint.ServerHint`."""

    def __init__(self, hints: Sequence[ServerHint]) -> None:
        self._hints = tuple(hints)

    @property
    def nbytes(self) -> int:
        """Bytes that G holds, on all devices."""
        return sum(hint.nbytes for hint in self._hints)

    def prepare(self, batches: SpreadArray, segments: Sequence[str]) -> dict[str, SpreadArray]:
        """The shares h of B batches for each segment, on the device of their slots."""
        made = [own.prepare(part, segments) for own, part in zip(self._hints, batches.parts, strict=True)]
        return {name: SpreadArray(tuple(shares[name] for shares in made)) for name in segments}


class SpreadEngine(Engine):
    """An engine whose weights and hint are cut by slots over several GPUs."""

    @property
    def on_gpu(self) -> bool:
        """See `Engine.on_gpu`."""
        return cast(SpreadKernels, self.kernels).devices[0].name == "cuda"

    @classmethod
    def over(
        cls,
        model: ServerModel,
        devices: Sequence[Kernels],
        progress: Progress | None = None,
    ) -> SpreadEngine:
        """Build it: each device has its slots of every group and the hint of those.

        The first device's are built alone, which compiles the kernels, and ``progress`` is told of them; then those of other
        GPUs at the same time.
        """
        places = [GpuSlots(model, place, len(devices)) for place in range(len(devices))]

        def built(place: int) -> tuple[list[Array], ServerHint]:
            own, kernels = places[place], devices[place]
            loaded = kernels.load_weights(own.weights())
            rows = own.hint_rows(loaded, kernels)
            made = ServerHint.build(model.params, model.seed, rows, kernels, None if place else progress)
            kernels.synchronize()
            return loaded, made

        with ThreadPoolExecutor(len(devices) if devices[0].name == "cuda" else 1) as threads:
            parts = [built(0), *threads.map(built, range(1, len(devices)))]
        weights, hints = [loaded for loaded, _ in parts], [hint for _, hint in parts]
        spread: list[object] = [
            SpreadWeights(tuple(own[group] for own in weights), tuple(own.columns[group] for own in places))
            for group in range(len(model.weights))
        ]
        together = cast(Kernels, SpreadKernels(devices))
        made = cls(model, cast(ServerHint, SpreadHint(hints)), spread, together)
        made.places = tuple(places)
        return made

    places: tuple[GpuSlots, ...] = ()

    def batch_bytes(self, segments: Iterable[str]) -> int:
        """See `Engine.batch_bytes`; each device has whole blocks."""
        model = self.model
        shares = sum(share_bytes(model.params, own.slots[name]) for name in segments for own in self.places)
        return shares + record_bytes(model.params.T, len(model.manifest.groups))


class GpuSlots:
    """What one of ``count`` devices holds: slots of each group, and the hint's whole blocks that those lie in.

    A block's shares depend on all of its slots, so one that lies across a cut is on both sides of it.
    """

    def __init__(self, model: ServerModel, place: int, count: int) -> None:
        self._model = model
        w = model.params.w
        self.ranges: list[tuple[int, int]] = []
        self.columns: list[int] = []
        self.slots = dict.fromkeys(model.manifest.segments, 0)
        self._covers: dict[str, list[tuple[int, int]]] = {name: [] for name in model.manifest.segments}
        for group, start in zip(model.manifest.groups, model.manifest.starts, strict=True):
            ends = cuts(group.rows, count, start, w)
            first, last = ends[place], ends[place + 1]
            self.ranges.append((first, last))
            if first == last:
                self.columns.append(0)
                continue
            covers, end = self._covers[group.segment], model.manifest.segments[group.segment]
            begin, stop = (start + first) // w * w, min(end, -(-(start + last) // w) * w)
            if covers and begin < covers[-1][1]:  # the block that the last group's part ended in
                self.columns.append(self.slots[group.segment] - w + start + first - begin)
                begin += w
            else:
                self.columns.append(self.slots[group.segment] + start + first - begin)
            if begin < stop:
                covers.append((begin, stop))
                self.slots[group.segment] += -(-(stop - begin) // w) * w

    def weights(self) -> list[I8]:
        """Each group's rows [rows, width] that are multiplied here."""
        return [own[first:last] for own, (first, last) in zip(self._model.weights, self.ranges, strict=True)]

    def hint_rows(self, loaded: Sequence[Array], kernels: Kernels) -> dict[str, list[HintRows]]:
        """The int8 rows [rows, width] of all groups that this device's blocks hold, in its slots' order.

        Those ``loaded`` are not copied.
        """
        manifest, found = self._model.manifest, {name: list[HintRows]() for name in self._covers}
        for segment, covers in self._covers.items():
            for begin, stop in covers:
                for index, group in enumerate(manifest.groups):
                    start = manifest.starts[index]
                    first, last = max(begin, start), min(stop, start + group.rows)
                    if group.segment == segment and first < last:
                        found[segment] += self._parts(index, first - start, last - start, loaded[index], kernels)
        return found

    def _parts(self, group: int, first: int, last: int, loaded: Array, kernels: Kernels) -> list[HintRows]:
        """Rows of a group: those of this device as they lie there, and a few of its neighbours' around them."""
        begin, stop = self.ranges[group]
        parts = []
        for a, b in ((first, min(last, begin)), (max(first, begin), min(last, stop)), (max(first, stop), last)):
            if a < b:
                own = a >= begin and b <= stop
                rows = loaded[a - begin : b - begin] if own else kernels.load_weights([self._model.weights[group][a:b]])[0]
                parts.append(HintRows(group, rows))
        return parts


def engines(
    model: ServerModel,
    gpus: Sequence[ServerGpu],
    batches_bytes: int,
    progress: Progress | None = None,
) -> tuple[list[Engine], str]:
    """Copies of a model, one a GPU, where each GPU has room for it; else one engine over all. And what was chosen."""
    needed = f"{gpu_bytes(model, batches_bytes) / 1e9:.1f} GB"
    if fits_one(model, gpus, batches_bytes) and gpus[0].free_bytes is not None:
        copies = [Engine.build(model, gpu.kernels, progress) for gpu in gpus]
        return copies, f"{len(gpus)} copies, one a GPU: it takes {needed} of each"
    whole = SpreadEngine.over(model, [gpu.kernels for gpu in gpus], progress)
    return [whole], f"cut by slots over {len(gpus)} GPUs: it takes {needed} in all"
