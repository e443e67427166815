"""Whether a server answers: a failure is looked into at once, silence after a while, and each change is told once."""

from __future__ import annotations

from typing import Any

import pytest

from veil.gateway.health import ServerHealth


class World:
    """A server that answers or not, traffic, and a clock."""

    def __init__(self) -> None:
        self.now, self.answers, self.well, self.failed = 0.0, True, 0, 0
        self.asked = 0
        self.told: list[bool] = []
        self.health = ServerHealth(self._ask, lambda: (self.well, self.failed), self.told.append, lambda: self.now)

    def _ask(self) -> bool:
        self.asked += 1
        return self.answers

    def after(self, seconds: float, **changes: Any) -> None:
        self.now += seconds
        for name, value in changes.items():
            setattr(self, name, value)
        self.health.look()


@pytest.fixture
def world() -> World:
    return World()


def test_while_traffic_goes_well_nobody_is_asked(world: World) -> None:
    for step in range(40):
        world.after(0.4, well=step + 1)
    assert (world.asked, world.told) == (0, [])
    for _ in range(7):
        world.after(0.4)
    assert world.asked == 0
    world.after(0.4)
    assert (world.asked, world.told) == (1, []), "after three silent seconds it is"


def test_a_failure_is_looked_into_at_once_and_told_once(world: World) -> None:
    world.after(0.4, failed=1)
    assert (world.asked, world.told, world.health.lost_s) == (1, [], None), "a connection broke, the server is there"
    world.after(0.4, failed=2, answers=False)
    assert (world.told, world.health.lost_s) == ([False], 0.0)
    for step in range(10):
        world.after(0.4, failed=3 + step)
    assert world.told == [False] and world.health.lost_s == pytest.approx(4.0)
    assert world.asked == 12, "a lost server is asked each time"
    world.after(0.4, answers=True)
    assert (world.told, world.health.lost_s) == ([False, True], None)


def test_traffic_alone_does_not_bring_it_back(world: World) -> None:
    world.after(4, answers=False)
    world.after(0.4, well=5)
    assert world.told == [False], "it may have been under way"


def test_the_thread_ends() -> None:
    health = ServerHealth(lambda: True, lambda: (0, 0), lambda _: None)
    health.start()
    health.close()
    assert not health._thread.is_alive()
    ServerHealth(lambda: True, lambda: (0, 0), lambda _: None).close()
