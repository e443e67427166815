"""A server that is killed in the middle of an answer: when the page says so, when programs are told, and when all goes on.

    python -m bench.lost_server [--bundle FOLDER] [--rounds 3]

SmolLM2; server, gateway and Chromium are processes of their own. Prints seconds from the kill, or from the restart.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page, sync_playwright

from bench.ports import own_port
from bench.processes import begun, compiled, listening

LONG = "Write a long story about a lighthouse and the sea."
PAGE_TIMEOUT_MS = 120_000


def main() -> None:
    """Print a line for each round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        bundle = args.bundle or compiled(Path(folder) / "smollm2")
        with Server(bundle) as server:
            arguments = ("gateway", "--server", f"127.0.0.1:{server.port}", "--bundle", bundle / "client")
            with listening(*arguments) as gateway:
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                for _ in range(args.rounds):
                    page = browser.new_page()
                    one_round(page, f"http://127.0.0.1:{gateway}", server)
                    page.close()
                browser.close()


class Server:
    """A server process that comes again at its port; it is killed when the block ends."""

    def __init__(self, bundle: Path) -> None:
        self.port = own_port(2)  # rows take the next one
        self._command = ("serve", bundle / "server", "--device", "cpu", "--port", str(self.port))
        self.begin()

    def begin(self) -> None:
        """Start it, and wait until it listens."""
        self._process, _ = begun(*self._command)

    def kill(self) -> None:
        """As a machine that goes down."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def one_round(page: Page, url: str, server: Server) -> None:
    """Ask on the page and by the API, kill the server, and start it again."""
    page.set_default_timeout(PAGE_TIMEOUT_MS)
    page.goto(url)
    page.locator("#prompt").fill(LONG)
    page.keyboard.press("Enter")
    told: dict[str, tuple[float, str]] = {}
    streaming = threading.Event()
    asking = threading.Thread(target=stream, args=(url, told, streaming))
    asking.start()
    page.locator("#status-text", has_text="Writing").wait_for()
    assert streaming.wait(PAGE_TIMEOUT_MS / 1000)
    server.kill()
    killed = time.monotonic()
    page.locator("#status-text", has_text="Server not reached").wait_for()
    read = time.monotonic() - killed
    asking.join()
    ended, said = told["stream"]
    start = time.monotonic()
    refused = httpx.post(f"{url}/v1/chat/completions", json=body(8), timeout=60)
    print(f"read on the page after {read:.1f} s; a stream ended after {ended - killed:.1f} s ({said}); ", end="")
    print(f"another request: {refused.status_code} after {time.monotonic() - start:.1f} s; ", end="", flush=True)
    server.begin()
    back = time.monotonic()
    while httpx.get(f"{url}/veil/status", timeout=60).json()["server_lost_s"] is not None:
        time.sleep(0.05)
    healed = time.monotonic() - back
    answered = httpx.post(f"{url}/v1/chat/completions", json=body(8), timeout=300).status_code
    print(f"known to be back after {healed:.1f} s, the next request: {answered}", flush=True)


def body(tokens: int) -> dict[str, Any]:
    """A request for so many tokens."""
    messages = [{"role": "user", "content": LONG}]
    return {"model": "smollm2", "messages": messages, "max_tokens": tokens, "ignore_eos": True}


def stream(url: str, told: dict[str, tuple[float, str]], streaming: threading.Event) -> None:
    """A long answer by the API; notes when it ended, and how."""
    last = ""
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body(1500) | {"stream": True}, timeout=300) as reply:
        for line in reply.iter_lines():
            last = line or last
            if '"content":"' in line:
                streaming.set()
    told["stream"] = (time.monotonic(), "an error" if "error" in last else "no error")


if __name__ == "__main__":
    main()
