"""One JSON object a line. What is logged is listed where it is logged; no payload, token or session name is among it."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from typing import Any

LOGGER = logging.getLogger("veil.server")


class JsonLines(logging.Formatter):
    """Formats records of `event` as JSON lines."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, without its end."""
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        fields |= getattr(record, "fields", {})
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def event(name: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event with its fields."""
    LOGGER.log(level, name, extra={"fields": fields})


def alias(secret: str) -> str:
    """A short name for something that must not be logged itself, the same each time."""
    return hashlib.sha256(b"veil log alias" + secret.encode()).hexdigest()[:8]
