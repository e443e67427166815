"""Options that several commands have, and what they make together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veil.errors import ModelSourceError

if TYPE_CHECKING:
    from veil.bundle.terms import Terms
    from veil.client.connection import Address
    from veil.commands.choice import ModelChoice


class Device(str, Enum):
    """Where veil computes."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Mode(str, Enum):
    """How the remote layers are computed."""

    torch = "torch"
    disable = "disable"
    simulate = "simulate"
    execute = "execute"


class FuseNorms(str, Enum):
    """Whether layers on both sides of a norm share a round trip."""

    auto = "auto"
    on = "on"
    off = "off"


class Checked(str, Enum):
    """Whether answers are checked."""

    require = "require"
    auto = "auto"
    off = "off"


class ExpertLeak(str, Enum):
    """What the server may learn of a mixture's routing."""

    none = "none"
    reveal = "reveal"


MODEL_HELP = (
    "The model: `smollm2` (built in), a FOLDER in Hugging Face layout, a FILE.gguf, or a HUB-ID such as "
    "`openai-community/gpt2`."
)
MODULES_HELP = (
    "Which layers are remote: `linear` (every linear layer, the head included), `linear+embedding` (the token "
    "embedding too), or a regular expression that matches whole module names."
)
BITS_HELP = "Bits of the remote layers' weights."

Model = Annotated[str, typer.Argument(help=MODEL_HELP)]
OtherModel = Annotated[str | None, typer.Option("--model", help=MODEL_HELP, show_default="smollm2")]
Modules = Annotated[str, typer.Option(help=MODULES_HELP)]
Bits = Annotated[int, typer.Option(min=2, max=8, help=BITS_HELP)]
Bundle = Annotated[Path | None, typer.Option(help="A folder made by `veil compile`, or its client half.")]
ServingDevice = Annotated[
    Device,
    typer.Option(
        help="Where a server's half in this process computes; `auto` takes a GPU if veil can use one. The client's half "
        "stays on the processor."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else there.")]

Adapter = Annotated[
    list[str] | None,
    typer.Option(metavar="[NAME=]FOLDER", help="A PEFT adapter, such as `veil finetune` makes; it stays on this machine."),
]

# A server elsewhere ---------------------------------------------------------------------------------------------------

Server = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", help="Use the server there, with --bundle's client half or the one that the server offers."
    ),
]
ServerBundle = Annotated[str | None, typer.Option(help="Which of the server's bundles.", show_default="the fitting one")]
WhichFusion = Annotated[
    FuseNorms,
    typer.Option(
        help="Which of a server's bundles of one model to fetch. `on`: the one with fused norms (half the round trips), "
        "`off`: the other, `auto`: the one that is faster at the round-trip time to the server."
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        envvar="VEIL_TOKEN",
        help="The bearer token, if the server wants one; the environment variable keeps it out of the process list.",
    ),
]
Tls = Annotated[bool, typer.Option("--tls", help="Use TLS, with the certificates that the system trusts.")]
TlsCa = Annotated[
    Path | None,
    typer.Option(help="Use TLS, with this PEM file of the authority that signed the server's certificate."),
]
NoTls = Annotated[
    bool,
    typer.Option("--allow-no-tls", help="Allow a server on another machine without TLS, on a network that only you use."),
]
NoCryptography = Annotated[
    bool,
    typer.Option(
        "--allow-no-cryptography", help="Take a bundle with parameters for tests, which protect nothing from the server."
    ),
]
Leak = Annotated[
    ExpertLeak,
    typer.Option(
        "--expert-leak",
        help="What a server may learn of a mixture of experts: `none`, or `reveal` which experts each token goes to, for a "
        "bundle that was compiled so.",
    ),
]
Digest = Annotated[
    str | None,
    typer.Option(
        metavar="HEX",
        help="Accept only the client half with this digest, as `veil pull` shows it, and accept it where a known server "
        "offered another one before.",
        show_default="any from a new server, the same from a known one",
    ),
]

WhichChecked = Annotated[
    Checked,
    typer.Option(
        "--checked",
        help="Check every answer of the server against weights that you trust. `auto`: if `veil check` made vectors for "
        "the half, `require`: fail without them, `off`: check nothing.",
    ),
]


