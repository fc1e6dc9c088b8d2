"""The two clocks: one that only goes forward for leases and deadlines, one that tells the date for the record."""

from __future__ import annotations

import time

__all__ = ["boottime", "now_ms"]

_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def boottime() -> float:
    """Seconds since boot, suspended time included (`CLOCK_BOOTTIME`); where there is none, the monotonic clock.

    The only clock for leases: the monotonic one stops in suspend, so a lease would look valid after a long sleep.
    """
    if _BOOTTIME is None:
        return time.monotonic()
    return time.clock_gettime(_BOOTTIME)


def now_ms() -> int:
    """Milliseconds since the Unix epoch. May jump; never compare two of them to measure a duration that matters."""
    return time.time_ns() // 1_000_000
