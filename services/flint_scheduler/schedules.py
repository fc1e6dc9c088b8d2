"""Schedules: workflows that start by themselves, served by the owner of their shard group.

    every, cron, after ── next_fire_at comes ──▶ start ──▶ the row advances
    after ── its run ends ──▶ next_fire_at = the end and the duration
    a time that waits for the run before, or to be the next ── no run ──▶ start ──▶ the row advances
    on ── events in its inbox ──▶ (all: claimed) ──▶ start ──▶ the events leave the inbox
       └─ that were stored while it was paused ──▶ they leave it, counted as missed

The start goes through the accept of every start, under a request id made of the schedule and the moment (or the
events), and the row moves on only after it: whoever repeats it, after a kill or beside the owner before, gets the same
run. What a schedule is waiting for stands in its row; memory holds only when to look at it, for those that are due
soon. The owner's sweep tells of them, and nudges do sooner.

When the loop dies the service stops; the rows remain.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import orjson

from flint_bus import Bus
from flint_bus.subjects import owner_subject
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_core.calendars import Calendar
from flint_core.durations import parse_duration
from flint_core.ids import group_of_run
from flint_core.schedule import local_moment
from flint_core.triggers import Trigger
from flint_ops.config import LimitSettings, SchedulerSettings
from flint_ops.logging import get_logger
from flint_scheduler.accept import Acceptor, NewStart
from flint_scheduler.clock import RecordClock
from flint_scheduler.event_delivery import event_number
from flint_scheduler.holdings import Holdings
from flint_scheduler.lane import LaneClosed
from flint_scheduler.metrics import SCHEDULES
from flint_scheduler.ready import ReadyQueue
from flint_scheduler.record import Record, RecordUnavailable
from flint_scheduler.schedule_judgement import judge
from flint_scheduler.schedule_starts import ScheduleStarts, StartImpossible
from flint_store import schedule_mail as mail
from flint_store import schedules as store
from flint_store.schedule_calendars import calendar_rules
from flint_store.schedule_mail import Mail
from flint_store.schedule_names import request_by_events, schedule_of
from flint_store.schedules import Advance, ScheduleRow
from flint_store.sweep import put_inbox

__all__ = ["Schedules", "nudge_schedule_of", "nudge_workflow"]

log = get_logger(__name__)

_BATCH: Final = 200  # schedules served at a time
_HELD: Final = 100_000  # in memory; the sweep tells of the others
_STARTS: Final = 1_000  # by time, stored together
_EVENTS: Final = 200  # of one schedule, started or looked at together
_COLLECTED: Final = 1_000  # events that `all` keeps while it waits for others
_AGAIN_MS: Final = 1_000  # when a start found no room, or the record did not answer
_LANE: Final = "schedules"


@dataclass(slots=True)
class _Start:
    """A start, and which time or events it is for."""

    row: ScheduleRow
    start: NewStart
    fired_ms: int | None = None
    keys: tuple[str, ...] = ()


class Schedules:
    """Serves the schedules of the groups that one scheduler owns. Belongs to one event loop."""

    def __init__(
        self,
        record: Record,
        holdings: Holdings,
        acceptor: Acceptor,
        queue: ReadyQueue,
        clock: RecordClock,
        bus: Bus,
        make: ScheduleStarts,
        settings: SchedulerSettings,
        limits: LimitSettings,
    ) -> None:
        self._make = make
        self.on_filling: Callable[[list[bytes]], None] = lambda schedule_ids: None
        self._bus = bus
        self._record = record
        self._holdings = holdings
        self._acceptor = acceptor
        self._queue = queue
        self._clock = clock
        self._queue_limit = settings.queue_limit
        self._catch_up_ms = int(settings.schedule_catch_up_s * 1000)
        self._horizon_ms = int(2 * settings.sweep_interval_s * 1000)
        self._limits = limits
        self._heap: list[tuple[int, bytes]] = []
        self._at: dict[bytes, int] = {}
        self._triggers: dict[bytes, Trigger] = {}
        self._wake = asyncio.Event()

    # -- when ----------------------------------------------------------------------------------------------------------

    def due(self, moments: Iterable[tuple[bytes, int]]) -> None:
        """Schedules that are to be looked at, and when (PostgreSQL's time, ms)."""
        for schedule_id, at_ms in moments:
            known = self._at.get(schedule_id)
            if (known is None and len(self._at) < _HELD) or (known is not None and at_ms < known):
                self._at[schedule_id] = at_ms
                heapq.heappush(self._heap, (at_ms, schedule_id))
                self._wake.set()

    def look_at(self, schedule_ids: Iterable[bytes]) -> None:
        """Something has come for these schedules, or their run has ended."""
        self.due((schedule_id, 0) for schedule_id in schedule_ids)

    async def run(self) -> None:
        """Start what is due, for ever."""
        while True:
            self._wake.clear()
            batch = self._take()
            if batch:
                try:
                    await self._serve(batch)
                except (RecordUnavailable, LaneClosed) as error:
                    log.warning("schedules_wait", error=str(error), schedules=len(batch))
                    again_ms = self._clock.now_ms() + _AGAIN_MS
                    self.due((schedule_id, again_ms) for schedule_id in batch)
                continue
            wait_s = max(0.001, (self._heap[0][0] - self._clock.now_ms()) / 1000) if self._heap else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    def _take(self) -> list[bytes]:
        now_ms = self._clock.now_ms()
        batch: list[bytes] = []
        while self._heap and self._heap[0][0] <= now_ms and len(batch) < _BATCH:
            at_ms, schedule_id = heapq.heappop(self._heap)
            if self._at.get(schedule_id) == at_ms:
                del self._at[schedule_id]
                batch.append(schedule_id)
        return batch

    def _again(self, row: ScheduleRow, at_ms: int | None) -> None:
        """Keep it in memory when it is due before the sweep tells of it."""
        if at_ms is not None and at_ms - self._clock.now_ms() <= self._horizon_ms:
            self.due([(row.schedule_id, at_ms)])

    # -- what ----------------------------------------------------------------------------------------------------------

    async def _serve(self, schedule_ids: list[bytes]) -> None:
        rows = await self._record.read(lambda c: store.read_schedules(c, schedule_ids))
        gone = set(schedule_ids) - {row.schedule_id for row in rows}
        if gone:
            for schedule_id in gone:
                self._triggers.pop(schedule_id, None)
            await self._record.read(lambda c: mail.delete_unowned(c, gone))
        rows = [row for row in rows if self._holdings.owns(row.group)]
        self.on_filling([row.schedule_id for row in rows if row.filling])
        names = {(row.namespace, name) for row in rows for name in row.calendars}
        calendars = await self._record.read(lambda c: calendar_rules(c, names)) if names else {}
        starts: list[_Start] = []
        steps: dict[bytes, Advance] = {}
        now_ms = self._clock.now_ms()
        for row in rows:
            if row.schedule.on is not None:
                starts += await self._by_events(row, now_ms)
            elif row.schedule.after is not None and row.next_ms is None:
                steps |= self._after_run(row)
            elif len(starts) >= _STARTS:
                self.look_at([row.schedule_id])
            else:
                await self._by_time(row, now_ms, calendars, starts, steps)
        late = await self._begin(starts, steps)
        if steps:
            await self._advance([step for key, step in steps.items() if key not in late])

    async def _advance(self, steps: list[Advance]) -> None:
        moved = await self._record.lane(_LANE, lambda c: store.advance(c, steps))
        for step in steps:
            if step.was.schedule_id not in moved or (step.held_ms is None) != (step.was.held_ms is None):
                self.look_at([step.was.schedule_id])
            else:
                self._again(step.was, step.next_ms)

    async def _by_time(
        self,
        row: ScheduleRow,
        now_ms: int,
        calendars: dict[tuple[str, str], Calendar],
        starts: list[_Start],
        steps: dict[bytes, Advance],
    ) -> None:
        named = [calendars[key] for name in row.calendars if (key := (row.namespace, name)) in calendars]

        def excluded(moment_ms: int) -> bool:
            return any(calendar.excludes(local_moment(moment_ms, row.zone)) for calendar in named)

        verdict = judge(row, now_ms, self._catch_up_ms, excluded)
        if verdict is None:
            self._again(row, row.next_ms)
            return
        for outcome in ("skipped", "missed", "excluded"):
            SCHEDULES.labels(outcome).inc(getattr(verdict, outcome))
        refused, why = 0, None
        try:
            starts += [_Start(row, self._make.at(row, moment, now_ms), moment) for moment in verdict.fire]
        except StartImpossible as error:
            refused, why = len(verdict.fire), str(error)
            SCHEDULES.labels("refused").inc(refused)
            log.warning("schedule_start_refused", workflow=row.workflow_id, namespace=row.namespace, error=why)
        if verdict.stop and row.last_run_id is not None:
            await self._stop(row.namespace, row.last_run_id, verdict.stop)
        steps[row.schedule_id] = Advance(
            row,
            verdict.next_ms,
            verdict.nominal_ms,
            verdict.held_ms,
            skipped=verdict.skipped,
            missed=verdict.missed,
            excluded=verdict.excluded,
            refused=refused,
            error=why,
        )

    async def _stop(self, namespace: str, run_id: bytes, how: str) -> None:
        """Make room for a time: a row in the inbox of the run, once."""
        why = b"its schedule starts the next run"
        known = await self._record.read(lambda c: put_inbox(c, namespace, [run_id], how, how, why))
        if run_id in known:
            nudge = dispatch_pb2.OwnerNudge(inbox=[run_id])
            self._bus.publish_now(owner_subject(known[run_id][0]), nudge.SerializeToString())

    def _after_run(self, row: ScheduleRow) -> dict[bytes, Advance]:
        if row.paused or row.schedule.after is None or row.last_ended_ms is None:
            return {}
        next_ms = parse_duration(row.schedule.after).after(row.last_ended_ms, row.zone)
        if row.schedule.end_ms is not None and next_ms > row.schedule.end_ms:
            return {}
        return {row.schedule_id: Advance(row, next_ms)}

    async def _begin(self, starts: Sequence[_Start], steps: dict[bytes, Advance]) -> set[bytes]:
        """Store the starts and note them in the steps. Events are settled here. Answers those that must wait."""
        if not starts:
            return set()
        if len(self._queue) + self._acceptor.waiting_starts + len(starts) > self._queue_limit:
            SCHEDULES.labels("later").inc(len(starts))
            again_ms = self._clock.now_ms() + _AGAIN_MS
            self.due((s.row.schedule_id, again_ms) for s in starts)
            return {s.row.schedule_id for s in starts}
        answers = await self._acceptor.accept([s.start for s in starts], "")
        events: dict[bytes, tuple[tuple[str, ...], bytes]] = {}
        for one, answer in zip(starts, answers, strict=True):
            SCHEDULES.labels("started" if answer.created else "repeated").inc()
            row = one.row
            if one.keys:
                keys, _ = events.get(row.schedule_id, ((), b""))
                events[row.schedule_id] = ((*keys, *one.keys), answer.run_id)
            else:
                step = steps[row.schedule_id]
                fresh = answer.run_id != row.last_run_id
                steps[row.schedule_id] = replace(
                    step, fired_ms=one.fired_ms, run_id=answer.run_id, started=step.started + fresh
                )
        for schedule_id, (keys, run_id) in events.items():
            settle = partial(mail.consume, schedule_id=schedule_id, keys=keys, run_id=run_id)
            await self._record.lane(_LANE, settle)
        self.look_at(events)  # there may be more
        return set()

    # -- events --------------------------------------------------------------------------------------------------------

    async def _by_events(self, row: ScheduleRow, now_ms: int) -> list[_Start]:
        """Starts for the events in the inbox: one for each, or for each complete set."""
        if row.claimed:
            # Whoever claimed them did not come to the end of it: the same start again, of the same events.
            claimed = await self._record.read(lambda c: mail.read_claimed(c, row.schedule_id, row.claimed))
            return self._of(row, {m.key: m for m in claimed}, [row.claimed])
        collects = "all" in row.schedule.on
        limit = _COLLECTED if collects else _EVENTS
        came = await self._record.read(lambda c: mail.read_mail(c, row.schedule_id, limit))
        if missed := [m.key for m in came if m.missed]:
            SCHEDULES.labels("missed").inc(len(missed))
            await self._record.lane(_LANE, lambda c: mail.miss(c, row.schedule_id, missed))
            if len(came) == limit:
                self.look_at([row.schedule_id])
        inbox = [m for m in came if not m.missed]
        trigger = self._triggers.get(row.schedule_id)
        if trigger is None:
            trigger = self._triggers[row.schedule_id] = Trigger(row.schedule.on)
        # As they were stored: what the agent catches up on may come to the inbox after what was published later.
        fresh = sorted((m for m in inbox if m.key not in row.consumed), key=lambda m: event_number(m.key))
        choice = trigger.choose([orjson.loads(m.content) for m in fresh], now_ms)
        useless = [m.key for m in inbox if m.key in row.consumed] + [fresh[i].key for i in choice.dropped]
        runs = choice.runs
        if collects and not runs and not useless and len(fresh) == _COLLECTED:
            log.warning("schedule_events_dropped", workflow=row.workflow_id, namespace=row.namespace)
            SCHEDULES.labels("events_dropped").inc(_COLLECTED // 10)
            useless = [m.key for m in fresh[: _COLLECTED // 10]]  # the oldest: what they lack has not come
        if useless:
            await self._record.lane(_LANE, lambda c: mail.drop_mail(c, row.schedule_id, useless))
            if len(inbox) == limit and not runs:
                self.look_at([row.schedule_id])
        chosen = [tuple(fresh[i].key for i in run) for run in runs]
        if collects and chosen:
            # One set at a time, and on record before it is started: another owner must not put together other ones.
            claim = partial(mail.claim, schedule_id=row.schedule_id, keys=chosen[0])
            if not await self._record.lane(_LANE, claim):
                self.look_at([row.schedule_id])
                return []
            chosen = chosen[:1]
        return self._of(row, {m.key: m for m in fresh}, chosen)

    def _of(self, row: ScheduleRow, inbox: dict[str, Mail], runs: Sequence[tuple[str, ...]]) -> list[_Start]:
        starts: list[_Start] = []
        for keys in runs:
            # Events that a claim names are in the inbox until the claim is settled.
            content = b"[" + b",".join(inbox[key].content for key in keys if key in inbox) + b"]"
            if len(keys) > 1 and len(content) > self._limits.payload_bytes:
                log.error("schedule_events_too_large", workflow=row.workflow_id, bytes=len(content))
                SCHEDULES.labels("too_large").inc()
                content = orjson.dumps([_head(inbox[key].content) for key in keys if key in inbox])
            request_id = request_by_events(row.schedule_id, keys)
            try:
                start = self._make.of(row, request_id, content, self._clock.now_ms())
            except StartImpossible as error:  # they wait; the workflow or the namespace may change
                log.error("schedule_start_refused", workflow=row.workflow_id, error=str(error))
                SCHEDULES.labels("refused").inc()
                continue
            starts.append(_Start(row, start, keys=keys))
        return starts


def _head(content: bytes) -> dict[str, Any]:
    """An event without its data: what of it can be told when it is too large to be an input."""
    event: dict[str, Any] = orjson.loads(content)
    return {name: value for name, value in event.items() if name not in ("data", "data_base64")}


# -- telling the owner -------------------------------------------------------------------------------------------------


def nudge_schedule_of(bus: Bus, groups: int, request_id: str) -> None:
    """A run has ended: tell the owner of the schedule that may wait for it. When it is lost, the sweep finds it."""
    schedule_id = schedule_of(request_id)
    if schedule_id is not None:
        nudge = dispatch_pb2.OwnerNudge(schedules=[schedule_id])
        bus.publish_now(owner_subject(group_of_run(schedule_id, groups)), nudge.SerializeToString())


def nudge_workflow(bus: Bus, groups: int, namespace: str, workflow_id: str) -> None:
    """Versions changed: let the owner of the workflow's schedule look for it. When it is lost, the sweep finds it."""
    group = store.group_of_workflow(namespace, workflow_id, groups)
    bus.publish_now(owner_subject(group), dispatch_pb2.OwnerNudge(workflows=True).SerializeToString())
