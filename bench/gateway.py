"""The gateway beside `veil generate`, against one `veil serve` on the loopback interface: SmolLM2.

    python -m bench gateway [--bundle FOLDER] [--rounds 3] [--out bench/results/gateway-smollm2.json]

Every round starts a fresh `veil generate` and a fresh `veil gateway` that is asked as soon as it listens, so that rows
are made while the answer comes in both. The gateway's seconds are its client's: from the request to the first piece of
text, and from that to the last.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

from bench.processes import VEIL, compiled, listening
from bench.record import Measurement, Record

PROMPT = "Explain in a few paragraphs why people encrypt their letters."
TOKENS = 33


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("bench/results/gateway-smollm2.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle or compiled(Path(folder) / "smollm2")
        found: dict[str, list[float]] = {}
        with listening("serve", bundle / "server") as port:
            for _ in range(args.rounds):
                for name, (first_s, token_s) in (
                    ("veil generate", generate(port, bundle)),
                    ("veil gateway", gateway(port, bundle)),
                ):
                    found.setdefault(f"{name}, until the first token", []).append(first_s)
                    found.setdefault(f"{name}, a token after it", []).append(token_s)
    record = Record(benchmark="gateway, smollm2", parameters={"tokens": TOKENS, "rounds": args.rounds})
    for name, samples in found.items():
        record.add(Measurement.of(name, samples, "s"))
    for part in ("until the first token", "a token after it"):
        pairs = zip(found[f"veil gateway, {part}"], found[f"veil generate, {part}"], strict=True)
        ratios = [ours / theirs for ours, theirs in pairs]
        record.add(Measurement.of(f"gateway / generate, {part}", ratios, "×", target="≤ 1.1"))
    record.show()
    record.write(args.out)


def generate(server: int, bundle: Path) -> tuple[float, float]:
    """Seconds until the first token, and of one after it, by `veil generate`."""
    options = ["--server", f"127.0.0.1:{server}", "--bundle", str(bundle), "--max-new-tokens", str(TOKENS), "--json"]
    command = [*VEIL, "generate", PROMPT, *options]
    answer = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert answer["new_tokens"] == TOKENS
    return answer["seconds"]["prompt"], answer["seconds"]["per_token"]


def gateway(server: int, bundle: Path) -> tuple[float, float]:
    """The same through the gateway, by the clock of a client of its API."""
    with listening("gateway", "--server", f"127.0.0.1:{server}", "--bundle", bundle / "client") as port:
        url = f"http://127.0.0.1:{port}/v1"
        model = json.loads(urllib.request.urlopen(f"{url}/models").read())["data"][0]["id"]  # noqa: S310
        body = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "temperature": 0}
        body |= {"max_tokens": TOKENS, "stream": True, "logprobs": False}
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/chat/completions", data, headers)  # noqa: S310  our own gateway
        start, times = time.perf_counter(), []
        with urllib.request.urlopen(request) as reply:  # noqa: S310
            for line in reply:
                if b'"content":"' in line and b'"role"' not in line:
                    times.append(time.perf_counter())
    assert len(times) == TOKENS, f"{len(times)} pieces"
    return times[0] - start, (times[-1] - times[0]) / (TOKENS - 1)


if __name__ == "__main__":
    main()
