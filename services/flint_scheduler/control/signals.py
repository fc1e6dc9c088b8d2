"""Signals to the runs that listen: which open `listen` gets one.

A signal is offered to the open `listen` whose filters it may pass, the one opened first; the machine looks itself.
While none may take it, it is kept; each `listen` that opens, and each that closes without taking what it had, makes
the desk look again. Whoever dies in between leaves a mark that the sweep finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import orjson
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_bus import Bus
from flint_ops.clock import now_ms
from flint_scheduler.event_matching import ShapeBook, split_filters
from flint_scheduler.nudges import nudge_inboxes
from flint_scheduler.record import Record
from flint_store.awaits import AwaitRow, Target
from flint_store.engine import transaction
from flint_store.signals import OpenAwait, Signal, offer_signals, return_signals, runs_with_signals

__all__ = ["SignalDesk"]

_AT_ONCE = 200


class SignalDesk:
    """Offers signals; any scheduler may, for any run."""

    def __init__(self, record: Record, bus: Bus) -> None:
        self._record = record
        self._bus = bus
        self._book = ShapeBook()

    async def opened(self, rows: Sequence[AwaitRow]) -> None:
        """These runs listen now: they may have signals that came before. Raises RecordUnavailable."""
        run_ids = list({row.run_id for row in rows})
        waiting = await self._record.read(lambda c: runs_with_signals(c, run_ids))
        if waiting:
            await self.offer(waiting)

    async def closed(self, rows: Sequence[AwaitRow]) -> None:
        """These awaits are over: what they did not take is another's. Raises RecordUnavailable."""
        returned = await self._record.read(lambda c: return_signals(c, rows))
        if returned:
            await self.offer(returned)

    async def offer(self, run_ids: Sequence[bytes]) -> None:
        """Give the free signals of these runs to who may take them. Raises RecordUnavailable."""
        for at in range(0, len(run_ids), _AT_ONCE):
            part = run_ids[at : at + _AT_ONCE]
            more = True
            while more:
                targets, more = await self._record.transaction(partial(self._offer, run_ids=part))
                nudge_inboxes(self._bus, targets)

    async def _offer(self, engine: AsyncEngine, run_ids: Sequence[bytes]) -> tuple[list[Target], bool]:
        async with transaction(engine) as connection:
            return await offer_signals(connection, run_ids, self._choose, _AT_ONCE)

    def _choose(self, signal: Signal, awaits: Sequence[OpenAwait]) -> OpenAwait | None:
        event = orjson.loads(signal.event)
        fitting: OpenAwait | None = None
        for one in awaits:
            filters = split_filters(one.namespace, orjson.loads(one.request))
            shapes = [f.shape for f in filters]
            hits = set(self._book.matches(event, shapes, now_ms()))
            if any((f.shape, f.match) in hits for f in filters):
                if any(f.shape.type == event["type"] for f in filters):
                    return one
                fitting = fitting or one  # one that takes anything comes after those that name the signal
        return fitting
