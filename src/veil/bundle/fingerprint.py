"""What tells bundles apart: a digest of what both halves know."""

from __future__ import annotations

import hashlib
import json

from veil.bundle.header_file import common_fields
from veil.bundle.manifest import Manifest
from veil.params import Params
from veil.seed import PublicSeed


def header_of(params: Params, seed: PublicSeed, manifest: Manifest) -> str:
    """What both halves of a bundle know, as canonical JSON."""
    return json.dumps(common_fields(params, seed, manifest), sort_keys=True, separators=(",", ":"))


def fingerprint_of(params: Params, seed: PublicSeed, manifest: Manifest) -> str:
    """SHA-256 of `header_of`, hexadecimal: the seed is drawn for each bundle, so it tells bundles apart."""
    return hashlib.sha256(header_of(params, seed, manifest).encode()).hexdigest()
