"""One answer after another from one model, token by token in turns, each with an account of what it cost."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import DynamicCache, GenerationConfig

from veil.client.stats import Stats
from veil.errors import NotFiniteActivation
from veil.flag import Flag
from veil.gateway.account import Account, Cancelled, Emit, End
from veil.gateway.fair_queue import TurnLock
from veil.gateway.pictures import PicturePrompt
from veil.gateway.prefix import PrefixStore
from veil.gateway.sampling import Sampler, Sampling
from veil.gateway.served import ServedModel
from veil.gateway.transcript import Transcript
from veil.gateway.watch import Watch

_PREFIX_BYTES = 512 << 20
_PIECE_TOKENS = 64
"""Tokens of a prompt's beginning that are computed at once, so that an answer to somebody else comes in between."""

_GOING_TOKENS = 4
"""Tokens of a turn that is gone on with, which say how its next one is written."""


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
        self._turn: ModelTurn | None = None
        self._prefixes = PrefixStore(_PREFIX_BYTES // max(1, callers))
        self._prefixes.disk = served.kept

    def answer(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        branch: int,
        account: Account,
        cancelled: Flag,
        emit: Emit,
        owner: str = "",
        over: Callable[[End], object] = lambda end: None,
    ) -> End:
        """Continue ``ids`` until a stop, telling ``emit`` of every piece of text. `Cancelled`, and veil's errors.

        ``branch`` numbers the answers of one request; the prompt is counted with the first. ``over`` is told of the end, and
        with padding before this function returns.
        """
        served, adapter = self.served, sampling.adapter
        turn = ModelTurn(self, account, cancelled, adapter)
        room = min(sampling.max_tokens, served.room(len(ids)))
        matcher = sampling.grammar.matcher() if sampling.grammar else None
        with turn:
            padding = served.hybrid.padding
            kept = not served.sent_whole and (padding is None or self._conversation)
            pictured = ids if isinstance(ids, PicturePrompt) else None
            kind = adapter if pictured is None else f"{adapter or ''}#{pictured.mark}"
            known, cache = self._prefixes.take(ids, owner, kind) if kept else (0, None)
            if padding is not None and not self._conversation:
                known, cache = self._prefixes.take_steps(ids, padding.step, owner, kind)
                self._prefixes.forget(owner)  # what was typed serves the message that it became
            if pictured is not None and known < pictured.settled:  # pictures go in whole or are in the state
                known, cache = 0, None
            if branch == 0:
                account.prompt_tokens += len(ids)
                account.cached_tokens += known
                self.counted["prompt"] += len(ids)
                self.counted["cached"] += known
            served.hybrid.expect(prompt_rows=len(ids) - known, new_tokens=room)
            sampler = Sampler(sampling, served.ends, branch, matcher)
            before = ids[-_GOING_TOKENS:] if sampling.going else ()
            transcript = Transcript(served.tokenizer, sampling.stop, served.token_bytes, sampling.written, before)
            watch = Watch(transcript, sampler, served.ends | sampling.stop_tokens, matcher, sampling.min_tokens, turn, emit)
            if padding is not None:  # whoever waits is told at once, and the rest is for the server
                watch.most, watch.over = room, over
            config = GenerationConfig(
                do_sample=False,
                max_new_tokens=room,
                eos_token_id=sorted(served.ends) or None,
                pad_token_id=min(served.ends, default=0),
                return_dict_in_generate=True,
            )
            prompt = torch.tensor([list(ids)])
            output = served.net.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=config,
                logits_processor=[sampler],
                stopping_criteria=[watch],
                **(pictured.inputs if pictured is not None and cache is None else {}),
                **({} if cache is None else {_cache_name(served.net): cache}),
            )
            if kept:
                self._prefixes.keep(output.sequences[0].tolist(), output.get(_cache_name(served.net)), owner, kind)
        end = watch.finish()
        if padding is None:
            over(end)
        return end

    def begin(
        self, ids: Sequence[int], account: Account, cancelled: Flag, owner: str = "", adapter: str | None = None
    ) -> int:
        """Compute the state of a prompt's beginning and remember it; how many of its tokens went up. `Cancelled`.

        What is done before a cancellation is remembered too. With padding whole steps go up, until the prompt is answered.
        """
        served = self.served
        with ModelTurn(self, account, cancelled, adapter) as turn:
            step = 1 if served.hybrid.padding is None else served.hybrid.padding.step
            ids, pieces = ids[: len(ids) // step * step], max(1, _PIECE_TOKENS // step) * step
            known, cache = self._prefixes.take_steps([*ids, -1], step, owner, adapter)
            state: object = cache or DynamicCache()
            for start in range(known, len(ids), pieces):
                piece = torch.tensor([list(ids[start : start + pieces])])
                served.hybrid.expect(prompt_rows=piece.shape[1], new_tokens=0)
                options = {_cache_name(served.net): state, "use_cache": True} | _last_logits(served.net)
                state = served.net(input_ids=piece, **options)[_cache_name(served.net)]
                self._prefixes.keep(ids[: start + piece.shape[1]], state, owner, adapter, lasting=False)
                turn.check()
                turn.offer()
        return len(ids) - known

    def embed(self, ids: Sequence[int], account: Account, cancelled: Flag) -> list[float]:
        """The mean of the last hidden states over the tokens, scaled to length one."""
        with ModelTurn(self, account, cancelled):
            account.prompt_tokens += len(ids)
            inputs = torch.tensor([list(ids)])
            options = _states_of(self.served)
            output = self.served.net(input_ids=inputs, attention_mask=torch.ones_like(inputs), **options)
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


class ModelTurn:
    """The right to use the model, handed on between tokens, and the counters of the time when it was held."""

    def __init__(self, generator: Generator, account: Account, cancelled: Flag, adapter: str | None = None) -> None:
        self._generator = generator
        self._adapter = adapter
        self._lock = generator._lock
        self._hybrid = generator.served.hybrid
        self.account = account
        self.cancelled = cancelled
        self._before = Stats()

    def __enter__(self) -> ModelTurn:
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


def _states_of(served: ServedModel) -> dict[str, object]:
    """What a text model has to be told to give its states, and of its logits as few as it can."""
    if served.kind == "encoder":
        return {}
    return {"output_hidden_states": True, "use_cache": False, **_last_logits(served.net)}


def _last_logits(net: nn.Module) -> dict[str, int]:
    """What a model has to be told to make the last token's logits only, where it can be told."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(net.forward).parameters else {}


def _cache_name(net: nn.Module) -> str:
    """What ``generate`` calls the attention state: it was renamed within transformers 5. A PEFT wrapper does not say."""
    base: nn.Module = getattr(net, "get_base_model", lambda: net)()
    return "cache" if "cache" in inspect.signature(base.forward).parameters else "past_key_values"
