"""One answer after another from one model, token by token in turns, each with an account of what it cost."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import GenerationConfig, StoppingCriteria

from veil.client.stats import Stats
from veil.errors import NotFiniteActivation
from veil.gateway.fair_queue import TurnLock
from veil.gateway.prefix import PrefixStore
from veil.gateway.sampling import Matcher, Sampler, Sampling
from veil.gateway.served import ServedModel
from veil.gateway.transcript import Piece, Transcript

_PREFIX_BYTES = 512 << 20
_GOING_TOKENS = 4
"""Tokens of a turn that is gone on with, which say how its next one is written."""


class Cancelled(Exception):
    """Nobody waits for the answer any more."""


@dataclass
class Account:
    """What a request cost so far: prompt tokens and those not sent again, new tokens, the model's counters, moments."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    stats: Stats = field(default_factory=Stats)
    asked: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0

    def token(self) -> None:
        """Count a token of the answer."""
        self.last_token = time.perf_counter()
        self.first_token = self.first_token or self.last_token
        self.new_tokens += 1


@dataclass(frozen=True)
class End:
    """Why an answer is over; ``text`` is the stop string that ended it, if one did."""

    reason: Literal["stop", "length", "tool_calls"]
    text: str | None = None


Emit = Callable[[Piece], None]


class Generator:
    """Generates with one `ServedModel`; callers in several threads take turns, a token each, in the order they ask.

    What is remembered of conversations is apart for each of ``callers`` owners of keys, who share the memory evenly. With
    padding an answer is padded to its end before the next begins, and prompts are sent whole, unless all of them are one
    ``conversation``: how far one repeats an earlier one would show.
    """

    def __init__(self, served: ServedModel, callers: int = 1, *, conversation: bool = False) -> None:
        self.served = served
        self._conversation = conversation
        self.totals = Stats()
        self.counted = {"prompt": 0, "cached": 0, "new": 0}
        """Tokens of prompts, those of them that were not sent again, and tokens that were made."""
        self._lock = TurnLock()
        self._turn: _Turn | None = None
        self._prefixes = PrefixStore(_PREFIX_BYTES // max(1, callers))
        self._prefixes.disk = served.kept

    def answer(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        branch: int,
        account: Account,
        cancelled: threading.Event,
        emit: Emit,
        owner: str = "",
        over: Callable[[End], object] = lambda end: None,
    ) -> End:
        """Continue ``ids`` until a stop, telling ``emit`` of every piece of text. `Cancelled`, and veil's errors.

        ``branch`` numbers the answers of one request; the prompt is counted with the first. ``over`` is told of the end, and
        with padding before this function returns.
        """
        served, adapter = self.served, sampling.adapter
        turn = _Turn(self, account, cancelled, adapter)
        room = min(sampling.max_tokens, served.room(len(ids)))
        matcher = sampling.grammar.matcher() if sampling.grammar else None
        with turn:
            kept = not served.two_sided and (served.hybrid.padding is None or self._conversation)
            known, cache = self._prefixes.take(ids, owner, adapter) if kept else (0, None)
            if branch == 0:
                account.prompt_tokens += len(ids)
                account.cached_tokens += known
                self.counted["prompt"] += len(ids)
                self.counted["cached"] += known
            served.hybrid.expect(prompt_rows=len(ids) - known, new_tokens=room)
            sampler = Sampler(sampling, served.ends, branch, matcher)
            before = ids[-_GOING_TOKENS:] if sampling.going else ()
            transcript = Transcript(served.tokenizer, sampling.stop, served.token_bytes, sampling.written, before)
            watch = _Watch(transcript, sampler, served.ends | sampling.stop_tokens, matcher, sampling.min_tokens, turn, emit)
            if served.hybrid.padding is not None:  # whoever waits is told at once, and the rest is for the server
                watch.most, watch.over = room, over
            config = GenerationConfig(
                do_sample=False,
                max_new_tokens=room,
                eos_token_id=sorted(served.ends) or None,
                pad_token_id=min(served.ends, default=0),
                return_dict_in_generate=True,
            )
            prompt = torch.tensor([list(ids)])
            output: Any = served.net.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=config,
                logits_processor=[sampler],
                stopping_criteria=[watch],
                **({} if cache is None else {_cache_name(served.net): cache}),
            )
            if kept:
                self._prefixes.keep(output.sequences[0].tolist(), output.get(_cache_name(served.net)), owner, adapter)
        end = watch.finish()
        if served.hybrid.padding is None:
            over(end)
        return end

    def embed(self, ids: Sequence[int], account: Account, cancelled: threading.Event) -> list[float]:
        """The mean of the last hidden states over the tokens, scaled to length one."""
        with _Turn(self, account, cancelled):
            account.prompt_tokens += len(ids)
            inputs = torch.tensor([list(ids)])
            options = _states_of(self.served)
            output: Any = self.served.net(input_ids=inputs, attention_mask=torch.ones_like(inputs), **options)
            states = output.last_hidden_state if self.served.kind == "encoder" else output.hidden_states[-1]
            mean = states[0].float().mean(0)
            account.token()
        if not torch.isfinite(mean).all():
            raise NotFiniteActivation("the model's vector has NaN or infinity in it; nothing is answered")
        vector: list[float] = torch.nn.functional.normalize(mean, dim=0).tolist()
        return vector

    def check(self) -> None:
        """`Cancelled` if nobody waits for the answer whose turn it is.

        It is asked before every remote layer, also in parts that a model calls outside its ``forward`` (an encoder): so it
        is one function for every answer, which cannot be left over from the one before.
        """
        if self._turn is not None and self._turn.cancelled.is_set():
            raise Cancelled

    def forget(self) -> None:
        """Forget past conversations' attention states."""
        self._prefixes.clear()


