"""Copies of what holds secrets: pickled, copied deeply, forked in the middle of an answer. None sends under a used pad."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from veil.client.session import OfflineRows
from veil.errors import RowReused
from veil.random import ProcessMark


@pytest.fixture
def remote(llama: Any, serve: Any) -> Any:
    with serve(llama) as server:
        made = llama.connect(server.port, offline_rows=OfflineRows(tokens=4, prompt_rows=0))
        made.reserve(rows_full=4)
        yield made
        made.close()


LEAVES: dict[str, Callable[[Any], object]] = {"pickle": pickle.dumps, "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("leave", LEAVES)
def test_nothing_that_holds_rows_is_copied_or_pickled(leave: str, remote: Any) -> None:
    session = remote.sides.remote
    held = (session.pool, session.maker, session.pass_rows, remote.sides.router)
    for part in (remote, session, *held):
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            LEAVES[leave](part)


def test_a_shallow_copy_takes_from_the_same_rows(remote: Any) -> None:
    """It is the same session by another name: a row is spent for both."""
    session, other = remote.sides.remote, copy.copy(remote.sides.remote)
    seen: list[tuple[int, int]] = []
    for one in (session, other, session):
        _, (part,) = one.pass_rows.take(0, 1, 0)
        seen.append((part.batch.number, part.first))
    assert len(set(seen)) == 3


def test_threads_never_get_the_same_row(remote: Any) -> None:
    session, lock = remote.sides.remote, threading.Lock()
    seen: list[Any] = []

    def take() -> None:
        for _ in range(20):
            _, parts = session.pass_rows.take(0, 1, 0)
            with lock:
                seen.extend((part.batch.number, part.first) for part in parts)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(seen) == len(set(seen)) == 80


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process")
@pytest.mark.parametrize("rule", [True, False])
def test_a_fork_in_the_middle_of_an_answer_sends_nothing_under_the_parents_rows(
    rule: bool, remote: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child goes on from between two layers, as a program does that forks in a callback."""
    session = remote.sides.remote
    if not rule:
        monkeypatch.setattr(ProcessMark, "here", True)
    remote.model(torch.tensor([[5, 6]]))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _, (part,) = session.pool.take(0, 1, 0)
            said = f"row {part.first} of {part.batch.number}"
        except RowReused:
            said = "refused"
        except BaseException as error:
            said = repr(error)
        os.write(write, said.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    said = os.read(read, 1000).decode()
    os.close(read)
    _, (part,) = session.pool.take(0, 1, 0)
    assert said == ("refused" if rule else f"row {part.first} of {part.batch.number}")
