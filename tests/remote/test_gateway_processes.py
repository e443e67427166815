"""`veil serve`, `veil gateway` and a client as three processes; what the server receives holds no prompt in any form."""

from __future__ import annotations

import base64
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

PROMPT = "w31 w17 w44 w6 w52 w23 w38 w9"
CLIENT = """
import sys, openai
with openai.OpenAI(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=0) as client:
    messages = [{"role": "user", "content": sys.argv[3]}]
    options = {"temperature": 0, "max_tokens": 12, "logit_bias": {"2": -100}}  # no end before that
    stream = client.chat.completions.create(model="llama", messages=messages, stream=True, **options)
    print("".join(chunk.choices[0].delta.content or "" for chunk in stream))
"""


def forms(text: str, ids: list[int]) -> dict[str, bytes]:
    """How a text could be written into bytes."""
    found = {
        f"{name} {piece!r}": piece.encode(name)
        for name in ("utf-8", "utf-16-le", "utf-16-be")
        for piece in (text, text[:12])
    }
    found["reversed"] = text.encode()[::-1]
    found["hex"] = text.encode().hex().encode()
    for shift in range(3):
        found[f"base64 {shift}"] = base64.b64encode(b" " * shift + text.encode())[4:-4]
    for order in "<>":
        for kind in "HIQfd":
            found[f"ids {order}{kind}"] = struct.pack(f"{order}{len(ids)}{kind}", *ids)
    found["ids u8"] = bytes(ids)
    return found


def seen_in(data: bytes, wanted: dict[str, bytes]) -> list[str]:
    """Which forms are in the data, as it is or in a gzip or zlib stream that begins anywhere in it."""
    inside = [data]
    for match in re.finditer(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]", data):
        try:
            inside.append(zlib.decompressobj(47).decompress(data[match.start() :], 1 << 16))
        except zlib.error:
            continue
    return [name for name, form in wanted.items() if any(form in part for part in inside)]


def test_the_search_finds_every_form() -> None:
    wanted = forms(PROMPT, [36, 22, 49, 11])
    for name, form in wanted.items():
        assert name in seen_in(os.urandom(999) + form + os.urandom(999), wanted)
    packed = os.urandom(500) + zlib.compress(PROMPT.encode()) + os.urandom(500)
    assert f"utf-8 {PROMPT!r}" in seen_in(packed, wanted)
    assert seen_in(os.urandom(1 << 20), wanted) == []


def test_the_server_receives_no_prompt_in_any_form(llama: Any, tiny_tokenizer: Any, proxy_to: Any, start: Any) -> None:
    server = start("serve", llama.path / "server", "--port", "0")
    to_server = proxy_to(server.port)
    received: list[bytes] = []
    sent_back: list[bytes] = []

    def record(direction: str, index: int, frame: bytes) -> bytes:
        (received if direction == "up" else sent_back).append(frame[9:])
        return frame

    to_server.harm = record
    options = (
        "--server",
        f"127.0.0.1:{to_server.port}",
        "--bundle",
        llama.path / "client",
        "--api-key",
        "k",
        "--allow-no-cryptography",
    )
    gateway = start("gateway", *options, "--port", "0")
    client = subprocess.run(
        [sys.executable, "-c", CLIENT, f"http://127.0.0.1:{gateway.port}/v1", "k", PROMPT],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert client.returncode == 0, client.stderr
    answer = client.stdout.strip()
    assert len(answer.split()) >= 8
    turns = [{"role": "user", "content": PROMPT}]
    whole = tiny_tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    prompt_ids, answer_ids = tiny_tokenizer(PROMPT)["input_ids"], tiny_tokenizer(answer)["input_ids"]
    up, down = b"".join(received), b"".join(sent_back)
    assert len(up) > 2 * llama.local.params.batch_bytes, "batches and rows went through the proxy"
    for text, ids in ((PROMPT, prompt_ids), (PROMPT, whole), (answer, answer_ids)):
        assert seen_in(up, forms(text, ids)) == []
        assert seen_in(down, forms(text, ids)) == []
    assert gateway.end() == 0 and server.end() == 0
    for lines in (gateway.lines, server.lines):
        assert PROMPT not in "".join(lines) and answer not in "".join(lines)


def test_options_that_do_not_fit_are_one_line(llama: Any, refusing_port: int) -> None:
    from typer.testing import CliRunner

    from veil.cli import app

    for arguments, words in (
        (("--host", "0.0.0.0"), "--api-key"),
        (("--model", "x", "--bundle", llama.path), "leave out --model"),
        (
            ("--server", f"127.0.0.1:{refusing_port}", "--bundle", llama.path, "--allow-no-cryptography"),
            "is 'veil serve' running there",
        ),
        (("--model", "./nothing"), "check the path"),
    ):
        done = CliRunner().invoke(app, ["gateway", *map(str, arguments), "--port", "0"])
        assert done.exit_code == 2, done.output
        assert words in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_a_fetched_half_goes_by_the_servers_name(llama: Any, serve: Any) -> None:
    from veil.client.connection import Address, Connection
    from veil.commands.model_choice import name_there
    from veil.network.timeouts import Timeouts

    with serve(llama) as server:
        address = Address(target=f"127.0.0.1:{server.port}")
        connection = Connection(address, Timeouts())
        (bundle,) = connection.describe()
        connection.close()
        assert name_there(Path("cache") / bundle.digest, address) == "llama"
        assert name_there(Path("cache") / "other", address) == "other"
