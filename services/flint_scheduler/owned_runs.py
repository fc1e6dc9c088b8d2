"""The runs of owned groups in memory: their cards, their places in the queue, the slots and shares that they hold.

Filled from the record when groups are taken, made equal to it again after a commit whose answer was lost, and emptied
when groups go. Losing all of it costs a read of the database. The steward says when; what happens to single runs in
between is the lanes' business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from flint_scheduler.accept import Acceptor
from flint_scheduler.attention import Attention
from flint_scheduler.cards import Phase, RunBook, RunCard, card_of_row
from flint_scheduler.dispatch import Dispatcher
from flint_scheduler.fleet import FleetView
from flint_scheduler.holdings import Holdings
from flint_scheduler.ready import ReadyQueue
from flint_scheduler.record import Record
from flint_scheduler.shares import Shares
from flint_scheduler.timers import Timers
from flint_store.legs import RunRow, load_unfinished

__all__ = ["OwnedRuns"]

_LONG_AGO = -1e9


class OwnedRuns:
    """See the module. Used from one event loop."""

    def __init__(
        self,
        record: Record,
        holdings: Holdings,
        book: RunBook,
        queue: ReadyQueue,
        fleet: FleetView,
        shares: Shares,
        timers: Timers,
        acceptor: Acceptor,
        dispatcher: Dispatcher,
        attention: Attention,
    ) -> None:
        self._record = record
        self._holdings = holdings
        self._book = book
        self._queue = queue
        self._fleet = fleet
        self._shares = shares
        self._timers = timers
        self._acceptor = acceptor
        self._dispatcher = dispatcher
        self._attention = attention

    def adopt(self, rows: Iterable[RunRow]) -> None:
        """Runs of groups that were taken. Legs that are open already: their workers are asked at once for them."""
        self._add(rows, _LONG_AGO)

    def forget(self, groups: Sequence[int]) -> None:
        """Nothing of these groups is in memory any more."""
        for card in self._book.drop_groups(groups):
            self._let_go(card)

    def forget_all(self, groups: Sequence[int]) -> None:
        """Nothing is in memory any more; `groups` are all that were owned."""
        self.forget(groups)
        self._queue.clear()
        self._timers.clear()
        self._fleet.recount()
        self._shares.clear()

    def share_between(self, members: int) -> None:
        """So many schedulers share the workers' slots and the namespaces' quotas."""
        self._fleet.share_between(members)
        self._shares.share_between(members)

    async def reload(self, groups: set[int]) -> None:
        """Make the cards of these groups what the record says, after a commit whose answer was lost.

        Called by the fold within its turn, or by the steward; the other lanes are waited for. Raises RecordUnavailable.
        """
        mine = [g for g in groups if self._holdings.owns(g)]
        if not mine:
            return
        async with self._acceptor.turn:  # no new runs of mine while the record is read
            before = {c.run_id: c.change for c in self._book if c.group in groups}
            rows = {r.run_id: r for r in await self._record.read(lambda c: load_unfinished(c, mine))}
            fresh: list[RunRow] = []
            for card in [c for c in self._book if c.group in groups]:
                row = rows.pop(card.run_id, None)
                if card.phase is Phase.OPENING or before.get(card.run_id) != card.change:
                    continue  # a commit of mine moved it meanwhile: memory is right, the reading is old
                if row is not None and row.change == card.change:
                    continue
                self._let_go(card)
                self._book.drop(card)
                if row is not None:
                    fresh.append(row)
            # A row without a card, not known before either: stored by a commit whose answer was lost. One that was
            # known before and is gone now ended meanwhile.
            fresh += [row for run_id, row in rows.items() if run_id not in before]
            self._add(fresh, asyncio.get_running_loop().time())
        self._attention.sweep_soon()
        self._dispatcher.wake()

    # -- cards ---------------------------------------------------------------------------------------------------------

    def _add(self, rows: Iterable[RunRow], opened: float) -> None:
        """Cards of these rows; `opened`: when an open leg is taken to have been opened (loop time)."""
        now = asyncio.get_running_loop().time()
        for row in rows:
            card = card_of_row(row, opened)
            self._book.add(card)
            if card.phase is Phase.READY:
                self._queue.push(card, now)
            else:
                self._occupy(card)

    def _occupy(self, card: RunCard) -> None:
        card.held = self._fleet.hold(card.claimant)
        if card.held:
            self._shares.occupy(card.namespace)

    def _let_go(self, card: RunCard) -> None:
        if card.held:
            self._fleet.release(card.claimant, card.job_sequence)
            card.held = False
            self._shares.vacate(card.namespace)
        card.phase = Phase.CLOSING  # where it still stands in a queue it is skipped
