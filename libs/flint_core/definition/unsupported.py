"""What the specification has and this version of Flint does not: refused by name, with a hint, never ignored."""

from __future__ import annotations

from typing import Final

__all__ = ["CALLS", "FLINT_HINTS", "TASKS", "TOP_LEVEL"]

TASKS: Final[dict[str, str]] = {}

CALLS: Final[dict[str, str]] = {}

TOP_LEVEL: Final[dict[str, str]] = {}

FLINT_HINTS: Final = {
    "pool": "naming a pool is not built yet",
    "region": "naming a region is not built yet",
    "concurrency": "concurrency keys are not built yet",
    "sla": "service levels are not built yet; use `timeout`",
    "residency": "residency is not built yet",
}
