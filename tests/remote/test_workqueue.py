"""Server, clients and their background threads in one process, under the threading layer that ends a process otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys, threading
import torch, veil
from veil.kernels.cpu import parallel
terms = veil.Terms(no_cryptography=True)
ids = torch.arange(3, 9)[None]
source = veil.load_model(sys.argv[1])
hybrid = veil.HybridFHEModel(source.model, veil.linear_modules(source.model))
hybrid.compile_model(ids, params=veil.Params.insecure_tiny())
clear = hybrid(ids, fhe="disable").logits
hybrid.save("small", source.tokenizer)
wrong = []
def client(address):
    model = veil.connect(address, "small", terms=terms, offline_rows=veil.OfflineRows(tokens=8, prompt_rows=8))
    for _ in range(3):
        wrong.append(bool((model(ids).logits - clear).abs().max() > 0.1 * clear.abs().max()))
    model.close()
with veil.Server.open("small") as server:
    threads = [threading.Thread(target=client, args=(server.address,)) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
print(parallel.layer(), len(wrong), any(wrong))
"""


def test_a_server_and_three_clients_take_turns(llama_folder: Path, tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "2"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(llama_folder)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-3:] == ["workqueue", "9", "False"]
