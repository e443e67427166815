"""torch, transformers and Numba, imported without what no answer needs: more than half of the time that they take."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from veil.cache import cache_folder
from veil.sources.deferred import deferred
from veil.sources.name_table import kept_names

_UNUSED = (
    *("accelerate", "scipy.linalg", "scipy.optimize", "scipy.stats", "sklearn", "torch._dynamo", "torch.export"),
    *("torch.distributed._composable", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor"),
    "trio",
)
"""What torch, transformers and numba import for training, compiling, tensors on many machines, and other people's tests."""


@contextmanager
def light_imports() -> Iterator[None]:
    """Inside the block they are imported so; what was left out is loaded where it is used after all."""
    with deferred(*_UNUSED), kept_names(cache_folder()):
        yield


def load_libraries() -> None:
    """Load torch and transformers, with what any model is loaded and runs by, and Numba, with what kernels are read by.

    For a command, whose process is its own: what is loaded by now stays as long as that, and is never looked at as garbage.
    """
    with _uncollected(), light_imports():
        import torch  # noqa: F401
        from numba.core.registry import cpu_target
        from transformers import PreTrainedModel, PreTrainedTokenizerBase  # noqa: F401
        from transformers.generation import GenerationMixin  # noqa: F401

        cpu_target.target_context.refresh()


@contextmanager
def _uncollected() -> Iterator[None]:
    """Inside the block nothing is looked for garbage, and what it made is not afterwards either."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
