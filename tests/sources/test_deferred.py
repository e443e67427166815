"""Libraries that are put off: stand-ins take their place, and the real thing is there as soon as it is used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from veil.sources.deferred import deferred

_HEAVY = """
from heavy_library.inner import Base
made = []
def doubled(x): return 2 * x
def marked(function):
    made.append(function.__name__)
    return function
class Thing(Base):
    def __init__(self, size): self.size = size
"""
_USER = """
import heavy_library
from heavy_library import Thing, doubled, marked
from heavy_library.inner import Base
KEPT = {"one": Thing(1)}
@marked
def own(x): return x + 1
def is_thing(x): return isinstance(x, Thing)
"""


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "heavy_library").mkdir()
    (tmp_path / "heavy_library" / "__init__.py").write_text(_HEAVY)
    (tmp_path / "heavy_library" / "inner.py").write_text("class Base: pass\n")
    (tmp_path / "its_user.py").write_text(_USER)
    (tmp_path / "its_child.py").write_text("from heavy_library import Thing\nclass Child(Thing): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.startswith(("heavy_library", "its_"))]:
        del sys.modules[name]


def user() -> ModuleType:
    with deferred("heavy_library"):
        return importlib.import_module("its_user")


def test_a_library_is_not_loaded_until_it_is_used(libraries: None) -> None:
    module = user()
    assert "heavy_library" not in sys.modules
    assert not module.is_thing(3) and "heavy_library" not in sys.modules
    assert module.doubled(4) == 8
    assert type(sys.modules["heavy_library"]) is ModuleType


def test_what_was_called_while_it_was_put_off_is_made_then(libraries: None) -> None:
    module = user()
    assert module.KEPT["one"].size == 1
    real = sys.modules["heavy_library"]
    assert module.is_thing(real.Thing(2)) and not module.is_thing(2)
    assert module.own(1) == 2 and real.made == ["own"]
    assert module.heavy_library.doubled is real.doubled


def test_an_import_afterwards_is_the_real_one(libraries: None) -> None:
    user()
    inner = importlib.import_module("heavy_library.inner")
    assert isinstance(inner.Base, type)
    assert issubclass(sys.modules["heavy_library"].Thing, inner.Base)


def test_a_subclass_needs_the_library_at_once(libraries: None) -> None:
    with deferred("heavy_library"):
        child = importlib.import_module("its_child").Child
    assert child(5).size == 5
    assert type(sys.modules["heavy_library"]) is ModuleType


def test_what_is_loaded_or_not_installed_is_as_ever(libraries: None) -> None:
    real = importlib.import_module("heavy_library")
    with deferred("heavy_library", "no_such_library"):
        assert importlib.import_module("its_user").heavy_library is real
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("no_such_library")
    assert sys.modules["heavy_library"] is real
