"""The package's public names are exactly these, and each resolves."""

from __future__ import annotations

import inspect

import pytest

import veil

NAMES = {"HybridFHEMode", "HybridFHEModel", "Params", "Spec", "Terms", "VeilError", "__version__", "linear_modules"}
NAMES |= {"LoraTrainer", "Padding", "get_remote_names"}


def test_all_is_exact() -> None:
    assert set(veil.__all__) == NAMES
    assert len(veil.__all__) == len(NAMES)
    assert dir(veil) == sorted(NAMES)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_name_resolves(name: str) -> None:
    value = getattr(veil, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__name__ == name
        assert value.__module__.startswith("veil.")
        assert value.__doc__
    else:
        assert isinstance(value, str)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'veil' has no attribute 'Nothing'"):
        veil.Nothing  # noqa: B018


def test_the_methods_that_users_of_concrete_ml_know() -> None:
    for name in ("compile_model", "set_fhe_mode", "save", "load", "__call__"):
        assert callable(getattr(veil.HybridFHEModel, name))
    parameters = list(inspect.signature(veil.HybridFHEModel.compile_model).parameters)
    assert parameters[:4] == ["self", "x", "n_bits", "use_dynamic_quantization"]
    assert list(inspect.signature(veil.HybridFHEModel).parameters)[:2] == ["model", "module_names"]
