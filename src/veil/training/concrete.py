"""Concrete ML's names for training adapters: what its LoRA page uses, over `HybridFHEModel` and plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from veil.hybrid.model import HybridFHEModel
from veil.runtime.modules import linear_modules


def get_remote_names(model: nn.Module, include_embedding_layers: bool = False) -> list[str]:
    """Names of the linear layers to make remote, adapters left out; the head and embeddings if those are included."""
    return linear_modules(model, include_head=include_embedding_layers, include_embedding=include_embedding_layers)


Inputs = Mapping[str, torch.Tensor] | torch.Tensor
Batch = Mapping[str, torch.Tensor] | tuple[Inputs, torch.Tensor]
"""What a loader gives: a dict with ``labels``, or inputs and labels."""


class LoraTrainer:
    """Trains what of ``model``, usually a PeftModel, requires gradients; its frozen linear layers are remote.

    ``loss_fn(outputs, labels)`` is used where the model does not return a loss itself. ``training_args`` may have
    ``gradient_accumulation_steps`` and ``max_grad_norm``, as a dict or as attributes. Call `compile`, then `train`; the
    hybrid model is ``hybrid_model``.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        loss_fn: Callable[..., torch.Tensor] | None = None,
        lr_scheduler: LRScheduler | None = None,
        training_args: object = None,
        *,
        remote_names: list[str] | None = None,
        logging_steps: int = 0,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loss_fn = loss_fn
        self.lr_scheduler = lr_scheduler
        self.losses: list[float] = []
        self.hybrid_model: HybridFHEModel | None = None
        self._remote_names = remote_names or get_remote_names(model)
        self._accumulate = int(_setting(training_args, "gradient_accumulation_steps") or 1)
        self._clip = _setting(training_args, "max_grad_norm")
        self._logging_steps = logging_steps

    def compile(self, inputset: object, n_bits: int = 8, use_dynamic_quantization: bool = True, **options: Any) -> None:
        """Quantize the remote layers on ``inputset``: inputs, (inputs, labels) or a dict. ``options``: `compile_model`'s."""
        sample = inputset[0] if isinstance(inputset, tuple | list) else inputset
        if isinstance(sample, Mapping):
            sample = {name: value for name, value in sample.items() if name != "labels"}
        self.hybrid_model = HybridFHEModel(self.model, self._remote_names)
        self.hybrid_model.compile_model(sample, n_bits, use_dynamic_quantization, trainable=True, **options)

    def train(self, train_loader: Iterable[Batch], num_epochs: int = 1, fhe: str = "execute") -> list[float]:
        """Go over the batches, each (inputs, labels) or a dict with ``labels``, in this mode; the loss of each batch.

        Raises `RuntimeError` before `compile`.
        """
        if self.hybrid_model is None:
            raise RuntimeError("call compile first")
        self.hybrid_model.set_fhe_mode(fhe)
        self.model.train()
        for _ in range(num_epochs):
            for number, batch in enumerate(train_loader, 1):
                loss = self._loss(batch)
                (loss / self._accumulate).backward()  # type: ignore[no-untyped-call]
                self.losses.append(float(loss.detach()))
                if self._logging_steps and len(self.losses) % self._logging_steps == 0:
                    print(f"batch {len(self.losses)}: loss {self.losses[-1]:.4f}")
                if number % self._accumulate == 0:
                    self._step()
        return self.losses

    def _loss(self, batch: Batch) -> torch.Tensor:
        inputs, labels = (batch, batch.get("labels")) if isinstance(batch, Mapping) else batch
        if self.loss_fn is not None:
            if isinstance(inputs, Mapping):
                return self.loss_fn(self.model(**{name: own for name, own in inputs.items() if name != "labels"}), labels)
            return self.loss_fn(self.model(inputs), labels)
        outputs = self.model(**inputs) if isinstance(inputs, Mapping) else self.model(inputs, labels=labels)
        loss = getattr(outputs, "loss", None)
        if loss is None:
            raise ValueError("the model returned no loss; give it labels, or LoraTrainer a loss_fn")
        made: torch.Tensor = loss
        return made

    def _step(self) -> None:
        if self._clip is not None:
            torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], float(self._clip))
        if self.optimizer is not None:
            self.optimizer.step()
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        self.model.zero_grad()


def _setting(settings: object, name: str) -> float | None:
    return settings.get(name) if isinstance(settings, Mapping) else getattr(settings, name, None)
