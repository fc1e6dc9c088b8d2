"""Events to the runs that listen: the matching of what arrives, and the awaits of kind EVENTS.

Two ways lead to a run's inbox, and each begins after a commit of its own (`flint_store.events` says why that misses
nothing):

    arrived ──▶ queue ──▶ shapes of its namespace and type ──▶ subscriptions ──▶ inboxes ──▶ event.matched
    opened  ──▶ subscriptions committed ──▶ events received since the await was opened ──▶ inboxes, served: one commit

The queue is memory: what does not fit, or was in it when the process died, is found by the sweep of any scheduler. The
key of a message is made of event and await, so both ways may bring the same thing; what arrives waits for the catch-up
of an await, and for earlier events, so that the order is that of arrival. When the loop dies the service
stops.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import orjson
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from flint_bus import Bus
from flint_core.events import Received, decode_events
from flint_ops.clock import now_ms
from flint_ops.config import EventSettings
from flint_ops.logging import get_logger
from flint_scheduler.event_matching import Filter, ShapeBook, split_filters
from flint_scheduler.metrics import EVENTS
from flint_scheduler.nudges import nudge_inboxes
from flint_scheduler.record import Record, RecordUnavailable
from flint_store import events as store
from flint_store.awaits import AwaitRow, NewMessage, Target, put_messages, settle_opened
from flint_store.engine import transaction
from flint_store.events import EventRow, Shape, Subscription

__all__ = ["Arrival", "EventDelivery", "SignalListener", "event_number"]

log = get_logger(__name__)

_BATCH: Final = 500  # events matched at a time
_QUEUED: Final = 10_000
_PAGE: Final = 2_000  # subscriptions read at a time
_MESSAGES: Final = 1_000  # in one commit
_MESSAGE_BYTES: Final = 8 * 2**20  # in one commit
_CATCH_UP_PAGE: Final = 200
_ENTRIES_LOOKED_AT: Final = 50  # of a run's record, the newest
_KEY_PREFIX: Final = "event/"
_LANE: Final = "matching"
_CLEAN_S: Final = 30.0
_CLEAN_LIMIT: Final = 5_000
_CLEAN_ROUNDS: Final = 20
_EVALUATIONS: Final = 2_000  # before others get a turn


class Arrival(NamedTuple):
    """A stored event, parsed."""

    row: EventRow
    content: dict[str, Any]


class _Waiting(NamedTuple):
    """An await, and since when events are for it."""

    row: AwaitRow
    since: datetime


class SignalListener(Protocol):
    """Who offers signals to runs that listen. Raises RecordUnavailable."""

    async def opened(self, rows: Sequence[AwaitRow]) -> None:
        """These awaits of kind EVENTS are open."""

    async def closed(self, rows: Sequence[AwaitRow]) -> None:
        """These are over."""


class EventDelivery:
    """Serves awaits of kind EVENTS (`flint_scheduler.awaits.Handler`), and matches what the event desk stored."""

    def __init__(self, record: Record, bus: Bus, settings: EventSettings, sweep_s: float) -> None:
        self._record = record
        self._bus = bus
        self._settings = settings
        self._sweep_s = sweep_s
        self._book = ShapeBook()
        self._queue: deque[Arrival] = deque()
        self._wake = asyncio.Event()
        self.signals: SignalListener | None = None

    def arrived(self, arrivals: Iterable[Arrival]) -> None:
        """Events were stored: hand them to those who listen."""
        for arrival in arrivals:
            if len(self._queue) >= _QUEUED:
                EVENTS.labels("left_to_sweep").inc()
                continue
            self._queue.append(arrival)
        self._wake.set()

    # -- what arrives --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Match what arrives, sweep for what was not matched, delete what is old; for ever."""
        loop = asyncio.get_running_loop()
        swept_at = cleaned_at = loop.time()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, swept_at + self._sweep_s - loop.time())):
                    await self._wake.wait()
            self._wake.clear()
            try:
                while self._queue:
                    batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
                    await self._match_through(batch)
                if loop.time() >= swept_at + self._sweep_s:
                    swept_at = loop.time()
                    await self.sweep()
                if loop.time() >= cleaned_at + _CLEAN_S:
                    cleaned_at = loop.time()
                    await self.clean()
            except RecordUnavailable as error:
                log.warning("events_wait_for_postgresql", error=str(error))
                swept_at = loop.time()  # what was taken from the queue is the sweep's now

    async def _match_through(self, batch: Sequence[Arrival]) -> None:
        """Match these and what was stored before them, in order; not what others have matched meanwhile."""
        own = {arrival.row.seq: arrival for arrival in batch}
        namespaces = {arrival.row.namespace for arrival in batch}
        while True:
            rows = await self._record.lane(_LANE, lambda c: store.read_earlier(c, namespaces, max(own), _BATCH))
            if rows:
                await self.match([own.get(row.seq) or Arrival(row, orjson.loads(row.content)) for row in rows])
            if len(rows) < _BATCH:
                return

    async def sweep(self) -> None:
        """Finish the matching of events whose scheduler did not come to it."""
        while True:
            rows = await self._record.read(lambda c: store.read_unmatched(c, self._sweep_s, _BATCH))
            if rows:
                log.info("events_swept", events=len(rows))
                await self.match([Arrival(row, orjson.loads(row.content)) for row in rows])
            if len(rows) < _BATCH:
                return

    async def clean(self) -> None:
        """Delete events that were kept for long enough, and shapes that nobody uses."""
        for _ in range(_CLEAN_ROUNDS):
            count = await self._record.read(lambda c: store.delete_old_events(c, self._settings.keep_s, _CLEAN_LIMIT))
            if count < _CLEAN_LIMIT:
                break
        await self._record.read(store.delete_unused_shapes)

    async def match(self, arrivals: Sequence[Arrival]) -> None:
        """Put events into the inboxes of those who may wait for them. Raises RecordUnavailable; may be repeated."""
        kinds = {(a.row.namespace, kind) for a in arrivals for kind in (a.row.type, "")}
        shapes: dict[tuple[str, str], list[Shape]] = {}
        for shape in await self._record.lane(_LANE, lambda c: store.read_shapes(c, kinds)):
            shapes.setdefault((shape.namespace, shape.type), []).append(shape)
        asked: list[tuple[int, str, bytes, bytes]] = []
        if shapes:
            at_ms, evaluated = now_ms(), 0
            for place, arrival in enumerate(arrivals):
                row = arrival.row
                of_type = shapes.get((row.namespace, row.type), [])
                of_any = shapes.get((row.namespace, ""), [])
                for shape, match in self._book.matches(arrival.content, [*of_type, *of_any], at_ms):
                    asked.append((place, row.namespace, shape.shape, match))
                evaluated += len(of_type) + len(of_any)
                if evaluated >= _EVALUATIONS:
                    evaluated = 0
                    await asyncio.sleep(0)
        after = (bytes(16), "")
        while asked:
            found = await self._record.lane(_LANE, partial(store.find_matches, asked=asked, limit=_PAGE, after=after))
            # The rows of an await may be cut by the page's end: they are read again with the next one.
            last = (found[-1].run_id, found[-1].await_key) if len(found) == _PAGE else None
            whole = [m for m in found if last is None or (m.run_id, m.await_key) != last]
            opening = {(m.run_id, m.await_key) for m in whole if not m.served}
            if opening:
                opening -= await self._record.lane(_LANE, partial(store.read_caught_up, awaits=opening))
            places = sorted({m.place for m in whole})
            seqs = [arrivals[place].row.seq for place in places]
            # Another scheduler may have come to them too: runs must not get again what they took from it.
            left = await self._record.lane(_LANE, partial(store.still_unmatched, seqs=seqs)) if seqs else set()
            await self._deliver(
                [
                    _message(arrivals[m.place].row, m.run_id, m.await_key)
                    for m in sorted(whole, key=lambda m: m.place)
                    if (m.run_id, m.await_key) not in opening  # their catch-up finds these events
                    and arrivals[m.place].row.seq in left
                ]
            )
            if last is None:
                break
            after = (whole[-1].run_id, whole[-1].await_key)
        await self._record.lane(_LANE, lambda c: store.mark_matched(c, [a.row.seq for a in arrivals]))

    async def _deliver(self, messages: Sequence[NewMessage]) -> None:
        """Put messages into inboxes, in commits of bounded size, and tell the owners."""
        for part in _parts(messages):
            targets = await self._record.lane(_LANE, partial(put_messages, messages=part))
            EVENTS.labels("delivered").inc(len(part))
            nudge_inboxes(self._bus, targets)

    # -- awaits --------------------------------------------------------------------------------------------------------

    async def opened(self, rows: Sequence[AwaitRow]) -> Iterable[AwaitRow]:
        """Subscribe, then look at the events received since the awaits were opened."""
        if self.signals is not None:
            await self.signals.opened(rows)
        filters: dict[tuple[bytes, str], list[Filter]] = {}
        for row in rows:
            filters[row.run_id, row.key] = split_filters(row.namespace, orjson.loads(row.request))
        shapes = {f.shape: None for found in filters.values() for f in found}
        await self._record.lane(_LANE, lambda c: store.put_shapes(c, list(shapes)))
        subscriptions = [
            Subscription(run_id, key, number, f.shape.shape, f.match)
            for (run_id, key), found in filters.items()
            for number, f in enumerate(found)
        ]
        alive = await self._record.lane(_LANE, lambda c: store.put_subscriptions(c, rows, subscriptions))
        slack = timedelta(seconds=self._settings.clock_slack_s)
        namespaces: dict[str, list[_Waiting]] = {}
        for row in rows:
            recorded_at = alive.get((row.run_id, row.key))
            if recorded_at is not None:
                # opened_at is the worker's clock; the record's own moment bounds one that is fast.
                since = min(row.opened_at, recorded_at) - slack
                namespaces.setdefault(row.namespace, []).append(_Waiting(row, since))
        for namespace, mine in namespaces.items():
            work = partial(self._catch_up, namespace=namespace, awaits=mine, filters=filters)
            targets, count = await self._record.transaction(work)
            EVENTS.labels("delivered").inc(count)
            nudge_inboxes(self._bus, targets)
        return ()

    async def _catch_up(
        self,
        engine: AsyncEngine,
        namespace: str,
        awaits: Sequence[_Waiting],
        filters: dict[tuple[bytes, str], list[Filter]],
    ) -> tuple[list[Target], int]:
        """Deliver what came before and mark the awaits served: one commit. Answers whom to nudge, and how much it was.

        The lag of the agent bounds what there is to read: events are not stored while no scheduler runs.
        """
        async with transaction(engine) as connection:
            mine = await store.begin_catch_up(connection, [(w.row.run_id, w.row.key) for w in awaits])
            left = [w for w in awaits if (w.row.run_id, w.row.key) in mine]
            if not left:
                return [], 0
            delivered = await self._deliver_earlier(connection, namespace, left, filters)
            await settle_opened(connection, [w.row for w in left])
        return delivered

    async def _deliver_earlier(
        self,
        connection: AsyncConnection,
        namespace: str,
        awaits: Sequence[_Waiting],
        filters: dict[tuple[bytes, str], list[Filter]],
    ) -> tuple[list[Target], int]:
        targets: dict[Target, None] = {}
        count = 0
        since = min(w.since for w in awaits)
        waiting: dict[tuple[bytes, bytes], list[_Waiting]] = {}
        shapes: dict[Shape, None] = {}
        for one in awaits:
            for found in filters[one.row.run_id, one.row.key]:
                shapes[found.shape] = None
                waiting.setdefault((found.shape.shape, found.match), []).append(one)
        kinds = {shape.type for shape in shapes}
        types = None if "" in kinds else kinds
        at_ms = now_ms()
        after: EventRow | None = None
        while True:
            events = await store.read_events_since(connection, namespace, since, types, after, _CATCH_UP_PAGE)
            hits: dict[tuple[bytes, str], tuple[EventRow, AwaitRow]] = {}
            for event in events:
                for shape, match in self._book.matches(orjson.loads(event.content), shapes, at_ms):
                    for one in waiting.get((shape.shape, match), ()):
                        if event.received_at >= one.since:
                            hits[one.row.run_id, _key(event.seq, one.row.key)] = (event, one.row)
            if hits:
                for part in _parts(await self._unseen(connection, list(hits.values()))):
                    targets |= dict.fromkeys(await put_messages(connection, part))
                    count += len(part)
            if len(events) < _CATCH_UP_PAGE:
                return list(targets), count
            after = events[-1]

    async def _unseen(self, connection: AsyncConnection, hits: Sequence[tuple[EventRow, AwaitRow]]) -> list[NewMessage]:
        """Messages for those events that had not reached the run before its await was opened.

        A run that listens again and again must not get the event that it has just handled once more, however little
        time there is between the two.
        """
        run_ids = {row.run_id for _, row in hits}
        entries = await store.read_last_events(connection, run_ids, _ENTRIES_LOOKED_AT)
        seen: dict[tuple[bytes, str], int] = {}
        for run_id, data in entries:
            for happened in decode_events(data):
                if isinstance(happened, Received) and happened.key.startswith(_KEY_PREFIX):
                    name = run_id, happened.key.split("/")[1]
                    seen[name] = min(happened.at_ms, seen.get(name, happened.at_ms))
        messages = []
        for event, row in hits:
            at_ms = seen.get((row.run_id, str(event.seq)))
            if at_ms is None or at_ms > row.opened_at.timestamp() * 1000:
                messages.append(_message(event, row.run_id, row.key))
        return messages

    async def closed(self, rows: Sequence[AwaitRow]) -> Iterable[AwaitRow]:
        """Unsubscribe."""
        await self._record.lane(_LANE, lambda c: store.remove_subscriptions(c, rows))
        if self.signals is not None:
            await self.signals.closed(rows)
        return ()


def _key(seq: int, await_key: str) -> str:
    return f"{_KEY_PREFIX}{seq}/{await_key}"


def event_number(message_key: str) -> int:
    """The number of the event that a message with this key brings: in a namespace, the order of storing."""
    return int(message_key.split("/")[1])


def _parts(messages: Sequence[NewMessage]) -> Iterator[list[NewMessage]]:
    """Messages in parts of bounded size, each for one statement."""
    part: list[NewMessage] = []
    size = 0
    for message in messages:
        if part and (len(part) >= _MESSAGES or size + len(message.payload) > _MESSAGE_BYTES):
            yield part
            part, size = [], 0
        part.append(message)
        size += len(message.payload)
    if part:
        yield part


def _message(event: EventRow, run_id: bytes, await_key: str) -> NewMessage:
    return NewMessage(run_id, _key(event.seq, await_key), await_key, event.content)
