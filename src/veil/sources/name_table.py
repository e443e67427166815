"""transformers' table of its own names, kept on disk: it makes it at every import, twice, by reading two thousand files."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from veil.disk import write_whole
from veil.sources.deferred import asked_first

NameTable = dict[frozenset[str], dict[str, set[str]]]
"""By the libraries that names need: module → names."""

_MAKER = "transformers.utils.import_utils"


@contextmanager
def kept_names(folder: Path) -> Iterator[None]:
    """Inside the block, where transformers is imported, it takes its table from ``folder``, and leaves it there.

    A table is of one release: of a version that is under development none is kept.
    """
    with asked_first(_Finder(folder)):
        yield


class _Finder(MetaPathFinder):
    """Finds the module that makes the table, and has it keep what it makes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See importlib."""
        if name != _MAKER:
            return None
        found = PathFinder.find_spec(name, path, target)
        if found is not None and found.loader is not None and found.origin is not None:
            version = importlib.metadata.version("transformers")
            if "dev" not in version:
                found.loader = _Loader(found.loader, self._folder / f"names-{version}.json", Path(found.origin).parents[1])
        return found


class _Loader(Loader):
    """Loads the module as another loader would, and puts a table that is kept in the place of its own."""

    def __init__(self, loader: Loader, kept: Path, package: Path) -> None:
        self._loader, self._kept, self._package = loader, kept, package

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """See importlib."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """See importlib."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        make: Any = getattr(module, "define_import_structure", None)
        if make is not None:
            module.define_import_structure = self._keeping(make)  # type: ignore[attr-defined]

    def _keeping(self, make: Callable[..., NameTable]) -> Callable[..., NameTable]:
        """``define_import_structure``, with the table of all models from the file."""
        models = self._package / "models"
        tables: list[NameTable] = []

        def made(module_path: str | Path, prefix: str | None = None) -> NameTable:
            if Path(module_path) not in (models, models / "__init__.py"):
                return make(module_path) if prefix is None else make(module_path, prefix=prefix)
            if not tables:
                tables.append(self._read(models) or self._made(make, models))
            begin = "" if prefix is None else f"{prefix}."
            return {needs: {begin + name: set(names) for name, names in found.items()} for needs, found in tables[0].items()}

        return made

    def _made(self, make: Callable[..., NameTable], models: Path) -> NameTable:
        table = make(models)
        rows = [[sorted(needs), {name: sorted(names) for name, names in found.items()}] for needs, found in table.items()]
        with suppress(OSError):  # it is made again next time
            write_whole(self._kept, json.dumps({"changed": _changed(models), "table": rows}).encode())
        return table

    def _read(self, models: Path) -> NameTable | None:
        """The table that is kept; None where there is none, or it is damaged, or of another installation."""
        try:
            kept = json.loads(self._kept.read_bytes())
            if kept["changed"] != _changed(models):
                return None
            return {
                frozenset(needs): {str(name): set(names) for name, names in found.items()} for needs, found in kept["table"]
            }
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None


def _changed(models: Path) -> list[object]:
    """What another installation has otherwise."""
    return [str(models), models.stat().st_mtime_ns, (models / "__init__.py").stat().st_mtime_ns]
