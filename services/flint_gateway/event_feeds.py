"""Feeds: the events of a namespace, read once for all who follow them here.

A feed lives while somebody follows its namespace. States: STARTING (subscribes, then asks for the newest place) →
FOLLOWING (reads on when schedulers say that events were stored, and every few seconds in case a message was lost) →
ENDED (with its last follower, or this gateway). What was read lately is kept in a window, bounded in number and bytes;
a follower that is behind it reads the record itself until it has caught up: a slow reader costs nobody else anything.

Lifecycle events are pushed by schedulers while a gateway says that somebody follows them, and are kept by nobody: each
follower has a bounded queue, and counts what did not fit.

When a feed's task dies (only of a defect) the gateway stops in order; the clients go on at another one.
"""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from flint_bus.bus import Bus
from flint_bus.messages import Message
from flint_bus.subjects import LIFECYCLE_INTEREST, OWNERS, events_stored_subject, lifecycle_subject
from flint_bus.subscription import Subscription
from flint_contracts.gen.flint.scheduling.v1 import events_pb2
from flint_core.cloud_events import LIFECYCLE_PREFIX
from flint_gateway.watching import stopping
from flint_ops.logging import get_logger
from flint_rpc.errors import Refused
from flint_rpc.upstream import Client

if TYPE_CHECKING:
    from flint_contracts.gen.flint.scheduling.v1.events_pb2_grpc import EventStoreServiceAsyncStub

__all__ = ["Batch", "EventFeeds", "Feed", "Filters", "Follower", "Place", "parse_place"]

log = get_logger(__name__)

_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 5.0
_INTEREST_S: Final = 20.0
_FAILED_S: Final = 1.0
_LATE_S: Final = 5.0  # a place that was told is read by then, or given up until the next poll
_PAGE: Final = 500
_WINDOW: Final = 2_000
_WINDOW_BYTES: Final = 8 * 2**20
_BATCH: Final = 500
_BATCH_BYTES: Final = 2**20
_LIFECYCLE_QUEUE: Final = 5_000

Place = tuple[int, int]
"""Where an event stands in the order of its namespace."""


def parse_place(text: str) -> Place | None:
    """The place in a cursor, or None when the text is none."""
    xact, dot, seq = text.partition(".")
    if dot and xact.isascii() and xact.isdigit() and seq.isascii() and seq.isdigit() and len(text) <= 40:
        return int(xact), int(seq)
    return None


def _text(place: Place) -> str:
    return f"{place[0]}.{place[1]}"


class Filters(NamedTuple):
    """What a follower wants. Empty: everything."""

    prefixes: tuple[str, ...]
    sources: frozenset[str]
    lifecycle: bool

    @property
    def may_be_lifecycle(self) -> bool:
        """Whether lifecycle events can pass."""
        if not self.lifecycle:
            return False
        return not self.prefixes or any(
            p.startswith(LIFECYCLE_PREFIX) or LIFECYCLE_PREFIX.startswith(p) for p in self.prefixes
        )

    def passes(self, kind: str, source: str) -> bool:
        """Whether an event of this type and source is wanted."""
        return (not self.prefixes or kind.startswith(self.prefixes)) and (not self.sources or source in self.sources)


class _Event(NamedTuple):
    place: Place
    kind: str
    source: str
    content: bytes


class Batch(NamedTuple):
    """What came for a follower."""

    events: list[bytes]
    cursor: str
    dropped: int


