"""Libraries that others import and rarely use, loaded when they are first used instead.

transformers imports what training on many machines, other processors and other models' losses need, seconds of one core,
before it answers anything. While `deferred` holds, such a module is a stand-in, and so is each of its names that somebody
takes: what looks into one, or subclasses it, or calls it later, loads the library and goes on with the real thing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


@contextmanager
def deferred(*libraries: str) -> Iterator[None]:
    """Inside the block these modules and what is below them are stand-ins, where nobody has loaded them yet.

    After it whoever imports them loads them. A module that is not installed stays absent.
    """
    finder = _Finder(libraries)
    try:
        with asked_first(finder):
            yield
    finally:
        finder.libraries.clear()
        finder.forget()


@contextmanager
def asked_first(finder: MetaPathFinder) -> Iterator[None]:
    """Inside the block imports ask this finder before all others."""
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder(MetaPathFinder):
    """Finds modules of some libraries, to be stood in for."""

    def __init__(self, libraries: Sequence[str]) -> None:
        self.libraries = set(libraries)
        self._given: list[str] = []

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See importlib."""
        if self._library(name) is None:
            return None
        found = PathFinder.find_spec(name, path, target)
        if found is not None:
            found.loader = _StandInLoader(self)
            self._given.append(name)
        return found

    def loaded(self, name: str) -> ModuleType:
        """The real module of a name; all of its library is real from now on."""
        library = self._library(name)
        if library is not None:
            self.libraries.discard(library)
            self.forget()
        return importlib.import_module(name)

    def forget(self) -> None:
        """Take stand-ins away from where imports look, but those of libraries that are still put off."""
        for name in self._given:
            if self._library(name) is None and isinstance(sys.modules.get(name), _StandIn):
                del sys.modules[name]  # its parent keeps it until the real one is there

    def puts_off(self, name: str) -> bool:
        """Whether a module is still put off."""
        return self._library(name) is not None

    def _library(self, name: str) -> str | None:
        return next((own for own in self.libraries if name == own or name.startswith(f"{own}.")), None)


class _StandInLoader(Loader):
    """Makes stand-ins of modules."""

    def __init__(self, finder: _Finder) -> None:
        self._finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """See importlib."""
        return _StandIn(spec.name, self._finder)

    def exec_module(self, module: ModuleType) -> None:
        """See importlib: nothing runs."""


class _StandIn(ModuleType):
    """Stands for a module; afterwards, for those who took it, gives what the real one has."""

    def __init__(self, name: str, finder: _Finder) -> None:
        super().__init__(name)
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        finder, own = self._finder, self.__name__
        if finder.puts_off(own):
            return _Later(own, finder, lambda: getattr(finder.loaded(own), name))
        return getattr(finder.loaded(own), name)


class _Later:
    """Stands for a value that a module would give: a class, a function, what a call of one returns.

    While the module is put off a call is as well: it is made when its result is used.
    """

    def __init__(self, module: str, finder: _Finder, make: Callable[[], Any]) -> None:
        self._module, self._finder, self._make = module, finder, cache(make)

    def __call__(self, *arguments: object, **named: object) -> Any:
        if self._finder.puts_off(self._module):
            return _Later(self._module, self._finder, lambda: self._make()(*arguments, **named))
        return self._make()(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._make(), name)

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[object, ...]:
        return (self._make(),)

    def __instancecheck__(self, value: object) -> bool:
        module = sys.modules.get(self._module)  # nothing is of a class that was never loaded
        return module is not None and not isinstance(module, _StandIn) and isinstance(value, self._make())
