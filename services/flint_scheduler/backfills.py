"""Backfills: runs for the times of a past range, a few at a time, served by the owner of the schedule's shard group.

    asked for ──▶ its next times are started, as far as its concurrency leaves room ──▶ the row moves on
    one of its runs has ended ──▶ there is room again          none is left ──▶ done

It works beside the schedules, not among them: what fires now never waits for what is made up for. The starts have the
request ids of the schedule's own, and the row moves on only after they are stored (`flint_store.schedule_backfills`),
so whoever repeats a step starts nothing twice. What has to be looked at is told by nudges and by the owner's sweep.
When the loop dies the service stops; the rows remain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import Final

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.calendars import Calendar
from flint_core.schedule import local_moment, past_fires
from flint_ops.config import SchedulerSettings
from flint_ops.logging import get_logger
from flint_scheduler.accept import ENDED, Acceptor
from flint_scheduler.clock import RecordClock
from flint_scheduler.holdings import Holdings
from flint_scheduler.lane import LaneClosed
from flint_scheduler.metrics import SCHEDULES
from flint_scheduler.ready import ReadyQueue
from flint_scheduler.record import Record, RecordUnavailable
from flint_scheduler.schedule_starts import ScheduleStarts, StartImpossible
from flint_store import schedules as store
from flint_store.schedule_backfills import BackfillRow, Filled, move_backfill, open_backfills
from flint_store.schedule_calendars import calendar_rules
from flint_store.schedules import ScheduleRow

__all__ = ["Backfills"]

log = get_logger(__name__)

_BATCH: Final = 50  # schedules served at a time
_STEP: Final = 100  # times of one backfill in one step
_PASSED: Final = 1_000  # excluded times of one backfill that a step passes over
_AGAIN_S: Final = 1.0  # when there was no room, or the record did not answer
_LANE: Final = "backfills"


class Backfills:
    """Serves the backfills of the groups that one scheduler owns. Belongs to one event loop."""

    def __init__(
        self,
        record: Record,
        holdings: Holdings,
        acceptor: Acceptor,
        queue: ReadyQueue,
        clock: RecordClock,
        make: ScheduleStarts,
        settings: SchedulerSettings,
    ) -> None:
        self._clock = clock
        self._make = make
        self._record = record
        self._holdings = holdings
        self._acceptor = acceptor
        self._queue = queue
        self._room = settings.queue_limit // 2  # the rest is for what fires now
        self._ids: set[bytes] = set()
        self._wake = asyncio.Event()

    def look_at(self, schedule_ids: Iterable[bytes]) -> None:
        """These schedules have backfills under way, and something has changed."""
        self._ids.update(schedule_ids)
        if self._ids:
            self._wake.set()

    async def run(self) -> None:
        """Serve them, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch = {self._ids.pop() for _ in range(min(_BATCH, len(self._ids)))}
            try:
                await self._serve(batch)
            except (RecordUnavailable, LaneClosed) as error:
                log.warning("backfills_wait", error=str(error), schedules=len(batch))
                self._later(batch)
            if self._ids:
                self._wake.set()

    def _later(self, schedule_ids: Iterable[bytes]) -> None:
        asyncio.get_running_loop().call_later(_AGAIN_S, self.look_at, set(schedule_ids))

    async def _serve(self, schedule_ids: set[bytes]) -> None:
        rows = {
            row.schedule_id: row for row in await self._record.read(lambda c: store.read_schedules(c, schedule_ids))
        }
        mine = [key for key, row in rows.items() if row.filling and self._holdings.owns(row.group)]
        if not mine:
            return
        names = {(rows[key].namespace, name) for key in mine for name in rows[key].calendars}
        calendars = await self._record.read(lambda c: calendar_rules(c, names)) if names else {}
        for backfill in await self._record.read(lambda c: open_backfills(c, mine)):
            row = rows[backfill.schedule_id]
            await self._step(row, backfill, [calendars[key] for key in _names(row) if key in calendars])

    async def _step(self, row: ScheduleRow, backfill: BackfillRow, calendars: list[Calendar]) -> None:
        running = [run for run in backfill.running if run not in backfill.ended]
        moments, cursor_ms = _next_moments(row, backfill, calendars, backfill.concurrency - len(running))
        if moments and len(self._queue) + self._acceptor.waiting_starts + len(moments) > self._room:
            self._later([row.schedule_id])
            return
        now_ms = self._clock.now_ms()
        try:
            starts = [self._make.at(row, moment, now_ms) for moment in moments]
        except StartImpossible as error:  # now; there may be such a version again
            log.warning("backfill_waits", workflow=row.workflow_id, namespace=row.namespace, error=str(error))
            return
        ended = dict(backfill.ended)
        started = present = 0
        if starts:
            for answer in await self._acceptor.accept(starts, ""):
                # One that was created since is this backfill's own: whoever started it did not come to note it.
                own = answer.created or int(answer.created_at.timestamp() * 1000) >= backfill.created_ms
                started, present = started + own, present + (not own)
                if own and answer.state in ENDED:
                    ended[answer.run_id] = answer.state == runs_pb2.Run.STATE_SUCCEEDED
                elif own and answer.run_id not in running:
                    running.append(answer.run_id)
            SCHEDULES.labels("backfilled").inc(started)
        if not moments and cursor_ms == backfill.cursor_ms and not ended and (running or cursor_ms is not None):
            return  # all of them are still going on
        well = sum(ended.values())
        filled = Filled(backfill, cursor_ms, tuple(running), started, present, well, len(ended) - well)
        moved = await self._record.lane(_LANE, partial(move_backfill, filled=filled))
        # Runs may have ended before the row named them; and there may be room for more.
        if not moved or cursor_ms is not None or moments:
            self.look_at([row.schedule_id])


def _names(row: ScheduleRow) -> list[tuple[str, str]]:
    return [(row.namespace, name) for name in row.calendars]


def _next_moments(
    row: ScheduleRow, backfill: BackfillRow, calendars: list[Calendar], room: int
) -> tuple[list[int], int | None]:
    """The next times to be served, and the first one behind them; None: there is no other."""
    if backfill.cursor_ms is None or room <= 0:
        return [], backfill.cursor_ms
    found: list[int] = []
    times = past_fires(row.schedule, backfill.cursor_ms, backfill.until_ms, row.zone, row.since_ms)
    for moment in islice(times, _PASSED):
        if len(found) == min(room, _STEP):
            return found, moment
        if not any(calendar.excludes(local_moment(moment, row.zone)) for calendar in calendars):
            found.append(moment)
    return found, next(times, None)
