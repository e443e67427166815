"""One half of a bundle on disk: ``bundle.json`` with the format's version, what the half describes, and digests of files."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from veil.bundle.fields import Header
from veil.bundle.manifest import Manifest
from veil.bundle.terms import Terms
from veil.disk import digest
from veil.errors import BundleError
from veil.params import Params, Spec
from veil.seed import PublicSeed

FORMAT_VERSION = 3
HEADER = "bundle.json"
_MAX_HEADER_BYTES = 16 << 20


def write_header(folder: Path, half: str, fields: Header) -> None:
    """Write the header of a half (``client`` or ``server``) over the files that stand in the folder already.

    safetensors writes files for their owner alone; whoever may read the header may read those too.
    """
    digests = {name: digest(folder / name) for name in _files(folder)}
    header = {"format": FORMAT_VERSION, "half": half, **fields, "sha256": digests}
    (folder / HEADER).write_text(json.dumps(header, indent=1, sort_keys=True) + "\n")
    mode = stat.S_IMODE((folder / HEADER).stat().st_mode)
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)


def read_header(folder: Path, half: str, *, verify: bool = True, optional: tuple[str, ...] = ()) -> Header:
    """Read and check a half's header and, with ``verify``, the digest of every file; `BundleError` says what is wrong.

    A file of ``optional`` may be absent.
    """
    path = folder / HEADER
    if not path.is_file():
        raise BundleError(f"{folder} holds no bundle ({HEADER} is missing); make one with 'veil compile'")
    if path.stat().st_size > _MAX_HEADER_BYTES:
        raise BundleError(f"{path} is larger than {_MAX_HEADER_BYTES} bytes")
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        version, found, digests = header["format"], header["half"], header["sha256"]
        if not isinstance(digests, dict):
            raise TypeError("the digests are not by name")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error}") from None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{path} is of format {str(version)[:40]}, this veil reads {FORMAT_VERSION}; compile the model again"
        )
    if found != half:
        raise BundleError(f"{folder} is the {str(found)[:40]} half of a bundle, expected the {half} half")
    if verify:
        _verify(folder, digests, optional)
    read: Header = header
    return read


def read_client(
    folder: Path, terms: Terms, *, verify: bool = True, optional: tuple[str, ...] = ()
) -> tuple[Header, Params, PublicSeed, Manifest]:
    """`read_header` of a client half, parsed, and refused unless it keeps to ``terms``: whoever reads one reads it here."""
    header = read_header(folder, "client", verify=verify, optional=optional)
    terms.check_digest(half_digest(folder))
    params, seed, manifest = parse_common(header)
    terms.check_params(params)
    leaks = header.get("experts", {})
    if not isinstance(leaks, dict) or not all(isinstance(leak, str) for leak in leaks.values()):
        raise BundleError(f"{folder / HEADER} does not say what its experts show")
    terms.check_leaks(leaks.values(), (layer.name for group in manifest.groups for layer in group.layers))
    return header, params, seed, manifest


def half_digest(folder: Path) -> str:
    """The digest of a whole half, hexadecimal: of its header, which holds the digest of every other file."""
    return digest(folder / HEADER)


def common_fields(params: Params, seed: PublicSeed, manifest: Manifest) -> Header:
    """Header fields that both halves carry."""
    insecure = params.security_bits == 0
    return {
        "params": params.spec.to_dict() | {"insecure": insecure},
        "seed": seed.seed.hex(),
        "manifest": manifest.to_json(),
    }


def parse_common(header: Header) -> tuple[Params, PublicSeed, Manifest]:
    """Inverse of `common_fields`, checked; `BundleError` for anything that does not fit."""
    try:
        fields = dict(header["params"])
        insecure = bool(fields.pop("insecure"))
        spec = Spec.from_dict(fields)
        params = Params.insecure(spec) if insecure else Params.from_spec(spec)
        seed = PublicSeed(bytes.fromhex(header["seed"]))
        return params, seed, Manifest.from_json(header["manifest"])
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise BundleError(f"the bundle's header does not fit: {error}") from None


def _files(folder: Path) -> list[str]:
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in names if name != HEADER)


def _verify(folder: Path, digests: dict[str, str], optional: tuple[str, ...]) -> None:
    present = _files(folder)
    digests = {name: found for name, found in digests.items() if name in present or name not in optional}
    if present != sorted(digests):
        odd = sorted(set(present) ^ set(digests))[0]
        raise BundleError(f"{folder}: {odd} is missing, or does not belong there")
    for name, expected in digests.items():
        if digest(folder / name) != expected:
            raise BundleError(f"{folder / name} does not match its digest; fetch or compile the bundle again")
