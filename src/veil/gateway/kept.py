"""Attention states on disk, so that a document's rows go up once: encrypted, bounded, with an end to their time.

A file holds two sealed parts (AES-256-GCM): what its state is of (model, owner, token ids), read when a gateway starts, and
the state, read when it is used. The key is the caller's; a file under another key is left alone and not used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import struct
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from safetensors.torch import load, save
from transformers import DynamicCache

from veil.disk import write_whole

_MAGIC = b"veil-kv1"
_NONCE = 12
_LEAST_TOKENS = 32
SUFFIX = ".kv"
_log = logging.getLogger("veil.gateway")


@dataclass(frozen=True)
class KeptState:
    """A state's file and what it is of."""

    path: Path
    ids: tuple[int, ...]
    owner: str


class KeptStates:
    """The states of one model in a folder; all files there together keep to ``most_bytes`` and ``days``. Thread safe.

    ``model`` is what a state belongs to: another model's are not looked at. What is written is written in the background.
    """

    def __init__(
        self,
        folder: Path,
        key: bytes,
        model: str,
        *,
        most_bytes: int,
        days: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._cipher, self._model = folder, AESGCM(key), model
        self._most_bytes, self._seconds, self._clock = most_bytes, days * 86400, clock
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="veil-kept")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._tidy()
        self._known = [found for path in sorted(folder.glob(f"*{SUFFIX}")) if (found := self._read_head(path))]

    def best(self, ids: Sequence[int], owner: str, more_than: int) -> tuple[int, DynamicCache] | None:
        """The state that most of a prompt's first tokens are in, all but the last at most, if those are enough more."""
        with self._lock:
            now = self._clock()
            alive = [one for one in self._known if one.owner == owner and _age(one.path, now) < self._seconds]
        lengths = {one: common(one.ids, ids, 1) for one in alive}
        best = max(alive, key=lengths.__getitem__, default=None)
        if best is None or lengths[best] < max(_LEAST_TOKENS, more_than + 1):
            return None
        state = self._read_state(best)
        return None if state is None else (lengths[best], _cut(state, lengths[best]))

    def keep(self, ids: Sequence[int], cache: DynamicCache, owner: str) -> None:
        """Write a state, unless a longer one that begins so is there; those that it continues go."""
        length = cache.get_seq_length()
        if length < _LEAST_TOKENS:
            return
        state = {f"{kind}{index}": getattr(layer, name).clone().contiguous() for index, layer in enumerate(cache.layers)
                 for kind, name in (("k", "keys"), ("v", "values"))}  # fmt: skip
        self._writer.submit(self._write, tuple(ids[:length]), state, owner)

    def close(self) -> None:
        """Return when everything is written."""
        self._writer.shutdown(wait=True)

    def _write(self, ids: tuple[int, ...], state: dict[str, torch.Tensor], owner: str) -> None:
        with self._lock:
            same = [one for one in self._known if one.owner == owner]
        if any(one.ids[: len(ids)] == ids and one.path.exists() for one in same):
            return
        path = self._folder / f"{secrets.token_hex(16)}{SUFFIX}"
        head = json.dumps({"model": self._model, "owner": owner, "ids": ids}).encode()
        sealed = self._seal(head, path.name, b"head")
        data = _MAGIC + struct.pack("<I", len(sealed)) + sealed + self._seal(save(state), path.name, b"state")
        try:
            partial = path.with_suffix(".partial")
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
            os.utime(partial, (self._clock(),) * 2)
            partial.rename(path)
        except OSError as error:
            _log.warning("a state could not be kept (%s)", error.strerror)
            return
        old = [one for one in same if ids[: len(one.ids)] == one.ids]
        with self._lock:
            self._known = [one for one in self._known if one not in old] + [KeptState(path, ids, owner)]
        for one in old:
            one.path.unlink(missing_ok=True)
        self._tidy()

    def _tidy(self) -> None:
        """Remove what is too old, then the least recently used of what is too much."""
        now, total = self._clock(), 0
        for path in sorted(self._folder.glob(f"*{SUFFIX}"), key=lambda path: _age(path, now)):
            total += path.stat().st_size
            if total > self._most_bytes or _age(path, now) >= self._seconds:
                total -= path.stat().st_size
                path.unlink(missing_ok=True)

    def _read_head(self, path: Path) -> KeptState | None:
        try:
            with path.open("rb") as file:
                start = file.read(len(_MAGIC) + 4)
                (length,) = struct.unpack("<I", start[len(_MAGIC) :])
                said = json.loads(self._open(file.read(min(length, 64 << 20)), path.name, b"head"))
        except (OSError, ValueError, InvalidTag, struct.error):
            return None
        return KeptState(path, tuple(said["ids"]), said["owner"]) if said.get("model") == self._model else None

    def _read_state(self, kept: KeptState) -> DynamicCache | None:
        try:
            data = kept.path.read_bytes()
            (length,) = struct.unpack("<I", data[len(_MAGIC) : len(_MAGIC) + 4])
            tensors = load(self._open(data[len(_MAGIC) + 4 + length :], kept.path.name, b"state"))
            made = DynamicCache()
            for index in range(len(tensors) // 2):
                made.update(tensors[f"k{index}"], tensors[f"v{index}"], index)
            os.utime(kept.path, (self._clock(),) * 2)
            return made
        except Exception as error:  # it was removed or damaged meanwhile
            _log.warning("a kept state cannot be used (%s)", type(error).__name__)
            with self._lock:
                self._known = [one for one in self._known if one is not kept]
            return None

    def _seal(self, data: bytes, name: str, part: bytes) -> bytes:
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, data, part + name.encode())

    def _open(self, data: bytes, name: str, part: bytes) -> bytes:
        return self._cipher.decrypt(data[:_NONCE], data[_NONCE:], part + name.encode())


