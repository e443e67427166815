"""What both ends of the network transport agree on: names, version, sizes, keepalive."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from veil.bundle.header_file import common_fields
from veil.bundle.manifest import Manifest
from veil.params import Params, packed_bytes
from veil.seed import PublicSeed
from veil.wire.messages import BatchUpload

PROTOCOL = 2
"""Version of the messages; both sides must have the same."""

SERVICE = "veil.v2.Veil"
DEFAULT_PORT = 8471

SMALL_MESSAGE = 64 << 10
"""Room for the fields of a message beside its payload."""

TARGET_MESSAGE = 4 << 20
"""Rows are cut into messages of about this size, so that nobody waits long behind one."""

FILE_CHUNK = 256 << 10
LARGEST_DESCRIPTION = 64 << 20


def header_of(params: Params, seed: PublicSeed, manifest: Manifest) -> str:
    """What both halves of a bundle know, as canonical JSON."""
    return json.dumps(common_fields(params, seed, manifest), sort_keys=True, separators=(",", ":"))


def fingerprint(params: Params, seed: PublicSeed, manifest: Manifest) -> str:
    """SHA-256 of `header_of`, hexadecimal: the seed is drawn for each bundle, so it tells bundles apart."""
    return hashlib.sha256(header_of(params, seed, manifest).encode()).hexdigest()


def row_bytes(manifest: Manifest, group: int) -> int:
    """Bytes of one row of a group in the larger direction, with where it stands."""
    info = manifest.groups[group]
    return max(packed_bytes(info.width, info.input_bits), packed_bytes(info.rows, info.result_bits)) + 10


def rows_in_message(manifest: Manifest, group: int) -> int:
    """How many rows of a group go into one message."""
    return max(1, TARGET_MESSAGE // row_bytes(manifest, group))


def largest_message(bundles: Iterable[tuple[Params, Manifest]]) -> int:
    """Bytes of the largest message that serving these bundles can need, either way."""
    sizes = [TARGET_MESSAGE]
    for params, manifest in bundles:
        sizes += [params.batch_bytes + BatchUpload.HEADER_BYTES]
        sizes += [row_bytes(manifest, group) for group in range(len(manifest.groups))]
    return max(sizes) + SMALL_MESSAGE


def server_options(message_bytes: int) -> list[tuple[str, int]]:
    """gRPC options of the server: its port is its own, sizes are bounded, dead peers are noticed within 40 seconds."""
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", 16 << 10),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 4_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 4_000),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def client_options(keepalive_s: float) -> list[tuple[str, int]]:
    """gRPC options of a client: it notices a half-open connection within twice ``keepalive_s`` while a call runs."""
    milliseconds = int(1000 * keepalive_s)
    return [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
        ("grpc.max_receive_message_length", LARGEST_DESCRIPTION),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", milliseconds),
        ("grpc.keepalive_timeout_ms", milliseconds),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 2_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
