"""``python -m veil``: the command line."""

from veil.cli import main

main()
