"""Workflows on hold, and which workflows count the failures of their runs: what each scheduler remembers of both.

Read from the record when it has changed (a broadcast, else the sweep). A run of a workflow on hold that has not begun
is parked when its turn in the queue comes, and queued again when the workflow is released; one that has begun goes
on. Until a scheduler has heard of a hold it may begin runs: for a moment, or at most until its next sweep.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from flint_scheduler.cards import Phase, RunBook, RunCard
from flint_scheduler.record import Record
from flint_store.workflow_control import load_controls

__all__ = ["Holds"]


class Holds:
    """Belongs to one scheduler and its event loop."""

    def __init__(self, record: Record, book: RunBook) -> None:
        self._record = record
        self._book = book
        self._changed: datetime | None = None
        self._held: frozenset[tuple[str, str]] = frozenset()
        self._policies: frozenset[tuple[str, str]] = frozenset()
        self._parked: dict[tuple[str, str], list[RunCard]] = {}
        self.on_released: Callable[[RunCard], None] = lambda card: None

    @property
    def any(self) -> bool:
        """Whether any workflow is on hold: nothing else needs to be asked while none is."""
        return bool(self._held)

    def holds(self, namespace: str, workflow_id: str) -> bool:
        """Whether runs of this workflow may not begin now."""
        return (namespace, workflow_id) in self._held

    def counts(self, namespace: str, workflow_id: str) -> bool:
        """Whether failures of this workflow's runs are counted."""
        return (namespace, workflow_id) in self._policies

    def park(self, card: RunCard) -> bool:
        """Take a run out of the queue if its workflow is on hold and it has not begun. It stays in phase READY."""
        name = card.namespace, card.workflow_id
        if card.leg or name not in self._held:
            return False
        self._parked.setdefault(name, []).append(card)
        return True

    async def refresh(self, changed: datetime | None) -> None:
        """Read again if something changed since. Raises RecordUnavailable."""
        if changed == self._changed:
            return
        controls = await self._record.read(load_controls)
        self._changed = changed
        self._held = frozenset((c.namespace, c.workflow_id) for c in controls if c.held)
        self._policies = frozenset((c.namespace, c.workflow_id) for c in controls if c.escalation is not None)
        for name in [name for name in self._parked if name not in self._held]:
            for card in self._parked.pop(name):
                if card.phase is Phase.READY and self._book.get(card.run_id) is card:
                    self.on_released(card)
