"""``veil`` and ``python -m veil``: the command line, and Ctrl-C from the first moment on."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line; Ctrl-C while its modules load ends the process, without a traceback of them."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from veil.cli import main as run

    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, before)
    run()


if __name__ == "__main__":
    main()
