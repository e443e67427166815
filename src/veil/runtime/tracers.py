"""What records a model to run it without its own code: torch.compile, torch.export, TorchScript and torch.fx."""

from __future__ import annotations

from typing import NoReturn

import torch

_MODES = torch._C._TorchDispatchModeKey
HOOKS = frozenset({"__prepare_scriptable__", "_jit_override_qualname"})
"""Attributes that only TorchScript asks an object for, when it begins to compile it."""


def refuse_tracers() -> None:
    """`TypeError` under what records a model: a record keeps the answers of remote layers, or their float weights."""
    if torch.compiler.is_compiling() or torch._C._dynamo.eval_frame.get_eval_frame_callback() is not None:
        raise TypeError("torch.compile cannot look into remote layers; call the model as it is, without compiling it")
    if torch._C._get_tracing_state() is not None:
        refuse_torchscript()
    for key in (_MODES.PROXY, _MODES.FAKE):
        if torch._C._get_dispatch_mode(key) is not None:
            refuse_graph()


def refuse_torchscript() -> NoReturn:
    """Raise the `TypeError` for torch.jit.script, torch.jit.trace and exports that use them."""
    raise TypeError("TorchScript cannot look into remote layers; call the model as it is, without torch.jit")


def refuse_graph() -> NoReturn:
    """Raise the `TypeError` for torch.fx and what uses it."""
    raise TypeError("torch.fx cannot look into remote layers; call the model as it is, without tracing it")
