"""A malicious server that spoils answers, over the loopback interface: caught in the first row; each works unchecked."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from veil.bundle.header_file import half_digest
from veil.bundle.terms import Terms
from veil.checks.files import Vectors, path_of, save_vectors
from veil.checks.rows import BOUND
from veil.checks.vectors import make_vectors
from veil.checks.words import answers_words
from veil.client.caught import CaughtServers
from veil.commands import check
from veil.errors import BundleError, Unchecked, WrongAnswer
from veil.gateway.app import Gateway, Settings
from veil.gateway.failures import from_error
from veil.gateway.models import Models
from veil.gateway.served import ServedModel
from veil.random import SecretRng
from veil.server.engine import Engine

HEAD_TOKEN = 42
WEAK = Terms(no_cryptography=True)


@pytest.fixture
def checked(llama: Any) -> Any:
    """The tiny Llama, with vectors of its half in this test's data folder."""
    model, rng = llama.engine.model, SecretRng()
    made = [make_vectors(group, own, rng) for group, own in zip(model.manifest.groups, model.weights, strict=True)]
    save_vectors(half_digest(llama.path / "client"), Vectors("the public checkpoint", made))
    return llama


class Cheat:
    """Stands in the place of `Engine.product` and changes replies, as words [R, slots] of the wire's bits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.change: Callable[[Engine, int, Any], Any] = lambda engine, group, words: words
        self.weights: Callable[[int], Any] | None = None
        self.answered = 0
        product = Engine.product

        def cheating(engine: Engine, claims: Any, **options: Any) -> Any:
            honest = engine.weights
            if self.weights is not None:
                engine.weights = [self.weights(group) for group in range(len(honest))]
            try:
                return self._changed(engine, claims[0], product(engine, claims, **options))
            finally:
                engine.weights = honest

        monkeypatch.setattr(Engine, "product", cheating)

    def _changed(self, engine: Engine, claim: Any, reply: Any) -> Any:
        self.answered += 1
        bits = engine.model.manifest.groups[claim.group].result_bits
        words = engine.kernels.unpack(np.ascontiguousarray(reply), claim.slots, bits).copy()
        return engine.kernels.pack(self.change(engine, claim.group, words) & np.uint32((1 << bits) - 1), bits)


@pytest.fixture
def cheat(monkeypatch: pytest.MonkeyPatch) -> Cheat:
    return Cheat(monkeypatch)


def at_top(engine: Engine, group: int, size: float) -> np.uint32:
    """A change of a result in the bits that the wire has."""
    return np.uint32(round(size) >> (32 - engine.model.manifest.groups[group].result_bits))


def one_slot(cheat: Cheat, bundle: Any, checks: Any) -> None:
    """Twice the bound: what no honest noise hides."""
    size = 2 * BOUND / float(checks.vectors[2][bundle.engine.model.manifest.groups[2].rows].inverse.min())

    def change(engine: Engine, group: int, words: Any) -> Any:
        words[:, 3] += at_top(engine, 2, size) if group == 2 else np.uint32(0)
        return words

    cheat.change = change


def another_layer(cheat: Cheat, bundle: Any, checks: Any) -> None:
    """The second layer's attention output in the place of the first's."""
    weights = list(bundle.engine.weights)
    weights[1] = weights[5]
    cheat.weights = lambda group: weights[group]


def swapped(cheat: Cheat, bundle: Any, checks: Any) -> None:
    weights = list(bundle.engine.weights)
    weights[2], weights[6] = weights[6], weights[2]
    cheat.weights = lambda group: weights[group]


def replayed(cheat: Cheat, bundle: Any, checks: Any) -> None:
    """The first reply for a group, again and again."""
    kept: dict[tuple[int, int], Any] = {}
    cheat.change = lambda engine, group, words: kept.setdefault((group, len(words)), words)


def four_bits(cheat: Cheat, bundle: Any, checks: Any) -> None:
    coarse = [(np.rint(own.astype(np.float64) / 16) * 16).clip(-127, 127).astype(np.int8) for own in bundle.engine.weights]
    cheat.weights = lambda group: coarse[group]


def steered(cheat: Cheat, bundle: Any, checks: Any) -> None:
    """One token's logit is raised in every row."""

    def change(engine: Engine, group: int, words: Any) -> Any:
        if engine.model.manifest.groups[group].segment == "head":
            words[:, HEAD_TOKEN] += at_top(engine, group, 0.4 * 2**31)
        return words

    cheat.change = change


