"""Regenerates ``veil_pb2.py`` and its stub from ``veil.proto``: ``python -m veil.wire.generate``. Needs grpcio-tools."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    """Write the generated files beside the schema; the exit status of protoc."""
    from grpc_tools import protoc

    here = Path(__file__).parent
    root = here.parents[1]
    return int(protoc.main(["protoc", f"-I{root}", f"--python_out={root}", f"--pyi_out={root}", str(here / "veil.proto")]))


if __name__ == "__main__":
    sys.exit(main())
