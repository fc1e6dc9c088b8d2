"""Jobs over many runs: executed by the owner of the job's group, a page in a commit.

    stored ── nudge, sweep ──▶ page: runs locked, commands written, cursor moved: one commit ──▶ owners nudged ─┐
                                ▲                                        completed, or cancelled ◀── last one ──┤
                                └───────────────────────────────────────────────────────────── there is more ───┘

Whoever dies leaves the cursor of the last commit, and the next owner of the group goes on there. The loop serves one
page of each job in turn, so a long one holds up no other. When it dies the service stops.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from flint_bus import Bus
from flint_contracts.gen.flint.runs.v1 import control_pb2
from flint_ops.logging import get_logger
from flint_rpc.errors import Refused, status_proto
from flint_scheduler.control.applying import Applied, apply
from flint_scheduler.control.signals import SignalDesk
from flint_scheduler.holdings import Holdings
from flint_scheduler.nudges import nudge_inboxes
from flint_scheduler.record import Record, RecordUnavailable
from flint_store.batches import BatchRow, advance, lock_batch, read_page
from flint_store.engine import transaction
from flint_store.fence import Fenced, OwnerSession

__all__ = ["BatchDesk"]

log = get_logger(__name__)

_PAGE = 500
_PAGE_OF_RESETS = 50  # each reads a part of its run's record
_REFUSALS = 20
_RETRY_S = 1.0


class BatchDesk:
    """Executes jobs for the groups of one scheduler."""

    def __init__(self, record: Record, bus: Bus, holdings: Holdings, signals: SignalDesk) -> None:
        self._record = record
        self._bus = bus
        self._holdings = holdings
        self._signals = signals
        self._wanted: OrderedDict[bytes, None] = OrderedDict()
        self._wake = asyncio.Event()

    def look_at(self, batch_ids: Iterable[bytes]) -> None:
        """These jobs of mine are at work."""
        for batch_id in batch_ids:
            self._wanted.setdefault(batch_id)
        self._wake.set()

    async def run(self) -> None:
        """A page of each job in turn, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._wanted:
                batch_id, _ = self._wanted.popitem(last=False)
                try:
                    if await self._step(batch_id):
                        self._wanted[batch_id] = None
                except RecordUnavailable as error:
                    log.warning("batch_waits_for_postgresql", error=str(error))
                    self._wanted[batch_id] = None
                    await asyncio.sleep(_RETRY_S)
                except Fenced as fenced:
                    self._holdings.fenced(fenced.session)

    async def _step(self, batch_id: bytes) -> bool:
        """One page; whether there is more to do."""
        session = self._holdings.session
        if session is None:
            return False
        applied, more = await self._record.transaction(partial(self._page, session=session, batch_id=batch_id))
        nudge_inboxes(self._bus, applied.targets)
        if applied.signalled:
            with contextlib.suppress(RecordUnavailable):  # the sweep offers them too
                await self._signals.offer(applied.signalled)
        return more

    async def _page(self, engine: AsyncEngine, session: OwnerSession, batch_id: bytes) -> tuple[Applied, bool]:
        async with transaction(engine) as connection:
            batch = await lock_batch(connection, session, batch_id)
            if batch is None:
                return Applied(), False
            action = batch.message.action
            page = await read_page(connection, batch, _PAGE_OF_RESETS if action.HasField("reset") else _PAGE)
            applied = Applied()
            if page.matching:
                applied = await apply(connection, batch.namespace, page.matching, action, str(UUID(bytes=batch_id)))
                _note_refusals(batch, applied.refused)
            done = len(page.matching) - len(applied.refused)
            await advance(connection, batch, page.cursor, len(page.matching), done)
            return applied, page.cursor is not None


def _note_refusals(batch: BatchRow, refused: dict[bytes, Refused]) -> None:
    for run_id, refusal in refused.items():
        if len(batch.message.refusals) >= _REFUSALS:
            return
        batch.message.refusals.append(
            control_pb2.BatchRefusal(
                run=f"namespaces/{batch.namespace}/runs/{UUID(bytes=run_id)}", error=status_proto(refusal)
            )
        )
