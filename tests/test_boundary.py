"""The trust boundary is in the import graph: what a server imports reaches neither secret-key code nor the client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
SECRET = (
    "veil.random",
    "veil.crypto.batch",
    "veil.client",
    "veil.runtime",
    "veil.hybrid",
    "veil.kernels.cuda.secret",
)
SERVER = ("veil.server", "veil.crypto.hint")
SHARED = ("bundle", "wire", "network")


def imported(statement: str) -> set[str]:
    """Every module that a fresh interpreter has after one statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return set(json.loads(run.stdout.splitlines()[-1]))


def within(modules: set[str], *names: str) -> list[str]:
    return sorted(m for m in modules if any(m == name or m.startswith(name + ".") for name in names))


def modules_of(*packages: str) -> list[str]:
    """Every module of some packages of veil, so that a new file cannot slip past a list."""
    names = [f"veil.{package}.{path.stem}" for package in packages for path in (SOURCE / "veil" / package).glob("*.py")]
    return sorted(name for name in names if not name.endswith(("__init__", "wire.generate")))


def test_no_module_of_the_server_reaches_a_secret() -> None:
    names = modules_of("server")
    assert "veil.server.engine" in names
    modules = imported("\n".join(f"import {name}" for name in [*names, "veil.crypto.hint"]))
    assert within(modules, *SECRET) == []
    assert within(modules, "transformers", "torch") == []


def test_no_module_of_the_client_loads_the_server() -> None:
    names = modules_of("client", "runtime")
    assert "veil.client.tables" in names
    modules = imported("\n".join(f"import {name}" for name in [*names, "veil.crypto.batch"]))
    assert within(modules, *SERVER) == []


def test_what_both_sides_share_reaches_neither() -> None:
    names = modules_of(*SHARED)
    assert "veil.bundle.server_half" in names
    modules = imported("\n".join(f"import {name}" for name in [*names, "veil.crypto.public", "veil.kernels.backend"]))
    assert within(modules, *SECRET, *SERVER) == []


def test_a_serving_engine_reaches_no_secret_key_code() -> None:
    """Also what is imported while it builds its hint and chooses its kernels."""
    modules = imported(
        "import numpy as np\n"
        "from veil.kernels.backend import kernels_for\n"
        "from veil.bundle.manifest import Group, Layer, Manifest\n"
        "from veil.params import Params\n"
        "from veil.seed import PublicSeed\n"
        "from veil.bundle.server_half import ServerModel\n"
        "from veil.server.engine import Engine\n"
        "from veil.server.local import LocalServer\n"
        "manifest = Manifest((Group((Layer('a', 'linear', 5, 3, 8, False),), 'body'),))\n"
        "model = ServerModel(Params.insecure_tiny(), PublicSeed(bytes(32)), manifest, (np.ones((3, 5), np.int8),))\n"
        "LocalServer(Engine.build(model, kernels_for('reference'))).open()\n"
    )
    assert "veil.kernels.reference" in modules
    assert within(modules, *SECRET) == []


def test_import_veil_is_light() -> None:
    modules = imported("import veil")
    assert within(modules, "torch", "numpy", "numba", "transformers", "cryptography") == []
    assert within(modules, "veil") == ["veil"]


def test_a_public_name_loads_what_it_needs_and_no_more() -> None:
    modules = imported("from veil import Params; Params.default()")
    assert within(modules, "torch", "numpy", "numba", *SECRET) == []


def test_a_server_from_the_public_api_reaches_no_secret() -> None:
    modules = imported("from veil import Limits, Server, ServerConfig, Tokens, VeilError")
    assert "veil.server.listen" in modules
    assert within(modules, "torch", "transformers", *SECRET) == []