class Follower:
    """One SubscribeEvents. Belongs to its RPC."""

    def __init__(self, feed: Feed, filters: Filters, place: Place) -> None:
        self._feed = feed
        self._filters = filters
        self._place = place
        self._lifecycle: deque[bytes] = deque()
        self._dropped = 0
        self.wake = asyncio.Event()
        self.wants_lifecycle = filters.may_be_lifecycle

    @property
    def cursor(self) -> str:
        """Where to go on."""
        return _text(self._place)

    def offer(self, event: _Event) -> None:
        """A lifecycle event, now."""
        if not self._filters.passes(event.kind, event.source):
            return
        if len(self._lifecycle) >= _LIFECYCLE_QUEUE:
            self._dropped += 1
        else:
            self._lifecycle.append(event.content)
        self.wake.set()

    async def next(self, timeout_s: float) -> Batch:
        """What there is, or an empty batch after the time. Raises `Refused`."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            self.wake.clear()
            events, size = self._take_lifecycle()
            found = await self._feed.after(self._place)
            for event in found:
                if events and (len(events) >= _BATCH or size + len(event.content) > _BATCH_BYTES):
                    break
                self._place = event.place
                if self._wanted(event):
                    events.append(event.content)
                    size += len(event.content)
            if events or self._dropped:
                dropped, self._dropped = self._dropped, 0
                return Batch(events, self.cursor, dropped)
            if found:
                continue  # none of these was wanted
            try:
                async with asyncio.timeout_at(deadline):
                    await self.wake.wait()
            except TimeoutError:
                return Batch([], self.cursor, 0)

    def _wanted(self, event: _Event) -> bool:
        # The engine's own ones, stored for `listen`, have been told live.
        own = event.kind.startswith(LIFECYCLE_PREFIX) and event.source.startswith("/namespaces/")
        return not own and self._filters.passes(event.kind, event.source)

    def _take_lifecycle(self) -> tuple[list[bytes], int]:
        events: list[bytes] = []
        size = 0
        while self._lifecycle and len(events) < _BATCH and size < _BATCH_BYTES:
            content = self._lifecycle.popleft()
            events.append(content)
            size += len(content)
        return events, size


class Feed:
    """One namespace; see the module."""

    def __init__(self, namespace: str, bus: Bus, client: Client[EventStoreServiceAsyncStub]) -> None:
        self.namespace = namespace
        self.followers: set[Follower] = set()
        self.users = 0
        self.tail: Place = (0, 0)
        self._bus = bus
        self._client = client
        self._floor: Place = (0, 0)  # the window holds everything after this place, up to the tail
        self._window: deque[_Event] = deque()
        self._window_bytes = 0
        self._told: Place = (0, 0)
        self._wake = asyncio.Event()
        self._subscriptions: list[Subscription] = []
        self._failure: Refused | None = None
        self.task: asyncio.Task[None] | None = None
        self.ready: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Subscribe, find the newest place, begin to read. Raises `Refused`."""
        self._subscriptions = [
            await self._bus.subscribe(events_stored_subject(self.namespace), self._stored),
            await self._bus.subscribe(lifecycle_subject(self.namespace), self._lifecycle),
        ]
        response = await self._client.call(
            lambda stub: stub.ReadEvents,
            events_pb2.ReadEventsRequest(namespace=self.namespace, limit=1),
            _TIMEOUT_S,
        )
        self.tail = self._floor = parse_place(response.place) or (0, 0)
        self.task = asyncio.create_task(self._follow(), name=f"event-feed-{self.namespace}")

    async def close(self, failure: Refused | None = None) -> None:
        """End it; followers that are left are told `failure`."""
        self._failure = failure or self._failure
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        for subscription in self._subscriptions:
            await subscription.close()
        self._notify()

    @property
    def wants_lifecycle(self) -> bool:
        """Whether anybody follows lifecycle events."""
        return any(follower.wants_lifecycle for follower in self.followers)

    async def after(self, place: Place) -> list[_Event]:
        """Events after a place: from the window, or read for a follower that is behind it."""
        if self._failure is not None:
            raise self._failure
        if place >= self.tail:
            return []
        if place >= self._floor:
            begin = bisect_right(self._window, place, key=lambda event: event.place)
            return [self._window[at] for at in range(begin, min(begin + _BATCH, len(self._window)))]
        events, _ = await self._read(place)
        return events

    # -- news ----------------------------------------------------------------------------------------------------------

    def _stored(self, message: Message) -> None:
        place = parse_place(events_pb2.EventsStored.FromString(message.data).place)
        if place is not None and place > self._told:
            self._told = place
            self._wake.set()

    def _lifecycle(self, message: Message) -> None:
        if not self.followers:
            return
        for content in events_pb2.LifecycleEvents.FromString(message.data).events:
            event = _event((0, 0), content)
            for follower in self.followers:
                if follower.wants_lifecycle:
                    follower.offer(event)

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self._wake.wait()
            self._wake.clear()
            give_up_at = loop.time() + _LATE_S
            pause = 0.002
            try:
                while True:
                    events, more = await self._read(self.tail)
                    self._keep(events)
                    if more:
                        continue
                    # An older transaction that is still open hides what was told: it is there in a moment.
                    if self.tail >= self._told or loop.time() >= give_up_at:
                        break
                    if not events:
                        await asyncio.sleep(pause)
                        pause = min(0.25, pause * 2)
            except Refused as error:
                log.info("events_not_read", namespace=self.namespace, error=str(error))
                await asyncio.sleep(_FAILED_S)
                self._wake.set()

    async def _read(self, place: Place) -> tuple[list[_Event], bool]:
        response = await self._client.call(
            lambda stub: stub.ReadEvents,
            events_pb2.ReadEventsRequest(namespace=self.namespace, after=_text(place), limit=_PAGE),
            _TIMEOUT_S,
        )
        return [_event(parse_place(e.place) or place, e.content) for e in response.events], response.more

    def _keep(self, events: list[_Event]) -> None:
        if not events:
            return
        for event in events:
            self._window.append(event)
            self._window_bytes += len(event.content)
        self.tail = events[-1].place
        while len(self._window) > _WINDOW or (self._window_bytes > _WINDOW_BYTES and len(self._window) > 1):
            gone = self._window.popleft()
            self._window_bytes -= len(gone.content)
            self._floor = gone.place
        self._notify()

    def _notify(self) -> None:
        for follower in self.followers:
            follower.wake.set()