class _Turn:
    """The right to use the model, handed on between tokens, and the counters of the time when it was held."""

    def __init__(
        self, generator: Generator, account: Account, cancelled: threading.Event, adapter: str | None = None
    ) -> None:
        self._generator = generator
        self._adapter = adapter
        self._lock = generator._lock
        self._hybrid = generator.served.hybrid
        self.account = account
        self.cancelled = cancelled
        self._before = Stats()

    def __enter__(self) -> _Turn:
        self._lock.acquire()
        self._begin()
        self.account.started = self.account.started or time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._lock.release()

    def offer(self) -> None:
        """Bring the account up to date, and let the next one go first if someone waits and no length is to be hidden."""
        self._end()
        if self._lock.wanted and self._hybrid.padding is None:
            self._lock.release()
            self._lock.acquire()
        self._begin()

    def settle(self) -> None:
        """Bring the account up to date."""
        self._end()
        self._begin()

    def check(self) -> None:
        """`Cancelled` if nobody waits for the answer."""
        self._generator.check()

    def count(self, kind: str, tokens: int) -> None:
        """Add tokens to what was made in all."""
        self._generator.counted[kind] += tokens

    def _begin(self) -> None:
        self._before = self._hybrid.stats.copy()
        self._generator._turn = self
        self._generator.served.adapt(self._adapter)
        self._hybrid.cancel_check = self._generator.check

    def _end(self) -> None:
        self._generator._turn = None
        spent = self._hybrid.stats - self._before
        self.account.stats = self.account.stats + spent
        self._generator.totals = self._generator.totals + spent


class _Watch(StoppingCriteria):  # type: ignore[misc]
    """The stopping criterion of one generation, asked after each token: tokens in, text out, and whether it is over."""

    def __init__(
        self,
        transcript: Transcript,
        sampler: Sampler,
        ends: frozenset[int],
        matcher: Matcher | None,
        min_tokens: int,
        turn: _Turn,
        emit: Emit,
    ) -> None:
        self._transcript = transcript
        self._sampler = sampler
        self._ends = ends
        self._matcher = matcher
        self._min_tokens = min_tokens
        self._before = turn.account.new_tokens
        self._turn = turn
        self._emit = emit
        self._end: End | None = None
        self.ended = False
        self.most = 0
        self.over: Callable[[End], object] | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Take the last token of input_ids [1, tokens]; whether to stop, as ``generate`` asks for it."""
        if not self.ended:
            self._take(int(input_ids[0, -1]))
        return torch.full((input_ids.shape[0],), self.ended, dtype=torch.bool)

    def _take(self, token: int) -> None:
        self._turn.account.token()
        self._turn.count("new", 1)
        if token in self._ends:
            self.ended = True
            self._transcript.close(token)
            self.finish()
            return
        may_stop = self._turn.account.new_tokens - self._before >= self._min_tokens
        self._show(self._transcript.add(token, self._sampler.last, may_stop=may_stop))
        self.ended = self._transcript.stopped or (self._matcher is not None and self._matcher.over)
        if self.ended or self._turn.account.new_tokens - self._before == self.most:
            self.finish()
        else:
            self._turn.check()
            self._turn.offer()

    def finish(self) -> End:
        """Show what was held back, and say why the answer is over; once."""
        if self._end is None:
            self._show(self._transcript.end())
            self._end = End("stop" if self.ended else "length", self._transcript.stopped_by)
            if self.over is not None:
                self._turn.settle()
                self.over(self._end)
        return self._end

    def _show(self, piece: Piece) -> None:
        if piece.text or piece.tokens:
            self._emit(piece)


def _states_of(served: ServedModel) -> dict[str, Any]:
    """What a text model has to be told to give its states, and of its logits as few as it can."""
    if served.kind == "encoder":
        return {}
    takes = inspect.signature(served.net.forward).parameters
    return {"output_hidden_states": True, "use_cache": False} | ({"logits_to_keep": 1} if "logits_to_keep" in takes else {})


def _cache_name(net: Any) -> str:
    """What ``generate`` calls the attention state: it was renamed within transformers 5. A PEFT wrapper does not say."""
    base = net.get_base_model() if hasattr(net, "get_base_model") else net
    return "cache" if "cache" in inspect.signature(base.forward).parameters else "past_key_values"
