"""A plain training loop for an adapter: batches, steps, validation, checkpoints that another run goes on from."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from veil.client.stats import Stats
from veil.disk import whole_folder
from veil.training.examples import IGNORED, Data, Example, batches, tensors

CHECKPOINT = "checkpoint"
_STATE, _ABOUT = "optimizer.pt", "training.json"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast: ``steps`` of ``batch`` examples, gathered ``accumulate`` times; the rate falls linearly to 0.

    ``clip`` bounds the gradients' norm (0: not). Every ``validate_every`` and ``save_every`` steps (0: only at the end).
    """

    steps: int = 100
    batch: int = 4
    accumulate: int = 1
    learning_rate: float = 2e-4
    warmup_steps: int = 5
    clip: float = 1.0
    validate_every: int = 0
    save_every: int = 20
    seed: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rising = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return self.learning_rate * rising * (1 - step / self.steps)


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """What a step gave and cost; ``validation`` where it was measured after it."""

    number: int
    loss: float
    seconds: float
    bytes: int
    validation: float | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished run: its steps, and the validation loss before and after (None without examples for it)."""

    steps: tuple[TrainingStep, ...]
    validation_before: float | None
    validation_after: float | None


class FineTuning:
    """Trains what of ``model`` requires gradients; ``stats`` are those of its hybrid model, None for a float one.

    The model may be a PeftModel around a hybrid model's, or any other that returns a ``loss``.
    """

    def __init__(
        self, model: nn.Module, data: Data, schedule: Schedule, *, padding: int = 0, stats: Stats | None = None
    ) -> None:
        if not data.training:
            raise ValueError("there are no examples to train on")
        self.model = model
        self.data = data
        self.schedule = schedule
        self.step = 0
        self._padding = padding
        self._stats = stats or Stats()
        self._beside_remote = stats is not None
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self._parameters:
            raise ValueError("nothing of the model requires gradients; add an adapter first")
        self._optimizer = torch.optim.AdamW(self._parameters, lr=schedule.learning_rate, weight_decay=0.0)

    def run(
        self,
        told: Callable[[TrainingStep], None] = lambda step: None,
        folder: Path | None = None,
        before: float | None = None,
    ) -> Outcome:
        """Train to the end of the schedule, telling of each step; checkpoints go to ``folder``.

        ``before`` is the validation loss at the start, where it is known from an earlier part of the run.
        """
        schedule, done = self.schedule, []
        first = self.validate() if before is None and self.step == 0 else before
        last = first
        for step in self.steps():
            last_one = step.number == schedule.steps
            if last_one or _due(step.number, schedule.validate_every):
                last = self.validate()
                step = replace(step, validation=last)
            if folder is not None and (last_one or _due(step.number, schedule.save_every)):
                self.save(folder, first)
            done.append(step)
            told(step)
        return Outcome(steps=tuple(done), validation_before=first, validation_after=last)

    def steps(self) -> Iterator[TrainingStep]:
        """Take one step after another, to the end of the schedule."""
        schedule = self.schedule
        source = batches(self.data.training, schedule.batch, schedule.seed)
        for _ in range(self.step * schedule.accumulate):
            next(source)
        while self.step < schedule.steps:
            self.model.train()
            yield self._step([next(source) for _ in range(schedule.accumulate)])

    def validate(self) -> float | None:
        """The mean loss of a token over the validation examples."""
        total, count = 0.0, 0
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            for first in range(0, len(self.data.validation), self.schedule.batch):
                batch = self.data.validation[first : first + self.schedule.batch]
                learned = _learned(batch)
                if learned:
                    total += learned * float(self._loss(batch))
                    count += learned
        self.model.train(was_training)
        return total / count if count else None

    def save(self, folder: Path, before: float | None = None) -> None:
        """Keep the adapter, the optimizer and the place in ``folder``/checkpoint, whole or not at all."""
        state = {
            "parameters": [parameter.detach() for parameter in self._parameters],
            "optimizer": self._optimizer.state_dict(),
        }
        about = {"step": self.step, "before": before, "schedule": asdict(self.schedule)}
        with whole_folder(folder / CHECKPOINT) as part:
            torch.save(state, part / _STATE)
            (part / _ABOUT).write_text(json.dumps(about, indent=1) + "\n")

    def resume(self, folder: Path) -> float | None:
        """Go on from ``folder``/checkpoint; the validation loss that the run began with.

        Raises `ValueError` where there is none, or it is of another run.
        """
        place = folder / CHECKPOINT
        try:
            about = json.loads((place / _ABOUT).read_text())
            state = torch.load(place / _STATE, weights_only=True)
            same = {name: about["schedule"][name] for name in ("batch", "accumulate", "seed")}
            shapes = [tuple(parameter.shape) for parameter in state["parameters"]]
            step, before = int(about["step"]), about["before"]
        except FileNotFoundError:
            raise ValueError(f"{folder} has no checkpoint to go on from; leave out --resume") from None
        except Exception as error:
            raise ValueError(f"the checkpoint in {place} is damaged ({type(error).__name__}); start anew") from None
        mine = asdict(self.schedule)
        changed = [name for name, value in same.items() if mine[name] != value]
        if changed or shapes != [tuple(parameter.shape) for parameter in self._parameters]:
            what = changed[0].replace("_", " ") if changed else "adapter"
            raise ValueError(f"the checkpoint in {place} is of a run with another {what}; use the same, or start anew")
        with torch.no_grad():
            for parameter, value in zip(self._parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])
        self.step = step
        return None if before is None else float(before)

    def _step(self, parts: Sequence[Sequence[Example]]) -> TrainingStep:
        start, before, schedule = time.perf_counter(), self._stats.copy(), self.schedule
        for group in self._optimizer.param_groups:
            group["lr"] = schedule.rate(self.step)
        learned = [_learned(part) for part in parts]
        loss = 0.0
        with _repeatable(schedule.seed, self.step), self._threads():
            for part, count in zip(parts, learned, strict=True):
                if not count:
                    continue
                share = self._loss(part) * (count / max(1, sum(learned)))
                share.backward()  # type: ignore[no-untyped-call]
                loss += float(share.detach())
        if schedule.clip:
            torch.nn.utils.clip_grad_norm_(self._parameters, schedule.clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1
        moved = self._stats - before
        total = moved.bytes_up_online + moved.bytes_down_online + moved.bytes_up_offline + moved.bytes_down_offline
        return TrainingStep(number=self.step, loss=loss, seconds=time.perf_counter() - start, bytes=total)

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """Beside remote layers torch's pool has one thread: it would spin on the cores that multiply, or a server's."""
        threads = torch.get_num_threads()
        if self._beside_remote:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def _loss(self, batch: Sequence[Example]) -> torch.Tensor:
        device = self._parameters[0].device
        loss: torch.Tensor = self.model(
            **{name: value.to(device) for name, value in tensors(batch, self._padding).items()}
        ).loss
        return loss


def _learned(batch: Sequence[Example]) -> int:
    """Tokens of a batch that a loss is taken of: the first has nothing before it."""
    return sum(label != IGNORED for example in batch for label in example.labels[1:])


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


@contextmanager
def _repeatable(seed: int, step: int) -> Iterator[None]:
    """Dropout of a step is the same in every run; it is no secret."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed((seed << 32) + step)
        yield
