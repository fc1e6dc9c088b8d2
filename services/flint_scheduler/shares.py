"""How many runs of a namespace this scheduler has under way, for namespaces that may have only so many.

Each scheduler grants its share of `max_running`: the number divided by how many schedulers there are, at least 1.
Nothing is counted for namespaces without that quota. Runs that were under way already when the quota was set, or when a
group was taken over, are counted as they stand in the book.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flint_scheduler.cards import RunCard
from flint_scheduler.ready import ReadyQueue

__all__ = ["Shares"]


class Shares:
    """Slots in use by namespace. Used from one event loop."""

    def __init__(self, queue: ReadyQueue) -> None:
        self._queue = queue
        self._quotas: dict[str, int] = {}
        self._sharers = 1
        self._running: dict[str, int] = {}
        self.limited: dict[str, int] = {}  # namespace → how many this scheduler may have under way

    def limit(self, quotas: Mapping[str, int], cards: Iterable[RunCard]) -> None:
        """The quotas of namespaces that have one; `cards`: all of this scheduler, to count from."""
        self._quotas = dict(quotas)
        self._running = {n: r for n, r in self._running.items() if n in quotas}
        fresh = quotas.keys() - self._running.keys()
        if fresh:
            self._running.update(dict.fromkeys(fresh, 0))
            for card in cards:
                if card.held and card.namespace in fresh:
                    self._running[card.namespace] += 1
        self._divide()

    def share_between(self, schedulers: int) -> None:
        """How many schedulers there are."""
        self._sharers = max(1, schedulers)
        self._divide()

    def occupy(self, namespace: str) -> None:
        """A run of the namespace takes a slot."""
        if self.limited and (limit := self.limited.get(namespace)) is not None:
            running = self._running[namespace] = self._running.get(namespace, 0) + 1
            if running >= limit:
                self._queue.full.add(namespace)

    def vacate(self, namespace: str) -> None:
        """A run of the namespace gives its slot back."""
        if self.limited and (limit := self.limited.get(namespace)) is not None:
            running = self._running[namespace] = max(0, self._running.get(namespace, 0) - 1)
            if running < limit:
                self._queue.unpark(namespace)

    def clear(self) -> None:
        """Nothing is under way: this scheduler owns nothing."""
        self._running = dict.fromkeys(self._quotas, 0)
        self._divide()

    def _divide(self) -> None:
        self.limited = {n: max(1, quota // self._sharers) for n, quota in self._quotas.items()}
        for namespace in [*self._queue.full]:
            if self._running.get(namespace, 0) < self.limited.get(namespace, 1 << 62):
                self._queue.unpark(namespace)
        for namespace, limit in self.limited.items():
            if self._running.get(namespace, 0) >= limit:
                self._queue.full.add(namespace)
