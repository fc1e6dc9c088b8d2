"""Timers: runs whose wait ends soon, by PostgreSQL's clock.

Waits that are far off are rows only; the sweep brings in those that are due within its horizon. A timer fires by
making its run ready; the commit that opens the next leg clears `wake_at`, so a timer that fires twice opens one leg.
When the loop dies the service stops; the rows remain.
"""

from __future__ import annotations

import asyncio
import heapq

from flint_scheduler.cards import Phase, RunBook, RunCard
from flint_scheduler.clock import RecordClock
from flint_scheduler.dispatch import Dispatcher
from flint_scheduler.ready import ReadyQueue

__all__ = ["Timers"]


class Timers:
    """The near waits of one scheduler."""

    def __init__(
        self, book: RunBook, queue: ReadyQueue, dispatcher: Dispatcher, clock: RecordClock, horizon_s: float
    ) -> None:
        self._book = book
        self._queue = queue
        self._dispatcher = dispatcher
        self._clock = clock
        self._horizon_ms = int(horizon_s * 1000)
        self._heap: list[tuple[int, int, RunCard]] = []
        self._added = 0
        self._wake = asyncio.Event()

    def add(self, card: RunCard) -> None:
        """A run waits; it is kept in memory only if it is due within the horizon. One without a timer is not."""
        if not card.wake_at_ms or card.wake_at_ms - self._clock.now_ms() > self._horizon_ms:
            self._book.drop(card)
            return
        self._added += 1
        heapq.heappush(self._heap, (card.wake_at_ms, self._added, card))
        self._wake.set()

    def clear(self) -> None:
        """Forget everything."""
        self._heap.clear()

    async def run(self) -> None:
        """Make runs ready when they are due."""
        while True:
            self._wake.clear()
            wait_s = self._fire()
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _fire(self) -> float | None:
        """Fire what is due; seconds until the next, or None."""
        now_ms = self._clock.now_ms()
        fired = False
        while self._heap and self._heap[0][0] <= now_ms:
            wake_at_ms, _, card = heapq.heappop(self._heap)
            # One that a message woke meanwhile may wait again, for another moment.
            waits = card.phase is Phase.WAITING and card.wake_at_ms == wake_at_ms
            if waits and self._book.get(card.run_id) is card:
                self._queue.push(card, asyncio.get_running_loop().time())
                fired = True
        if fired:
            self._dispatcher.wake()
        return max(0.001, (self._heap[0][0] - now_ms) / 1000) if self._heap else None