class EventFeeds:
    """The feeds of one gateway. Belongs to one event loop."""

    def __init__(self, bus: Bus, client: Client[EventStoreServiceAsyncStub]) -> None:
        self._bus = bus
        self._client = client
        self._feeds: dict[str, Feed] = {}
        self._closed = False
        self._subscription: Subscription | None = None
        self._forget_reconnect: Callable[[], None] = lambda: None

    async def start(self) -> asyncio.Task[None]:
        """Begin; the task is for supervision and ended by whoever holds it."""
        self._subscription = await self._bus.subscribe(OWNERS, lambda message: self._interest())
        self._forget_reconnect = self._bus.on_reconnect(self._interest)
        return asyncio.create_task(self._renew(), name="lifecycle-interest")

    async def close(self) -> None:
        """Tell everybody who follows that this gateway stops."""
        self._closed = True
        self._forget_reconnect()
        if self._subscription is not None:
            await self._subscription.close()
        feeds, self._feeds = list(self._feeds.values()), {}
        for feed in feeds:
            await feed.close(stopping())

    @asynccontextmanager
    async def follow(self, namespace: str, filters: Filters, place: Place | None) -> AsyncIterator[Follower]:
        """A follower, from this place or from now. Raises `Refused`."""
        if self._closed:
            raise stopping()
        feed = self._feeds.get(namespace)
        if feed is None:
            feed = self._feeds[namespace] = Feed(namespace, self._bus, self._client)
            feed.ready = asyncio.create_task(feed.start(), name=f"event-feed-start-{namespace}")
        feed.users += 1
        follower: Follower | None = None
        try:
            if feed.ready is not None:
                await asyncio.shield(feed.ready)
            follower = Follower(feed, filters, feed.tail if place is None else place)
            feed.followers.add(follower)
            if follower.wants_lifecycle:
                self._interest()
            yield follower
        finally:
            feed.users -= 1
            if follower is not None:
                feed.followers.discard(follower)
            if not feed.users and self._feeds.get(namespace) is feed:
                del self._feeds[namespace]
                if feed.ready is not None and not feed.ready.done():
                    feed.ready.cancel()
                await feed.close()

    def _interest(self) -> None:
        namespaces = [feed.namespace for feed in self._feeds.values() if feed.wants_lifecycle]
        if namespaces:
            interest = events_pb2.LifecycleInterest(namespaces=namespaces)
            self._bus.publish_now(LIFECYCLE_INTEREST, interest.SerializeToString())

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_INTEREST_S)
            self._interest()
            for feed in self._feeds.values():
                if feed.task is not None and feed.task.done() and not feed.task.cancelled():
                    feed.task.result()  # a defect: this gateway stops in order


def _event(place: Place, content: bytes) -> _Event:
    try:
        attributes: Any = orjson.loads(content)
    except orjson.JSONDecodeError:
        attributes = {}
    return _Event(place, str(attributes.get("type", "")), str(attributes.get("source", "")), content)
