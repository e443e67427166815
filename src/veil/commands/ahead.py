"""What a command begins before its libraries are loaded, which takes seconds of one core; nothing heavy is imported here."""

from __future__ import annotations

from veil.sources.templates import begin_rendering

__all__ = ["begin_rendering"]
