"""Where sessions go, how many replicas there are, and what the controller does with those that drain or die."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from veil.cluster.controller import Controller
from veil.cluster.placement import Load, Placement, Scale


def load(address: str, sessions: int = 0, used: int = 0, queued: int = 0) -> Load:
    return Load(address=address, sessions=sessions, most_sessions=8, used_bytes=used, memory_bytes=1000, queued=queued)


def test_a_session_goes_where_most_room_is() -> None:
    placement = Placement()
    placement.tell("a", load("a:1", sessions=2))
    placement.tell("b", load("b:1", sessions=1, used=900))
    placement.tell("c", load("c:1", sessions=2, queued=5))
    assert placement.choose() == "a:1"
    placement.forget("a")
    assert placement.choose() == "c:1"


def test_many_sessions_between_two_loads_are_spread_and_a_full_replica_gets_none() -> None:
    placement = Placement()
    for name in "abc":
        placement.tell(name, load(f"{name}:1"))
    given = Counter(placement.choose() for _ in range(24))
    assert given == {"a:1": 8, "b:1": 8, "c:1": 8}
    assert placement.choose() is None


def test_the_number_of_replicas_follows_their_load_between_least_and_most() -> None:
    scale = Scale(least=2, most=4)
    assert scale.wanted([], 0) == 2
    assert scale.wanted([load("a", 8)], 2) == 2, "one is starting"
    assert scale.wanted([load("a", 7), load("b", 7)], 2) == 3
    assert scale.wanted([load("a", 8)] * 4, 4) == 4
    assert scale.wanted([load("a", 1)] * 3, 3) == 2
    assert scale.wanted([load("a", 0)] * 2, 2) == 2
    with pytest.raises(ValueError, match="not smaller"):
        Scale(least=3, most=2)


class Fake:
    """Replicas that are dictionaries."""

    def __init__(self) -> None:
        self.loads: dict[str, Load | None] = {}
        self.ended: list[str] = []

    def start(self) -> str:
        name = f"r{len(self.loads) + len(self.ended) + 1}"
        self.loads[name] = load(f"{name}:1")
        return name

    def load(self, name: str) -> Load | None:
        return self.loads[name]

    def drain(self, name: str) -> None:
        return

    def end(self, name: str) -> None:
        del self.loads[name]
        self.ended.append(name)


def test_a_replica_that_dies_gets_no_session_until_it_is_back() -> None:
    fake = Fake()
    controller = Controller(fake, Scale(least=2, most=2))
    controller.step()
    controller.step()
    assert sorted(controller.addresses()) == ["r1:1", "r2:1"]
    fake.loads["r1"] = None
    controller.step()
    assert {controller.choose() for _ in range(4)} == {"r2:1"}
    fake.loads["r1"] = load("r1:2")
    controller.step()
    assert "r1:2" in controller.addresses() and controller.names == ["r1", "r2"]


def test_a_replica_that_drains_ends_when_it_is_empty_or_its_time_is_over() -> None:
    now = [0.0]
    fake = Fake()
    controller = Controller(fake, Scale(least=1, most=3), drain_s=60.0, clock=lambda: now[0])
    for _ in range(3):
        controller.add()
    controller.step()
    for name in ("r1", "r2"):
        fake.loads[name] = load(f"{name}:1", sessions=4)
    controller.drain("r1")
    controller.drain("r2")
    assert controller.addresses() == ["r3:1"]
    now[0] = 30.0
    controller.step()
    assert fake.ended == []
    fake.loads["r1"] = replace(load("r1:1"), sessions=0)
    controller.step()
    assert fake.ended == ["r1"]
    now[0] = 61.0
    controller.step()
    assert fake.ended == ["r1", "r2"] and controller.names == ["r3"]
    controller.stop()
    assert fake.loads == {}


def test_load_makes_and_ends_replicas() -> None:
    fake = Fake()
    controller = Controller(fake, Scale(least=1, most=3))
    for _ in range(6):
        controller.step()
        for name in fake.loads:
            fake.loads[name] = load(f"{name}:1", sessions=8)
    assert len(controller.names) == 3
    for _ in range(8):
        for name in fake.loads:
            fake.loads[name] = load(f"{name}:1")
        controller.step()
    assert len(controller.names) == 1
