"""The package's public names are exactly these, and each resolves."""

from __future__ import annotations

import inspect
import sys

import pytest

import veil
from veil import errors

NAMES = {"HybridFHEMode", "HybridFHEModel", "Params", "Spec", "Terms", "__version__", "linear_modules"}
NAMES |= {"LoraTrainer", "Padding", "get_remote_names", "Source", "load_model", "connect", "OfflineRows", "Timeouts"}
NAMES |= {"Server", "ServerConfig", "Limits", "Tokens", "Fidelity", "fidelity"}
ERRORS = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, errors.VeilError)}
INSIDE = {"TYPE_CHECKING", "Any", "annotations", "importlib"}
"""What the package's own code imports."""


def test_all_is_exact() -> None:
    assert set(veil.__all__) == NAMES | ERRORS
    assert list(veil.__all__) == sorted(NAMES | ERRORS)
    assert dir(veil) == sorted(NAMES | ERRORS)


def test_nothing_else_is_in_the_package() -> None:
    for name in veil.__all__:
        getattr(veil, name)
    found = {name for name, value in vars(veil).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert found - INSIDE == (NAMES | ERRORS) - {"__version__"}


@pytest.mark.parametrize("name", sorted(NAMES | ERRORS))
def test_every_name_resolves(name: str) -> None:
    value = getattr(veil, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__name__ == name
        assert value.__module__.startswith("veil.")
        assert value.__doc__
    else:
        assert isinstance(value, str)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(vars(veil), "Server", raising=False)
    for module in [name for name in sys.modules if name == "veil.server.listen" or name.startswith("grpc_health")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "grpc_health", None)
    with pytest.raises(ImportError, match=r"^veil.Server needs grpc_health.*: pip install 'veil-llm\[server\]'$"):
        veil.Server  # noqa: B018


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'veil' has no attribute 'Nothing'"):
        veil.Nothing  # noqa: B018


def test_the_methods_that_users_of_concrete_ml_know() -> None:
    for name in ("compile_model", "set_fhe_mode", "save", "load", "__call__"):
        assert callable(getattr(veil.HybridFHEModel, name))
    parameters = list(inspect.signature(veil.HybridFHEModel.compile_model).parameters)
    assert parameters[:4] == ["self", "x", "n_bits", "use_dynamic_quantization"]
    assert list(inspect.signature(veil.HybridFHEModel).parameters)[:2] == ["model", "module_names"]
