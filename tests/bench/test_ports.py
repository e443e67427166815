"""Ports that nobody else is given: not the kernel's, none twice, whole rows, and another process's are left alone."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench import ports

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "given"),
    [("32768\t60999\n", range(32768, 61000)), ("", range(49152, 65536)), (None, range(49152, 65536))],
    ids=["Linux", "an empty file", "no file"],
)
def test_what_the_kernel_gives(text: str | None, given: range, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "range").write_text(text)
    assert ports.given_by_the_kernel(tmp_path / "range") == given


@pytest.mark.parametrize("given", [range(32768, 61000), range(49152, 65536), range(15000, 30001), range(20100, 20101)])
def test_blocks_have_no_port_that_the_kernel_gives(given: range) -> None:
    blocks = ports.blocks_beside(given)
    covered = {port for start in blocks for port in range(start, start + 128)}
    assert len(covered) == 128 * len(blocks) > 4000
    assert not covered & set(given) and covered <= set(range(20000, 65536))


def test_where_the_kernel_gives_all_there_are_still_ports() -> None:
    assert len(ports.blocks_beside(range(1024, 65536))) > 300


def test_none_comes_twice_and_rows_are_whole() -> None:
    given = ports.given_by_the_kernel()
    had = [port for count in (1, 2, 3, 1) for first in [ports.own_port(count)] for port in range(first, first + count)]
    assert len(set(had)) == 7
    assert not set(had) & set(given) or given.start < 20000
    with socket.create_server(("127.0.0.1", had[-1] + 2)):  # in the middle of what would be the next row
        first = ports.own_port(2)
    assert first == had[-1] + 3


def test_another_process_is_given_others() -> None:
    mine = ports.own_port()
    command = "from bench.ports import own_port; print(own_port())"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (int(done.stdout) - 20000) // 128 != (mine - 20000) // 128, "a block is one process's"
    assert done.stderr == ""


def test_a_listener_can_come_again() -> None:
    port = ports.own_port()
    for _ in range(3):
        with socket.create_server(("127.0.0.1", port)) as listener:
            talk = socket.create_connection(("127.0.0.1", port), 5)
            near, _ = listener.accept()
            near.close()  # this end keeps the connection's last moments
            assert talk.recv(1) == b""
            talk.close()