def common(known: Sequence[int], ids: Sequence[int], leave: int) -> int:
    """Tokens that both begin with, at least ``leave`` of ``ids`` left over."""
    most = max(0, min(len(known), len(ids) - leave))
    return next((place for place in range(most) if known[place] != ids[place]), most)


def _cut(cache: DynamicCache, length: int) -> DynamicCache:
    made = DynamicCache()
    for index, layer in enumerate(cache.layers):
        made.update(layer.keys[:, :, :length], layer.values[:, :, :length], index)
    return made


def _age(path: Path, now: float) -> float:
    try:
        return now - path.stat().st_mtime
    except OSError:
        return float("inf")


def model_mark(fingerprint: str, name: str) -> str:
    """What states of a model are filed under."""
    return hashlib.sha256(f"{fingerprint}\0{name}".encode()).hexdigest()


class Keyring(Protocol):
    """The system's keyring, as the package of this name has it."""

    def get_password(self, service_name: str, username: str) -> str | None:
        """What is kept under a name."""

    def set_password(self, service_name: str, username: str, password: str) -> None:
        """Keep it."""


def key_from(passphrase: str | None, folder: Path, keyring: Keyring | None = None) -> bytes:
    """The key of 256 bits: from a passphrase (scrypt, with a salt beside the files), else the system's keyring's.

    `ValueError` where there is neither.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if passphrase:
        salt_file = folder / "salt"
        if not salt_file.exists():
            write_whole(salt_file, os.urandom(16), mode=0o600)
        return hashlib.scrypt(
            passphrase.encode(), salt=salt_file.read_bytes(), n=1 << 15, r=8, p=1, maxmem=64 << 20, dklen=32
        )
    advice = "set VEIL_CACHE_PASSPHRASE, or leave out --cache-gib"
    try:
        if keyring is None:
            import keyring as system

            keyring = system
        found = keyring.get_password("veil", "kept states")
        if found is None:
            found = secrets.token_hex(32)
            keyring.set_password("veil", "kept states", found)
        return bytes.fromhex(found)
    except ImportError:
        raise ValueError(f"there is no package `keyring` to ask for a key; {advice}") from None
    except Exception as error:  # keyrings have errors of every kind
        raise ValueError(f"the system's keyring gives no key ({type(error).__name__}); {advice}") from None
