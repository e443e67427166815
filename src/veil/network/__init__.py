"""What both ends of a connection do: sockets, TLS, frames, busy polling, timeouts and retries."""
