"""Options of gRPC on both sides: bounded sizes, keepalive, no hidden retries."""

from __future__ import annotations

LARGEST_DESCRIPTION = 64 << 20


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
