"""What the schedulers say waits in their queues, by pool.

States of one scheduler's word: **heard** → not heard of again for `STALE_S`: **forgotten** (it ended, or has nothing).
Losing messages makes figures old by a second; nothing is decided about life and death by them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.message import DecodeError

from flint_bus import Message
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_elastic import LEVELS, Backlog
from flint_ops.clock import boottime
from flint_ops.logging import get_logger

__all__ = ["STALE_S", "Backlogs", "PoolQueue"]

STALE_S: Final = 10.0
_MOST_SCHEDULERS: Final = 1_000
_MOST_POOLS: Final = 1_000

_log = get_logger("flint_registry.backlogs")


@dataclass(slots=True)
class PoolQueue:
    """What waits for one pool, at all schedulers together."""

    ready: list[int] = field(default_factory=lambda: [0] * LEVELS)
    oldest_wait_s: float = 0.0
    arrivals_per_s: float = 0.0
    running: int = 0
    held: int = 0

    @property
    def waiting(self) -> int:
        """Runs that could be executed if there were room."""
        return sum(self.ready)

    def backlog(self) -> tuple[Backlog, ...]:
        """By level; the oldest is taken for one of the least urgent level that waits, which is served last."""
        waiting = [(level, count) for level, count in enumerate(self.ready) if count > 0]
        last = waiting[-1][0] if waiting else -1
        return tuple(Backlog(level, count, self.oldest_wait_s if level == last else 0.0) for level, count in waiting)


class Backlogs:
    """Used from one event loop."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._heard: dict[str, tuple[float, dispatch_pb2.Backlog]] = {}

    def hear(self, message: Message) -> None:
        """A handler of Backlog messages."""
        try:
            backlog = dispatch_pb2.Backlog.FromString(message.data)
        except DecodeError as error:
            _log.error("backlog_unreadable", error=str(error))
            return
        known = self._heard.get(backlog.scheduler_id)
        if known is not None and known[1].time_ms > backlog.time_ms:
            return
        if known is None and len(self._heard) >= _MOST_SCHEDULERS:
            return
        self._heard[backlog.scheduler_id] = (boottime(), backlog)

    def queues(self) -> dict[tuple[str, str], PoolQueue]:
        """By region and pool. Runs that name no region count for the region in which workers are started."""
        now = boottime()
        self._heard = {who: heard for who, heard in self._heard.items() if now - heard[0] < STALE_S}
        found: dict[tuple[str, str], PoolQueue] = defaultdict(PoolQueue)
        for _, backlog in self._heard.values():
            for pool in backlog.pools[:_MOST_POOLS]:
                queue = found[pool.region or self._region, pool.pool]
                for level, count in enumerate(pool.ready[:LEVELS]):
                    queue.ready[level] += count
                queue.oldest_wait_s = max(queue.oldest_wait_s, pool.oldest_wait_ms / 1000)
                queue.arrivals_per_s += pool.arrivals_per_s
                queue.running += pool.running
                queue.held += pool.held
        return dict(found)
