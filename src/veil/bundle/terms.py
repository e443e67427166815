"""On what terms a client half is used. Whoever connects says so; a half is somebody else's data and allows nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from veil.errors import BundleError, InsecureParameters
from veil.given import flag_given, text_given
from veil.params import Params

ExpertLeak = Literal["none", "reveal"]
EXPERT_LEAKS: tuple[ExpertLeak, ...] = ("none", "reveal")
_EXPERT = re.compile(r"(^|\.)experts\.(\w*\d)(\.|$)")


def is_one_expert(layer: str) -> bool:
    """Whether a module of this name is one expert of several, which a model calls for the rows that it routes there."""
    return _EXPERT.search(layer) is not None


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a client half may be and do; the defaults allow nothing.

    ``expert_leak="reveal"`` lets a mixture ask only the experts that a row is routed to, which shows them to the server.
    ``no_cryptography`` takes parameters for tests, which protect nothing. ``digest``, if given, is the only half that is
    taken (`veil.bundle.header_file.half_digest`). `ValueError` for values that are none.
    """

    expert_leak: ExpertLeak = "none"
    no_cryptography: bool = False
    digest: str | None = None

    def __post_init__(self) -> None:
        if self.expert_leak not in EXPERT_LEAKS:
            raise ValueError(f"expert_leak is {self.expert_leak!r}, expected one of {', '.join(EXPERT_LEAKS)}")
        flag_given("no_cryptography", self.no_cryptography)
        if self.digest is not None and (
            len(text_given("digest", self.digest, "64 hexadecimal digits")) != 64
            or set(self.digest) - set("0123456789abcdef")
        ):
            raise ValueError("a digest is 64 hexadecimal digits, in lower case; 'veil pull' shows a half's")

    def check_params(self, params: Params) -> None:
        """Raise `InsecureParameters` for ones that protect nothing, unless they are allowed."""
        if params.security_bits == 0 and not self.no_cryptography:
            raise InsecureParameters(
                "this bundle has parameters for tests, which protect nothing: the server would read everything; distrust "
                "who made it, or allow it with --allow-no-cryptography (Terms(no_cryptography=True))"
            )

    def check_leaks(self, leaks: Iterable[str], layers: Iterable[str]) -> None:
        """Raise `BundleError` if what mixtures of experts leak, or remote layers by their names, was not allowed."""
        if self.expert_leak == "none" and (set(leaks) - {"none"} or any(map(is_one_expert, layers))):
            raise BundleError(
                "this client half would show the server which experts each token goes to, which says much about the text; "
                "distrust who made it, or allow it with --expert-leak reveal (Terms(expert_leak='reveal'))"
            )

    def check_digest(self, found: str) -> None:
        """Raise `BundleError` for another half than the one that was asked for."""
        if self.digest is not None and found != self.digest:
            raise BundleError(
                f"the client half has the digest {found}, and {self.digest} was asked for; distrust who offers it, or ask "
                "for the other with --digest"
            )


STRICT = Terms()
"""What a half gets that was not allowed anything."""
