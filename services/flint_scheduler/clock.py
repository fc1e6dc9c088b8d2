"""PostgreSQL's time, as this process reckons it: due times are judged by one clock whatever machine owns the shard."""

from __future__ import annotations

from datetime import datetime

from flint_ops.clock import now_ms

__all__ = ["RecordClock"]


class RecordClock:
    """Local time corrected by the last difference seen in an answer of PostgreSQL's."""

    def __init__(self) -> None:
        self._ahead_ms = 0

    def heard(self, at: datetime) -> None:
        """Note PostgreSQL's time, just received."""
        self._ahead_ms = int(at.timestamp() * 1000) - now_ms()

    def now_ms(self) -> int:
        """PostgreSQL's time now, milliseconds since the Unix epoch."""
        return now_ms() + self._ahead_ms
