"""The record of a run over every architecture, as `bench/families.py` writes it."""

from __future__ import annotations

import collections
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from veil.bench import machine as host
from veil.bench.record import FORMAT


@dataclass(kw_only=True)
class Family:
    """What came of an architecture: ``works``, ``refused``, ``fails``, ``no layer`` or ``not built``.

    ``layer_db`` is the least signal to noise of a layer, encrypted against float on the same input; ``quantized_db`` of the
    output, integer layers against float; ``encrypted_db`` of the output, encrypted against integer layers.
    """

    kind: str
    model: str = ""
    verdict: str = "not built"
    reason: str = ""
    parameters: int = 0
    linear_layers: int = 0
    remote_layers: int = 0
    remote_share: float = 0.0
    called: int = 0
    layer_db: float | None = None
    quantized_db: float | None = None
    encrypted_db: float | None = None
    generates: str = ""
    bundle: str = ""
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(kw_only=True)
class FamilyRecord:
    """One run over every architecture."""

    commit: str = field(default_factory=host.commit)
    machine: str = field(default_factory=host.name)
    versions: dict[str, str] = field(default_factory=host.versions)
    families: list[Family] = field(default_factory=list)
    format: int = FORMAT
    kind: str = "families"

    def counts(self) -> dict[str, int]:
        """How many of each verdict."""
        return dict(collections.Counter(family.verdict for family in self.families))

    def write(self, path: Path) -> None:
        """Write the record as JSON, a line for each architecture."""
        value = asdict(self)
        rows = ",\n".join("  " + json.dumps(_rounded(row), ensure_ascii=False) for row in value.pop("families"))
        head = json.dumps(value, indent=1)[:-2]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{head},\n "families": [\n{rows}\n ]\n}}\n')

    @classmethod
    def read(cls, path: Path) -> FamilyRecord:
        """The record in a file; `ValueError` for one of another kind."""
        value = json.loads(path.read_text())
        if (value.get("format"), value.get("kind")) != (FORMAT, "families"):
            raise ValueError(f"{path} is not a record of families of format {FORMAT}")
        return cls(**value | {"families": [Family(**row) for row in value["families"]]})


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: round(part, 3) if isinstance(part, float) else part for name, part in value.items()}
    return value
