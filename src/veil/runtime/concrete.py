"""Concrete ML's names for modes and arguments: what means something here is taken, the rest is refused in one line.

Nothing of veil is imported; `veil.hybrid.concrete_names` holds the methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from numbers import Integral


class HybridFHEMode(str, Enum):
    """Concrete ML's enumeration of modes; the strings do as well."""

    DISABLE = "disable"
    REMOTE = "remote"
    SIMULATE = "simulate"
    CALIBRATE = "calibrate"
    EXECUTE = "execute"
    TORCH = "torch"


@dataclass(frozen=True)
class Option:
    """An argument that only Concrete ML has: the values that are taken (None: any), and what to do instead of others."""

    taken: tuple[object, ...] | None = None
    instead: str = ""


_CONNECT = "a server's model is opened with HybridFHEModel.connect('HOST:PORT', 'BUNDLE/client')"

CONSTRUCTOR: Mapping[str, Option] = {
    "server_remote_address": Option((None,), _CONNECT),
    "model_name": Option(),
    "optimized_linear_execution": Option((True,), "there is one way to run a layer here; leave it out"),
    "verbose": Option(),
}
"""The constructor's further arguments, in their order."""

COMPILING: Mapping[str, Option] = {
    "rounding_threshold_bits": Option(
        (None,), "no table is looked up under encryption, so nothing is rounded; leave it out"
    ),
    "p_error": Option(
        (None,),
        "no table is looked up under encryption, so none can fail; leave it out, or choose how exact results are "
        "with params=Params.from_spec(Spec(signal_db=...))",
    ),
    "configuration": Option((None,), "leave it out, or choose parameters with params=Params.from_spec(Spec(...))"),
}
"""Arguments of ``compile_model`` that veil's own does not have."""

ATTRIBUTES: Mapping[str, str] = {
    "private_modules": "the float layers are hybrid.remote_modules[name].inner",
    "private_q_modules": "quantized weights are not kept layer by layer; hybrid.manifest has the layers",
    "executor": "keys are made by set_fhe_mode('execute') or HybridFHEModel.connect, and are not shown",
    "configuration": "the parameters are hybrid.params",
    "server_remote_address": _CONNECT,
    "optimized_linear_execution": "there is one way to run a layer here",
}
"""Attributes that are not here, and where what they held is."""

KINDS_OF_BITS = ("op_weights", "op_inputs", "model_inputs", "model_outputs")
_MOST_BITS = 8


def check_options(options: Mapping[str, object], known: Mapping[str, Option]) -> None:
    """Raise `ValueError` for a value that means nothing here; it says what to do instead."""
    for name, value in options.items():
        option = known[name]
        if option.taken is not None and not any(value is one for one in option.taken):
            raise ValueError(f"{name}={_short(value)} is Concrete ML's and means nothing here: {option.instead}")


def mode_name(mode: object) -> object:
    """The string of a mode, of this enumeration or another; `ValueError` for ``calibrate``."""
    value = mode.value if isinstance(mode, Enum) else mode
    if value == "calibrate":
        raise ValueError("mode 'calibrate' cannot be chosen: compile_model calibrates on its input by itself")
    return value


def split_mode(args: tuple[object, ...], fhe: str | Enum | None) -> tuple[tuple[object, ...], str | Enum | None]:
    """Arguments of a call and its mode, which may stand behind the input, as in ``hybrid(x, "disable")``."""
    last = args[-1] if len(args) > 1 else None
    if not isinstance(last, str | Enum):
        return args, fhe
    if fhe is not None:
        raise TypeError(f"the mode is given twice, as {_short(last)} and as fhe={_short(fhe)}; give it once")
    return args[:-1], last


def weight_bits(n_bits: object) -> object:
    """The bits of the weights in Concrete ML's dict by kind; anything else as it is.

    Activations cross at the wire's own precision, more than 8 bits give, so up to 8 bits of those are taken and change
    nothing. `ValueError` for more, and for kinds and names mixed.
    """
    if not isinstance(n_bits, dict) or not any(kind in n_bits for kind in KINDS_OF_BITS):
        return n_bits
    names = [name for name in n_bits if name not in KINDS_OF_BITS]
    if names:
        raise ValueError(f"n_bits has kinds and the name {names[0]!r}; give either bits by kind or bits by module name")
    for kind, bits in n_bits.items():
        if kind != "op_weights" and not (isinstance(bits, Integral) and 2 <= int(bits) <= _MOST_BITS):
            raise ValueError(
                f"n_bits of {kind!r} is {_short(bits)}, expected 2 to {_MOST_BITS}; how exactly activations cross follows "
                "from params=Params.from_spec(Spec(signal_db=...))"
            )
    return n_bits.get("op_weights", _MOST_BITS)


class ModelWide:
    """An attribute of Concrete ML's layers that belongs to the whole model here; setting it says so."""

    def __get__(self, layer: object, owner: type | None = None) -> object:
        raise AttributeError("layers have no mode of their own here; the model's is hybrid.fhe_mode")

    def __set__(self, layer: object, value: object) -> None:
        raise AttributeError(f"layers have no mode of their own here; call hybrid.set_fhe_mode({mode_name(value)!r})")


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
