"""What a generation cost: time and bytes, for the prompt and for a generated token."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from rich.table import Table

from veil.client.stats import Stats
from veil.hybrid.model import HybridFHEModel


@dataclass(frozen=True, kw_only=True)
class Remote:
    """What using a server adds: rows that were made when they were needed, and streams that broke.

    ``rtt_s`` and ``bytes_per_s`` are the link's; of a token's seconds, ``trips_s`` are round trips and ``transfer_s`` bytes.
    """

    rows: int
    rows_ready: int
    reconnects: int
    rtt_s: float
    bytes_per_s: float
    trips_s: float
    transfer_s: float


@dataclass(frozen=True, kw_only=True)
class DraftTokens:
    """What speculation did: tokens drafted and accepted, forward passes, and rows that wrong draft tokens spent."""

    drafted: int
    accepted: int
    passes: int
    rows_for_nothing: int


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs of one generation; fields without ``load`` or ``prompt`` in their name are for one generated token.

    ``prompt_s`` runs until the first token. ``token_s`` is a token after it, with the making of one row in it whether
    that was done before or between. Online work and bytes are means over the rows after the first token. A batch, made and
    sent offline, counts in equal parts for each row that it serves.
    """

    prompt_tokens: int
    new_tokens: int
    load_s: float
    prompt_s: float
    token_s: float
    prepare_s: float
    online_s: float
    client_s: float
    up_offline_bytes: float
    down_offline_bytes: float
    up_online_bytes: float
    down_online_bytes: float
    trips: float = 0.0
    remote: Remote | None = None
    draft_tokens: DraftTokens | None = None

    def to_json(self, security_bits: float) -> dict[str, object]:
        """The fields that `veil generate --json` prints beside the text."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "security_bits": security_bits,
            "seconds": {
                "load": round(self.load_s, 4),
                "prompt": round(self.prompt_s, 4),
                "per_token": round(self.token_s, 4),
                "prepare": round(self.prepare_s, 4),
                "online": round(self.online_s, 4),
                "client": round(self.client_s, 4),
            },
            "bytes_per_token": {
                "up_offline": round(self.up_offline_bytes),
                "down_offline": round(self.down_offline_bytes),
                "up_online": round(self.up_online_bytes),
                "down_online": round(self.down_online_bytes),
            },
            "trips_per_token": round(self.trips, 3),
        } | {name: asdict(part) for name, part in (("remote", self.remote), ("draft_tokens", self.draft_tokens)) if part}

    def table(self, origin: str, mode: str, security_bits: float) -> Table:
        """The same for a person to read."""
        security = f"{security_bits:.1f} bits (MATZOV cost model)" if security_bits else "none: nothing was encrypted"
        row_s = self.prompt_s / self.prompt_tokens
        table = Table(show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        remote: list[tuple[str, str]] = []
        if self.remote:
            ready = f"{self.remote.rows_ready} of {self.remote.rows} rows found theirs made"
            remote = [("made offline", ready + (f", {self.remote.reconnects} reconnects" if self.remote.reconnects else ""))]
            remote.append(("network", self._network(self.remote)))
        if self.draft_tokens:
            remote.append(("draft tokens", _draft_tokens(self.draft_tokens)))
        for name, value in (
            ("model", origin),
            ("mode", mode),
            ("tokens", f"{self.prompt_tokens} in the prompt, {self.new_tokens} generated"),
            ("load and compile", f"{self.load_s:.1f} s"),
            ("prompt", f"{self.prompt_s:.2f} s until the first token, {row_s:.3f} s a row"),
            ("a token", f"{self.token_s:.3f} s"),
            ("  prepare, offline", f"{self.prepare_s:.3f} s"),
            ("  server, online", f"{self.online_s:.3f} s"),
            ("  client", f"{self.client_s:.3f} s"),
            *remote,
            ("bytes a token, offline", f"{self.up_offline_bytes:,.0f} up, {self.down_offline_bytes:,.0f} down"),
            ("bytes a token, online", f"{self.up_online_bytes:,.0f} up, {self.down_online_bytes:,.0f} down"),
            ("security", security),
        ):
            table.add_row(name, value)
        return table

    def _network(self, remote: Remote) -> str:
        rest = max(0.0, self.token_s - remote.trips_s - remote.transfer_s)
        link = f"{1000 * remote.rtt_s:.2f} ms, {8e-6 * remote.bytes_per_s:,.0f} Mbit/s"
        return (
            f"a token: {self.trips:.1f} trips {remote.trips_s:.3f} s, transfer {remote.transfer_s:.3f} s, "
            f"computing {rest:.3f} s ({link})"
        )


def _draft_tokens(draft_tokens: DraftTokens) -> str:
    tokens = 1 + draft_tokens.accepted / max(1, draft_tokens.passes)
    return (
        f"{draft_tokens.accepted} of {draft_tokens.drafted} accepted, {tokens:.2f} tokens a pass, "
        f"{draft_tokens.rows_for_nothing} rows spent on wrong ones"
    )


class CostMeter:
    """Measures one generation by the clock and, when it is encrypted, by the model's counters.

    With a server (``remote``) rows are made while tokens come, so a token takes what the clock says, waiting included.

    Calls: `start`, `prompt_rows_made`, `token` for each token, `costs`.
    """

    def __init__(self, hybrid: HybridFHEModel | None, *, remote: bool = False, draft_tokens: bool = False) -> None:
        self._remote = remote
        self._draft_tokens = draft_tokens
        self._link = hybrid.link if hybrid and remote else None
        self._groups = len(hybrid.manifest.forward) if hybrid else 1
        self._stats = hybrid.stats if hybrid else Stats()
        self._offline = self._online = Stats()
        self._start = self._first = self._last = 0.0
        self._tokens = 0

    def start(self) -> None:
        """Start the clock and set the counters to zero."""
        self._stats.reset()
        self._start = self._first = self._last = time.perf_counter()

    def prompt_rows_made(self) -> None:
        """Rows that are made from now on are for generated tokens."""
        self._offline = self._stats.copy()

    def token(self) -> None:
        """Count a generated token."""
        self._last = time.perf_counter()
        if self._tokens == 0:
            self._first, self._online = self._last, self._stats.copy()
        self._tokens += 1

    def costs(self, *, load_s: float, prompt_tokens: int) -> Costs:
        """The costs between `start` and the last token."""
        several = self._tokens > 1
        online = self._stats - self._online if several else self._stats
        seconds = self._last - (self._first if several else self._start) - (0.0 if self._remote else online.seconds["wait"])
        tokens = self._tokens - 1 if several else max(1, online.rows)
        rows = max(1, online.rows)
        # a rejected draft token is a row, and part of some token's cost
        share = tokens if self._draft_tokens and several else rows
        offline = self._stats - self._offline
        prepare_s = offline.seconds["prepare"] / max(1, offline.rows_made)
        return Costs(
            prompt_tokens=prompt_tokens,
            new_tokens=self._tokens,
            load_s=load_s,
            prompt_s=self._first - self._start,
            token_s=seconds / tokens + (0.0 if self._remote else prepare_s * rows / share),
            prepare_s=prepare_s * rows / share,
            online_s=online.seconds["online_server"] / share,
            client_s=online.seconds["client"] / share,
            up_offline_bytes=self._stats.bytes_up_offline / max(1, self._stats.rows_made),
            down_offline_bytes=self._stats.bytes_down_offline / max(1, self._stats.rows_made),
            up_online_bytes=online.bytes_up_online / share,
            down_online_bytes=online.bytes_down_online / share,
            trips=online.trips / share,
            remote=self._remote_part(online, share) if self._remote else None,
            draft_tokens=self._draft_tokens_part() if self._draft_tokens else None,
        )

    def _remote_part(self, online: Stats, share: int) -> Remote:
        stats, link = self._stats, self._link
        assert link is not None
        return Remote(
            rows=stats.rows,
            rows_ready=stats.rows_ready,
            reconnects=stats.reconnects,
            rtt_s=link.rtt_s,
            bytes_per_s=link.bytes_per_s,
            trips_s=online.trips * link.rtt_s / share,
            transfer_s=link.transfer_s(online.bytes_up_online + online.bytes_down_online) / share,
        )

    def _draft_tokens_part(self) -> DraftTokens:
        stats = self._stats
        return DraftTokens(
            drafted=stats.drafted,
            accepted=stats.accepted,
            passes=stats.trips // self._groups,
            rows_for_nothing=stats.drafted - stats.accepted,
        )
