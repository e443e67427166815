"""Repairs of Triton 3.6's interpreter, for tests of the CUDA backend without a card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.runtime import interpreter


@contextmanager
def repaired() -> Iterator[None]:
    """A scalar as a loop's bound with NumPy 2.4, and speed: no checks of overflow, as on a card, and cheaper nested calls.

    A call of a device function patches triton.language anew each time, which the launch has done already.
    """
    patch_tensor, nested = interpreter._patch_lang_tensor, interpreter.InterpretedFunction.__call__

    def patch(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        ours = self.fn.__module__.startswith("veil.")
        return self.rewrite()(*args, **kwargs) if ours else nested(self, *args, **kwargs)

    scalar_type = lru_cache(maxsize=None)(interpreter._get_np_dtype)

    def numpy_type(kind: Any) -> Any:
        kind = kind.element_ty if isinstance(kind, tl.block_type) else kind
        return np.dtype(np.uint64) if isinstance(kind, tl.pointer_type) else scalar_type(kind)

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(interpreter, "_patch_lang_tensor", patch)
        patches.setattr(interpreter.InterpretedFunction, "__call__", call)
        patches.setattr(interpreter, "_get_np_dtype", numpy_type)
        object.__setattr__(interpreter.interpreter_builder.options, "sanitize_overflow", False)
        yield
        object.__setattr__(interpreter.interpreter_builder.options, "sanitize_overflow", True)