Pad = Annotated[
    str,
    typer.Option(
        "--pad",
        metavar="off|STEP|powers[,whole]",
        help="Hide lengths in steps. The rows of a prompt are filled up to a multiple of STEP (64, say) or a power of two; "
        "after an answer's end passes go on, unseen, to such a number of tokens, or with `,whole` to the most that it may "
        "have. That holds too where an answer fails or its client disconnects.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class ServerAccess:
    """How a server is reached."""

    token: Token = None
    tls: Tls = False
    tls_ca: TlsCa = None
    allow_no_tls: NoTls = False

    def address(self, server: str) -> Address:
        """Where a server is and how it is reached, which is tried at once: `ServerUnreachable` if nobody is there.

        `ValueError` for options that do not fit.
        """
        from veil.cli.reach import try_to_reach
        from veil.client.connection import Address

        made = Address(target=server, token=self.token, tls=self.tls_ca or self.tls, allow_no_tls=self.allow_no_tls)
        try_to_reach(made.target, proxied=bool(made.tls))
        return made


@dataclass(frozen=True, kw_only=True)
class Consent:
    """What a client half may be and do."""

    digest: Digest = None
    allow_no_cryptography: NoCryptography = False
    expert_leak: Leak = ExpertLeak.none

    def terms(self, *, half: bool = True) -> Terms:
        """On what terms a client half is used; `ValueError` where there is no ``half``, or for what is no digest."""
        from veil.bundle.terms import Terms

        made = Terms(expert_leak=self.expert_leak.value, no_cryptography=self.allow_no_cryptography, digest=self.digest)
        if made != Terms() and not half:
            raise ValueError("--digest, --expert-leak and --allow-no-cryptography are about a --bundle or a --server's")
        return made


def check_model(source: str) -> None:
    """`ModelSourceError` for a path to nothing, before anything heavy is loaded to read it."""
    path = Path(source).expanduser()
    if path.exists():
        return
    if path.suffix.lower() == ".gguf":
        raise ModelSourceError(f"there is no file {path}; check the path")
    if source.startswith((".", "/", "~")):
        raise ModelSourceError(f"there is no folder or file {source!r}; check the path, or use `smollm2`")


def check_bundle(path: Path | None, terms: Terms) -> None:
    """`BundleError` for what a bundle's client half may not be, or none, by its header, before anything heavy is loaded."""
    if path is None:
        return
    from veil.bundle.header_file import read_client

    inner = path / "client"
    read_client(inner if inner.is_dir() else path, terms, verify=False)


def check_file(path: Path | None) -> None:
    """`ValueError` for a file that is not there."""
    if path is not None and not path.is_file():
        raise ValueError(f"there is no file {path}; check the path")


def check_new_folder(path: Path, remedy: str = "choose a new folder") -> None:
    """`ValueError` for a folder with something in it, or a file."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ValueError(f"{path} exists already and is not empty; {remedy}")


def check_fuse_norms(fuse_norms: FuseNorms, server: str | None, bundle: Path | None) -> None:
    """`ValueError` unless a half is fetched that can be chosen."""
    if fuse_norms is not FuseNorms.auto and (server is None or bundle is not None):
        raise ValueError("--fuse-norms chooses what to fetch from a --server; a model is fused by 'veil compile'")


def model_choice(
    model: str | None,
    bundle: Path | None,
    server: str | None,
    name: str | None,
    fuse_norms: FuseNorms,
    device: Device,
    access: ServerAccess,
    consent: Consent,
    adapters: Sequence[str] = (),
    checked: Checked = Checked.auto,
    pad: str = "off",
) -> ModelChoice:
    """Which model answers, of those that `veil gateway` and `veil chat` can have."""
    if model is not None and (bundle is not None or server is not None):
        raise ValueError("--bundle and --server have their own model; leave out --model")
    check_fuse_norms(fuse_norms, server, bundle)
    check_model(model or "smollm2")
    terms = consent.terms(half=bundle is not None or server is not None)
    check_bundle(bundle, terms)
    from veil import Padding
    from veil.commands.choice import ModelChoice

    padding = Padding.parse(pad)

    return ModelChoice(
        model=model or "smollm2",
        bundle=bundle,
        device=device.value,
        server=None if server is None else access.address(server),
        server_bundle=name,
        fuse_norms=fuse_norms.value,
        terms=terms,
        adapters=tuple(adapters),
        checked=checked.value,
        padding=padding,
    )
