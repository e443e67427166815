"""A hybrid model to and from a bundle: on disk, or a client half whose other half a server has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from veil.bundle.terms import STRICT, Terms
from veil.client.session import OfflineRows
from veil.given import path_given
from veil.hybrid.arguments import check_connecting, checked_hints
from veil.hybrid.modes import Modes
from veil.hybrid.reopening import check_reopens
from veil.kernels.backend import kernels_for
from veil.network.timeouts import Timeouts
from veil.progress import Progress

if TYPE_CHECKING:
    from typing_extensions import Self

    from veil.runtime.saved_model import Opened
    from veil.typing import Processor, Tokenizer


class Bundles(Modes):
    """The part of `HybridFHEModel` that writes and opens bundles."""

    @classmethod
    def connect(
        cls,
        server: str,
        bundle: str | Path,
        *,
        token: str | None = None,
        tls: bool | str | Path = False,
        name: str | None = None,
        allow_no_tls: bool = False,
        terms: Terms = STRICT,
        offline_rows: OfflineRows | None = None,
        timeouts: Timeouts | None = None,
        device: str | torch.device = "cpu",
        checked: str = "auto",
    ) -> Self:
        """The model of a bundle's client half in mode ``remote``: its remote layers run on the server at ``HOST:PORT``.

        ``tls`` is True for a certificate that the system trusts, or the PEM file of the authority that signed it;
        without TLS the server is on this machine, unless ``allow_no_tls``. ``name`` chooses among the server's bundles.
        ``terms`` say what the half may be and do beyond the defaults, which allow no leak and no weak parameters.
        Rows are made ready in the background as far as ``offline_rows`` says. A half without the public tables fetches them
        from a server that offers them, once. Every answer is checked where ``veil check`` made vectors for the half: always
        with ``checked`` ``require``, if there are some with ``auto``, never with ``off``. Raises `ServerUnreachable`,
        `AccessDenied`, `IncompatibleServer`, `BundleError`, `Unchecked`, and `WrongAnswer` for a server that was caught.
        """
        from veil.client.connection import Address
        from veil.hybrid.connecting import open_remote, opened_half

        check_connecting(bundle, name, terms, offline_rows, timeouts)
        trust = tls if isinstance(tls, bool) else path_given("tls", tls)
        address = Address(target=server, token=token, tls=trust, allow_no_tls=allow_no_tls)
        timeouts = timeouts or Timeouts()
        folder, opened = opened_half(bundle, address, timeouts, terms)
        hybrid = cls._opened(opened, terms.expert_leak, kernels_for(device))
        hybrid._address, hybrid.offline_rows = address, offline_rows or OfflineRows()
        hybrid.sides.offline_rows = hybrid.offline_rows
        open_remote(hybrid.sides, folder, opened, address, name, timeouts, checked)
        hybrid.set_fhe_mode("remote")
        return hybrid

    def save(self, path: str | Path, tokenizer: Tokenizer | Processor | None = None) -> None:
        """Write the bundle: ``client/`` and ``server/`` under ``path`` (a new or empty folder).

        What was written is opened and tried. Raises `BundleError` for a model that would not be the same from disk.
        """
        from veil.runtime import saved_model

        sides, folder = self.sides, path_given("path", path)
        if tokenizer is not None and not callable(getattr(tokenizer, "save_pretrained", None)):
            raise TypeError(f"tokenizer is a {type(tokenizer).__name__}, expected a tokenizer or processor of transformers")
        sides.hints = checked_hints(self.hints)
        self._calls.check_weights()
        sides.need_engine()
        saved_model.save(folder, sides.compiled, sides.tables, self.model, tokenizer or self.tokenizer)
        try:
            check_reopens(self, folder / "client", self._sample)
        except BaseException:
            saved_model.remove(folder)
            raise

    def reopened(self, opened: Opened) -> Self:
        """A client half that was read from disk, with this model's weights for it, to compare the two."""
        sides = self.sides
        compiled = replace(opened.compiled, weights=sides.compiled.weights)
        moved = replace(opened, model=opened.model.to(next(self.model.parameters()).device), compiled=compiled)
        hybrid = self._opened(moved, "none", sides.server_kernels)
        hybrid.sides.share_weights(sides)
        return hybrid

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "auto",
        progress: Progress | None = None,
        terms: Terms = STRICT,
    ) -> Self:
        """Open a bundle that `save` wrote: the model in mode ``disable``, its tokenizer as ``tokenizer`` if there is one.

        ``terms`` are those of `connect`.
        """
        from veil.runtime import saved_model

        check_connecting(path, terms=terms)
        opened = saved_model.load(Path(path), terms)
        hybrid = cls._opened(opened, terms.expert_leak, kernels_for(device), progress)
        hybrid.sides.tables = opened.tables
        hybrid.set_fhe_mode("disable")
        return hybrid

    def _forget_weights(self) -> None:
        self.sides.forget_weights()
        self._calls.unwatch_weights()
