"""Imports run one way: which room may import which, and nothing else. A new arrow is a decision, and is made here."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "veil"
GROUND = {"cache", "disk", "errors", "flag", "given", "noise", "params", "priority", "process", "progress", "seed", "typing"}
"""Modules without a room, which every room may import; ``random`` is not one of them: it makes secrets."""

ARROWS = {
    "kernels": set(),
    "random": {"kernels"},
    "network": set(),
    "sources": {"random"},
    "crypto": {"kernels", "random"},
    "bundle": {"kernels"},
    "wire": {"bundle", "kernels"},
    "checks": {"bundle", "kernels", "random"},
    "server": {"bundle", "crypto", "kernels", "network", "veil", "wire"},
    "cluster": {"kernels", "network", "server", "wire"},
    "client": {"bundle", "checks", "crypto", "kernels", "network", "random", "wire"},
    "runtime": {"bundle", "checks", "client", "kernels", "sources"},
    "compile": {"bundle", "checks", "kernels", "runtime", "sources"},
    "hybrid": {
        "bundle",
        "checks",
        "client",
        "compile",
        "crypto",
        "kernels",
        "network",
        "random",
        "runtime",
        "server",
        "wire",
    },
    "training": {"client", "hybrid", "runtime"},
    "trust": {"bundle", "checks", "compile", "random", "runtime", "sources"},
    "gateway": {"client", "hybrid", "network", "training", "veil"},
    "report": {"bundle", "hybrid", "kernels", "runtime"},
    "bench": {
        "bundle",
        "client",
        "compile",
        "crypto",
        "hybrid",
        "kernels",
        "network",
        "random",
        "runtime",
        "server",
        "sources",
        "veil",
        "wire",
    },
    "commands": {
        *(
            "bench",
            "bundle",
            "checks",
            "client",
            "cluster",
            "compile",
            "gateway",
            "hybrid",
            "kernels",
            "network",
            "report",
            "runtime",
            "server",
        ),
        *("sources", "training", "trust", "veil", "wire"),
    },
    "cli": {"bench", "bundle", "client", "cluster", "commands", "gateway", "network", "server", "training", "veil"},
    "veil": {"bundle", "client", "commands", "hybrid", "network", "report", "runtime", "server", "sources", "training"},
    "__main__": {"cli"},
}


def room_of(module: str) -> str:
    """The room of a dotted name, or the module's own name on the ground floor; ``veil`` for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "veil"


@cache
def found_arrows() -> dict[tuple[str, str], str]:
    """(room, room that it imports) → one line that does."""
    paths = {".".join(("veil", *path.relative_to(SOURCE).with_suffix("").parts)): path for path in SOURCE.rglob("*.py")}
    known = {name.removesuffix(".__init__") for name in paths}
    arrows = {}
    for name, path in paths.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            targets: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                full = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                targets = [full[alias] if full[alias] in known else node.module for alias in full]
            elif isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            for target in targets:
                if target.split(".")[0] == "veil" and room_of(target) != room_of(name.removesuffix(".__init__")):
                    assert isinstance(node, ast.Import | ast.ImportFrom)
                    line = f"{path.relative_to(SOURCE)}:{node.lineno} imports {target}"
                    arrows[room_of(name.removesuffix(".__init__")), room_of(target)] = line
    return arrows


def test_no_room_imports_what_it_may_not() -> None:
    wrong = {line for (room, other), line in found_arrows().items() if other not in GROUND | ARROWS.get(room, set())}
    ground = {line for (room, other), line in found_arrows().items() if room in GROUND and other not in GROUND}
    assert not wrong and not ground, "\n".join(sorted(wrong | ground))


def test_every_arrow_that_is_allowed_is_there() -> None:
    found = found_arrows()
    assert [(room, other) for room, others in ARROWS.items() for other in sorted(others) if (room, other) not in found] == []


def test_the_arrows_have_no_circle() -> None:
    left = {room: set(others) - {"veil"} for room, others in ARROWS.items() if room != "veil"}
    while left:
        free = [room for room, others in left.items() if not others & set(left)]
        assert free, f"a circle among {sorted(left)}"
        for room in free:
            del left[room]


def test_class_names_are_unique_in_the_package() -> None:
    """One name, one meaning; private classes are their module's own business."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(SOURCE.rglob("*.py")):
        if path.name.endswith("_pb2.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path.relative_to(SOURCE).as_posix())
    assert {name: where for name, where in places.items() if len(where) > 1} == {}
