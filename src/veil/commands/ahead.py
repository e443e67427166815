"""What a command begins before its modules are loaded, which takes seconds of one core; nothing heavy is imported here."""

from __future__ import annotations

from veil.sources.light_imports import load_libraries
from veil.sources.templates import begin_rendering

__all__ = ["begin_rendering", "load_libraries"]
