"""Options that several commands have, and what they make together."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from veil.client.connection import Address
    from veil.commands.served import ModelChoice
    from veil.model.terms import Terms


class Device(str, Enum):
    """Where veil computes."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class FoldNorms(str, Enum):
    """Whether layers on both sides of a norm share a round trip."""

    auto = "auto"
    on = "on"
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

# A server elsewhere ---------------------------------------------------------------------------------------------------

Server = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", help="Use the server there, with --bundle's client half or the one that the server offers."
    ),
]
ServerBundle = Annotated[str | None, typer.Option(help="Which of the server's bundles.", show_default="the fitting one")]
WhichFold = Annotated[
    FoldNorms,
    typer.Option(
        help="Which of a server's bundles of one model to fetch: `on` the one with folded norms (half the round trips), "
        "`off` the other, `auto` what the distance to the server makes faster."
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
    typer.Option("--allow-no-tls", help="Reach a server on another machine without TLS: the network is yours alone."),
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
        help="Take only the client half with this digest, as `veil pull` shows it; also takes one that a server you know "
        "offers in place of another.",
        show_default="any from a new server, the same from a known one",
    ),
]


Pad = Annotated[
    str,
    typer.Option(
        "--pad",
        metavar="off|STEP|powers[,whole]",
        help="Hide lengths in steps: prompts take rows in multiples of STEP (64, say) or powers of two, and answers go on, "
        "unseen, to a multiple of tokens, or with `,whole` to the most they may have. Also where they fail or you go away.",
    ),
]


def address(server: str, token: str | None, tls: bool, tls_ca: Path | None, allow_no_tls: bool) -> Address:
    """Where a server is and how it is reached; `ValueError` for options that do not fit."""
    from veil.client.connection import Address

    return Address(target=server, token=token, tls=tls_ca or tls, allow_no_tls=allow_no_tls)


def terms(expert_leak: ExpertLeak, no_cryptography: bool, digest: str | None, *, half: bool = True) -> Terms:
    """On what terms a client half is used; `ValueError` where there is no ``half``, or for what is no digest."""
    from veil.model.terms import Terms

    made = Terms(expert_leak=expert_leak.value, no_cryptography=no_cryptography, digest=digest)
    if made != Terms() and not half:
        raise ValueError("--digest, --expert-leak and --allow-no-cryptography are about a --bundle or a --server's")
    return made


def check_fold_norms(fold_norms: FoldNorms, server: str | None, bundle: Path | None) -> None:
    """`ValueError` unless a half is fetched that can be chosen."""
    if fold_norms is not FoldNorms.auto and (server is None or bundle is not None):
        raise ValueError("--fold-norms chooses what to fetch from a --server; a model is folded by 'veil compile'")


def model_choice(
    model: str | None,
    bundle: Path | None,
    server: str | None,
    name: str | None,
    fold_norms: FoldNorms,
    device: Device,
    access: tuple[str | None, bool, Path | None, bool],
    consent: tuple[ExpertLeak, bool, str | None],
    pad: str = "off",
) -> ModelChoice:
    """Which model answers, of those that `veil gateway` and `veil chat` can have."""
    if model is not None and (bundle is not None or server is not None):
        raise ValueError("--bundle and --server have their own model; leave out --model")
    check_fold_norms(fold_norms, server, bundle)
    from veil.commands.served import ModelChoice
    from veil.model.padding import Padding

    return ModelChoice(
        model=model or "smollm2",
        bundle=bundle,
        device=device.value,
        server=None if server is None else address(server, *access),
        server_bundle=name,
        fold_norms=fold_norms.value,
        terms=terms(*consent, half=bundle is not None or server is not None),
        padding=Padding.parse(pad),
    )