ATTACKS = {
    "one slot by twice the bound": one_slot,
    "another layer": another_layer,
    "an old reply": replayed,
    "weights of 4 bits": four_bits,
    "two groups swapped": swapped,
    "a steered head": steered,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_cheating_server_is_caught(
    name: str, checked: Any, serve: Any, generated: Any, cheat: Cheat, expected: list[int]
) -> None:
    """One error, no word of the spoiled answer, not retried; and then the server is not asked again."""
    with serve(checked) as server:
        honest = checked.connect(server.port, checked="require")
        assert generated(honest) == expected and honest.checked_against == "the public checkpoint"
        remote = checked.connect(server.port, checked="require")
        ATTACKS[name](cheat, checked, remote.sides.remote.checks)
        before = cheat.answered
        with pytest.raises(WrongAnswer, match="are not those of the public checkpoint"):
            generated(remote, 12)
        asked = cheat.answered
        with pytest.raises(WrongAnswer):
            generated(remote)
        assert cheat.answered == asked, "nothing more was sent"
        passes = 2 if name == "an old reply" else 1
        assert asked - before <= passes * len(checked.engine.model.manifest.groups) + passes
        honest.close()
        remote.close()
        with pytest.raises(WrongAnswer, match=rf"veil check --forgive 127.0.0.1:{server.port}"):
            checked.connect(server.port)


@pytest.mark.parametrize("name", ATTACKS)
def test_without_the_checks_it_spoils_the_answer_unseen(
    name: str, checked: Any, serve: Any, generated: Any, cheat: Cheat, expected: list[int]
) -> None:
    with serve(checked) as server:
        remote = checked.connect(server.port, checked="require")
        checks = remote.sides.remote.checks
        remote.close()
        remote = checked.connect(server.port, checked="off")
        assert remote.checked_against is None
        ATTACKS[name](cheat, checked, checks)
        spoiled = generated(remote, 6)
        assert len(spoiled) >= 1
        if name == "a steered head":
            assert spoiled == [HEAD_TOKEN] * 6
        elif name != "one slot by twice the bound":  # which moves a tiny model's text by luck alone
            assert spoiled != expected
        remote.close()


def test_what_was_caught_is_forgiven_by_name(checked: Any, serve: Any, generated: Any, cheat: Cheat) -> None:
    with serve(checked) as server:
        steered(cheat, checked, None)
        remote = checked.connect(server.port)
        with pytest.raises(WrongAnswer):
            generated(remote)
        remote.close()
        address = f"127.0.0.1:{server.port}"
        check.forgive(address, as_json=False)
        with pytest.raises(ValueError, match="not among the servers"):
            check.forgive(address, as_json=False)
        CaughtServers().check(address)


def test_unchecked_answers_are_refused_where_checks_are_required(llama: Any, serve: Any, generated: Any) -> None:
    with serve(llama) as server:
        with pytest.raises(Unchecked, match="veil check MODEL --half"):
            llama.connect(server.port, checked="require")
        remote = llama.connect(server.port)
        assert remote.checked_against is None
        remote.close()


def test_vectors_that_others_may_read_are_refused(checked: Any, serve: Any) -> None:
    path_of(half_digest(checked.path / "client")).chmod(0o644)
    with serve(checked) as server, pytest.raises(BundleError, match="may be read by others"):
        checked.connect(server.port)


def test_vectors_are_in_no_half_that_is_offered(checked: Any) -> None:
    """Neither in the folder that is copied nor among the files that a server offers."""
    path = path_of(half_digest(checked.path / "client"))
    assert path.stat().st_mode & 0o077 == 0 and path.parent.stat().st_mode & 0o077 == 0
    assert not [file for file in checked.path.rglob("*") if "check" in file.name]


# From the command line ------------------------------------------------------------------------------------------------


def test_a_half_is_checked_by_command_and_its_answers_from_then_on(
    llama: Any, llama_folder: Any, serve: Any, generated: Any, expected: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    check.run(str(llama_folder), llama.path, terms=WEAK, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["model"] == llama_folder.name and said["bits"] == 8 and said["residuals"] > 100
    assert path_of(said["digest"]).stat().st_size == said["vector_bytes"]
    with serve(llama) as server:
        remote = llama.connect(server.port, checked="require")
        assert generated(remote) == expected
        served = ServedModel("llama", remote, remote.tokenizer, "there")
        status = Gateway(Models([served]), Settings()).status()
        assert status.checked == llama_folder.name
        remote.close()
        remote = llama.connect(server.port, checked="off")
        assert (
            Gateway(Models([ServedModel("llama", remote, remote.tokenizer, "there")]), Settings()).status().checked is None
        )
        remote.close()


def test_a_wrong_answer_is_an_error_of_the_gateway_and_says_so() -> None:
    error = from_error(WrongAnswer("the server's answers are not those of the model"))
    assert (error.status, error.code) == (502, "wrong_answer") and "not those" in error.message


@pytest.mark.parametrize(
    ("mode", "against", "words"),
    [("remote", "m", "checked against m"), ("remote", None, "unchecked"), ("execute", None, "computed in this process")],
)
def test_words(mode: str, against: str | None, words: str) -> None:
    assert answers_words(mode, against).startswith(words)
