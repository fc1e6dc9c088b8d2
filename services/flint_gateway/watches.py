"""One WatchRun: a snapshot, then dense changes, with hints between them.

States: STALE (a snapshot is needed: at the begin, after a gap in the changes, an overflow of the queue, or when the
record is ahead of what was pushed) → FOLLOWING (changes are passed on as they come) → STALE … until the run has ended,
or `fail`. A watch has no task of its own; it lives in its RPC's.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_rpc.errors import Refused
from flint_rpc.names import RunName

__all__ = ["Watch"]

_QUEUE_LIMIT = 1000
_LATE_S = 0.25
"""A push follows its commit so closely that a reader may be ahead of it for a moment."""


class Watch:
    """What the hub offers to and a servicer takes from. One event loop."""

    def __init__(self, name: RunName, now: float) -> None:
        self.name = name
        self.renewed = now
        self.idle_since = now
        self.asked = False
        self.change = -1
        """The last change that was passed on; the servicer sets it after a snapshot."""
        self.stale = True
        self._queue: deque[runs_pb2.RunChange | runs_pb2.StepRecord] = deque()
        self._wake = asyncio.Event()
        self._failure: Refused | None = None

    def offer(self, change: runs_pb2.RunChange) -> None:
        """A change was pushed."""
        self.idle_since = time.monotonic()
        self._put(change)

    def hint(self, step: runs_pb2.StepRecord) -> None:
        """A step has begun. Dropped when the reader is slow: hints are no promise."""
        if len(self._queue) < _QUEUE_LIMIT // 2:
            self._put(step)

    def recorded(self, change: int) -> None:
        """The record is at `change`: when the push of it does not come within a moment, a snapshot is needed."""
        if change > self.change and not self.stale:
            asyncio.get_running_loop().call_later(_LATE_S, self._late, change)

    def fail(self, error: Refused) -> None:
        """Ends the watch: `wait` raises the error."""
        self._failure = error
        self._wake.set()

    def take(self) -> runs_pb2.RunChange | runs_pb2.StepRecord | None:
        """The next thing to pass on, or None. A gap in the changes makes the watch stale and ends the taking."""
        queue = self._queue
        while queue and not self.stale:
            event = queue.popleft()
            if isinstance(event, runs_pb2.StepRecord):
                return event
            change = event.run.change
            if change <= self.change:
                continue  # older than the snapshot, or a repetition
            if change > self.change + 1:
                self.stale = True
                return None
            self.change = change
            return event
        return None

    async def wait(self) -> None:
        """Until there is something to take, or the watch is stale. Raises `Refused` after `fail`."""
        while not self._queue and not self.stale and self._failure is None:
            self._wake.clear()
            await self._wake.wait()
        if self._failure is not None:
            raise self._failure

    def _put(self, event: runs_pb2.RunChange | runs_pb2.StepRecord) -> None:
        if len(self._queue) >= _QUEUE_LIMIT:
            self._queue.clear()
            self.stale = True
        self._queue.append(event)
        self._wake.set()

    def _late(self, change: int) -> None:
        if self.change < change and not self.stale:
            self.stale = True
            self._wake.set()
