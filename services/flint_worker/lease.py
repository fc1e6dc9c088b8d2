"""The worker's own view of its lease (R6).

Valid until `ttl` after the moment *before* the renewal was sent, on the clock that goes on in suspend. The registry's
lease begins later, so ours always ends first. Once ended it never becomes valid again: the incarnation is over.
"""

from __future__ import annotations

import asyncio

from flint_ops.clock import boottime

__all__ = ["Lease"]


class Lease:
    """One incarnation's permission to begin side effects."""

    def __init__(self, incarnation: str, lease_id: int, sent_at: float, ttl_s: float) -> None:
        self.incarnation = incarnation
        self.lease_id = lease_id
        self.ttl_s = ttl_s
        self._until = sent_at + ttl_s
        self._over = False
        self.ended = asyncio.Event()
        """Set when it was found to be over."""

    def valid(self) -> bool:
        """Whether a side effect may begin now."""
        if self._over:
            return False
        if boottime() >= self._until:
            self.end()
            return False
        return True

    @property
    def remaining_s(self) -> float:
        """How long it holds without another renewal; 0 when it is over."""
        return 0.0 if self._over else max(0.0, self._until - boottime())

    def renewed(self, sent_at: float) -> None:
        """A renewal sent at `sent_at` (boottime) was confirmed. One that comes after the end changes nothing."""
        if self.valid():
            self._until = max(self._until, sent_at + self.ttl_s)

    def end(self) -> None:
        """The lease has lapsed, or the registry said so."""
        self._over = True
        self.ended.set()
