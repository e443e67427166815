"""The running test goes on over sessions with the same server: a server whose clients come and go is caught as well."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from veil.checks import lifetime
from veil.checks.files import path_of
from veil.errors import WrongAnswer

HALF, PLACE = "ab" * 32, "host:8471"


@pytest.fixture(autouse=True)
def vectors_there() -> None:
    path_of(HALF).parent.mkdir(parents=True)
    path_of(HALF).write_bytes(b"the vectors")


def spoiled(own: Any, count: int) -> tuple[Any, Any]:
    x = own.rows(count)
    results = own.results(x)
    results[:, 5] += np.uint32(round(0.05 * own.rms))
    return x, results


def rows_until_caught(own: Any, most: int, a_session: int, servers: list[str], keep: bool = True) -> int:
    """Rows until the checks stop, in sessions of so many with these servers by turns; ``most + 1`` where they do not."""
    vectors, (x, results) = own.vectors(), spoiled(own, most)
    for first in range(0, most, a_session):
        checks = own.checks(vectors)
        if keep:
            checks.keep(HALF, servers[first // a_session % len(servers)])
        for row in range(first, min(most, first + a_session)):
            try:
                own.check(checks, x[row : row + 1], results[row : row + 1])
            except WrongAnswer:
                return row + 1
        checks.close()
    return most + 1


def test_a_small_change_is_caught_over_short_sessions(other_shape: Any) -> None:
    own = other_shape(768)  # of a seed of its own: three rows may be enough by chance
    assert rows_until_caught(own, 60, 3, [PLACE]) <= 60
    assert rows_until_caught(own, 60, 3, [PLACE], keep=False) == 61, "the attack works without the rule"


def test_servers_do_not_answer_for_each_other(other_shape: Any) -> None:
    assert rows_until_caught(other_shape(768), 12, 3, [f"{host}:1" for host in "abcd"]) == 13


def test_what_was_written_belongs_to_one_set_of_vectors(simulated: Any) -> None:
    checks = simulated.checks()
    checks.keep(HALF, PLACE)
    x = simulated.rows(3)
    simulated.check(checks, x, simulated.results(x))
    checks.close()
    again, damaged = simulated.checks(), simulated.checks()
    again.keep(HALF, PLACE)
    assert np.array_equal(again.running.sums, checks.running.sums) and again.running.sums.any()
    (file,) = path_of(HALF).parent.glob("*.running")
    assert file.stat().st_mode & 0o077 == 0
    file.write_bytes(file.read_bytes()[:-9])
    damaged.keep(HALF, PLACE)
    assert not damaged.running.sums.any()
    checks.close()
    path_of(HALF).write_bytes(b"others")
    other = simulated.checks()
    other.keep(HALF, PLACE)
    assert not other.running.sums.any()


def test_two_clients_at_once_keep_the_mean(simulated: Any) -> None:
    first, second = simulated.checks(), simulated.checks()
    for checks, size in ((first, 1.0), (second, 3.0)):
        checks.keep(HALF, PLACE)
        checks.running.sums[:] = size
    first.close()
    second.close()
    assert np.all(second.running.sums == 2.0)


def test_a_killed_client_forgets_few_passes(simulated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifetime, "EVERY", 4)
    checks = simulated.checks()
    checks.keep(HALF, PLACE)
    for place, row in enumerate(simulated.rows(6), 1):
        simulated.check(checks, row[None], simulated.results(row[None]))
        if place == 4:
            written = checks.running.sums.copy()
    again = simulated.checks()
    again.keep(HALF, PLACE)
    assert np.array_equal(again.running.sums, written)
