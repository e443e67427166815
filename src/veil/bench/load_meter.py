"""The server's own account, read from its metrics before and after a measurement, and how busy a GPU of this machine is."""

from __future__ import annotations

import shutil
import subprocess
import threading
import urllib.request
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from veil.bench.load_record import MessageStages

STAGES = ("check", "wait", "product", "reply")


@dataclass(frozen=True, kw_only=True)
class ServerTimes:
    """Counters of a server: seconds of messages by stage, messages, rows, products, and its processor seconds."""

    stages: dict[str, float]
    messages: float
    rows: float
    products: float
    cpu_s: float


def read_account(metrics: str) -> ServerTimes:
    """The account of the server whose metrics are at HOST:PORT. `ValueError` if nobody answers."""
    try:
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10.0) as reply:
            text = reply.read().decode()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no metrics at {metrics} ({error}); start the server with --metrics-port and name HOST:PORT"
        ) from None
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name, sample.labels.get("stage", "")] = sample.value
    return ServerTimes(
        stages={name: found.get(("veil_message_seconds_total", name), 0.0) for name in STAGES},
        messages=found.get(("veil_messages_total", ""), 0.0),
        rows=found.get(("veil_rows_total", ""), 0.0),
        products=found.get(("veil_products_total", ""), 0.0),
        cpu_s=found.get(("veil_cpu_seconds", ""), 0.0),
    )


def stages_of(before: ServerTimes, after: ServerTimes, message_s: float) -> MessageStages | None:
    """What lay between two accounts, of messages that took ``message_s`` each for their clients, without added time."""
    messages = after.messages - before.messages
    if messages <= 0:
        return None
    each = {name: (after.stages[name] - before.stages[name]) / messages for name in STAGES}
    return MessageStages(
        check_s=each["check"],
        wait_s=each["wait"],
        product_s=each["product"],
        reply_s=each["reply"],
        elsewhere_s=max(0.0, message_s - sum(each.values())),
        rows_a_product=(after.rows - before.rows) / max(1.0, after.products - before.products),
    )


class GpuUse:
    """The mean use of this machine's NVIDIA GPUs while the block runs: ``share``, None where there is no nvidia-smi."""

    def __init__(self) -> None:
        self.share: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="veil-gpu-use", daemon=True)

    def __enter__(self) -> GpuUse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        if shutil.which("nvidia-smi") is None:
            return
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        samples: list[float] = []
        while not self._over.wait(0.5):
            try:
                asked = subprocess.run(command, capture_output=True, text=True, timeout=5.0, check=True)
                samples += [float(line) / 100 for line in asked.stdout.split()]
            except (OSError, ValueError, subprocess.SubprocessError):
                continue
        self.share = sum(samples) / len(samples) if samples else None
