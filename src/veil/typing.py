"""Types that several rooms share: parsed JSON, and what is used of the objects that transformers makes."""

from __future__ import annotations

from typing import TypeAlias

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
"""What JSON can hold, parsed."""
