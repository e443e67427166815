"""Halves of bundles as options name them: a folder, or ``NAME=`` and a folder."""

from __future__ import annotations

from pathlib import Path

from veil.given import named_given


def named(values: list[str]) -> dict[str, Path]:
    """``NAME=PATH`` or ``PATH`` by name; the folder's name, or its parent's where the folder is a half of a bundle."""
    found: dict[str, Path] = {}
    for value in values:
        name, text = named_given(value, "NAME=PATH")
        path = Path(text)
        if name is None:
            absolute = path.resolve()
            name = absolute.parent.name if absolute.name in ("server", "client") else absolute.name
        if not (path / "bundle.json").is_file():
            inner = [half for half in ("server", "client") if (path / half / "bundle.json").is_file()]
            advice = f"; did you mean {path / inner[0]}?" if inner else "; make one with 'veil compile'"
            raise ValueError(f"{path} is not a half of a bundle{advice}")
        if not name or name in found:
            raise ValueError(f"two bundles would be called {name!r}; name them with NAME=PATH")
        found[name] = path
    return found
