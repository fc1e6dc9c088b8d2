"""What the specification has and this version of Flint does not: refused by name, with a hint, never ignored."""

from __future__ import annotations

from typing import Final

__all__ = ["CALLS", "FLINT_HINTS", "TASKS", "TOP_LEVEL"]

TASKS: Final[dict[str, str]] = {}

CALLS: Final[dict[str, str]] = {}

TOP_LEVEL: Final[dict[str, str]] = {}

FLINT_HINTS: Final = {
    "residency": "residency is not built yet",
}
