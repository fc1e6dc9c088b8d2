"""The ready queue: runs that wait for a slot, most urgent level first, then in order of arrival.

Nothing is decided before a slot is free, so a run of level 0 overtakes any number of others at once. The queue holds
cards; one whose phase has changed meanwhile (cancelled, group given away) is skipped when it surfaces.
"""

from __future__ import annotations

import heapq

from flint_scheduler.cards import Phase, RunCard

__all__ = ["ReadyQueue"]


class ReadyQueue:
    """An ordered queue of cards in phase READY."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, RunCard]] = []
        self._arrivals = 0
        self._pushes = 0
        self.by_level = [0] * 10  # changed in place: the metrics read it

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, card: RunCard, now: float) -> None:
        """Queue a card. One that was queued before keeps its place in the order of arrival."""
        if card.arrival == 0:
            self._arrivals += 1
            card.arrival = self._arrivals
        card.phase = Phase.READY
        card.ready_since = now
        self._pushes += 1
        self.by_level[card.level] += 1
        heapq.heappush(self._heap, (card.level, card.arrival, self._pushes, card))

    def pop(self) -> RunCard | None:
        """The next card, or None."""
        while self._heap:
            level, _, _, card = heapq.heappop(self._heap)
            self.by_level[level] -= 1
            if card.phase is Phase.READY:
                return card
        return None

    def clear(self) -> None:
        """Forget everything."""
        self._heap.clear()
        self.by_level[:] = [0] * 10
