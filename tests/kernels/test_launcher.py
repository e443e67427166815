"""When a launch takes machine code that was chosen before: where all that Triton's choice depends on is the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from veil.kernels.cuda import launcher
from veil.kernels.cuda.launcher import Launcher


class Kernel:
    """A kernel of (tensor, number, free number) that notes how it was launched: chosen anew, or as it was."""

    params = (
        SimpleNamespace(num=0, do_not_specialize=False),
        SimpleNamespace(num=1, do_not_specialize=False),
        SimpleNamespace(num=2, do_not_specialize=True),
    )

    def __init__(self) -> None:
        self.log: list[tuple[str, Any, Any]] = []

    def __getitem__(self, grid: Any) -> Any:
        def choose(*arguments: Any, **options: Any) -> Any:
            self.log.append(("new", grid, arguments))
            number = len(self.log)
            return _Chosen(self.log, f"code {number}")

        return choose


class _Chosen:
    def __init__(self, log: list[tuple[str, Any, Any]], name: str) -> None:
        self._log, self._name = log, name

    def __getitem__(self, grid: Any) -> Any:
        return lambda *arguments: self._log.append((self._name, grid, arguments))


ROW = torch.zeros(64, dtype=torch.uint8)
WORDS = torch.zeros(64, dtype=torch.int32)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


@pytest.mark.usefixtures("on_gpu")
def test_a_second_launch_takes_the_code_of_the_first_with_its_own_arguments() -> None:
    kernel = Kernel()
    launch = Launcher(kernel)
    other = torch.ones(128, dtype=torch.uint8)
    launch((3, 2), ROW, 7, 5, num_warps=4)
    launch((9,), other, 7, 6, num_warps=4)
    assert kernel.log == [("new", (3, 2), (ROW, 7, 5)), ("code 1", (9, 1, 1), (other, 7, 6))]


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((ROW[1:], 7, 5), {"num_warps": 4}),
        ((WORDS, 7, 5), {"num_warps": 4}),
        ((ROW, 1, 5), {"num_warps": 4}),
        ((ROW, 16, 5), {"num_warps": 4}),
        ((ROW, 7, 2**31), {"num_warps": 4}),
        ((ROW, 7, -(2**31) - 1), {"num_warps": 4}),
        ((ROW, 7, 5), {"num_warps": 8}),
    ],
    ids=["alignment", "dtype", "one", "sixteen", "64 bits", "64 bits below", "option"],
)
def test_what_changes_the_code_is_chosen_anew(arguments: tuple[Any, ...], options: dict[str, int]) -> None:
    kernel = Kernel()
    launch = Launcher(kernel)
    launch((1,), ROW, 7, 5, num_warps=4)
    launch((1,), *arguments, **options)
    assert [entry[0] for entry in kernel.log] == ["new", "new"]


@pytest.mark.usefixtures("on_gpu")
def test_a_free_number_has_one_code_for_all_its_values_of_one_size() -> None:
    kernel = Kernel()
    launch = Launcher(kernel)
    for number in (5, 16, 1, 0, 2**31 - 1, -(2**31)):
        launch((1,), ROW, 7, number)
    assert [entry[0] for entry in kernel.log] == ["new"] + 5 * ["code 1"]


@pytest.mark.usefixtures("on_gpu")
def test_another_device_has_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel()
    launch = Launcher(kernel)
    launch((1,), ROW, 7, 5)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    launch((1,), ROW, 7, 5)
    assert [entry[0] for entry in kernel.log] == ["new", "new"]
