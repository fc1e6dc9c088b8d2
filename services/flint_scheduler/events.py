"""The event desk: stores what is published, answers, and hands it to the runs that listen.

    StoreEvents, flint.events.store ──▶ one commit for all that waits ──▶ answered ──▶ matched (`event_delivery`)
                                                                      └──▶ flint.events.stored.<namespace>

Any scheduler serves any namespace. Events are durable before the answer. Their matching is a second commit, so that an
event and a subscription that come at the same moment see each other (`flint_store.events`); when this process dies
between the two, or has too much to do, another one's sweep finishes it. The loop that stores is natural batching: what
arrives while a commit is under way shares the next one. When a loop dies the service stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import grpc
import orjson
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from flint_bus import Bus, BusError, Message
from flint_bus.subjects import EVENTS_STORE, events_stored_subject
from flint_contracts.gen.flint.events.v1 import events_pb2
from flint_contracts.gen.flint.scheduling.v1 import events_pb2 as pb
from flint_core.cloud_events import attribute_problems
from flint_core.sizes import VALUE_DEPTH, too_deep
from flint_ops.config import Settings
from flint_ops.logging import get_logger
from flint_rpc.errors import (
    ErrorReason,
    FieldViolation,
    Refused,
    component_unavailable,
    field_invalid,
    status_proto,
)
from flint_scheduler.control.applying import SIGNAL_TYPE
from flint_scheduler.event_delivery import Arrival, EventDelivery
from flint_scheduler.lane import Lane, LaneClosed
from flint_scheduler.metrics import EVENTS
from flint_scheduler.record import Record, RecordUnavailable
from flint_store.events import EventRow, NewEvent, known_namespaces, put_events, read_contents

__all__ = ["EventDesk"]

log = get_logger(__name__)

_BATCH: Final = 1000
_MOST_WAITING: Final = 20_000
_TRIES: Final = 4
_PAUSE_S: Final = 0.02
_AT_ONCE: Final = 8  # requests of workers that one scheduler serves at the same time


@dataclass(frozen=True, slots=True)
class _Parsed:
    """An event that can be stored."""

    new: NewEvent
    content: dict[str, Any]


@dataclass(slots=True)
class _Unit:
    events: list[_Parsed]
    done: asyncio.Future[tuple[dict[bytes, EventRow], set[str]]]


class EventDesk(Lane[_Unit]):
    """Stores events for gateways (`store`) and workers (over NATS)."""

    def __init__(self, record: Record, bus: Bus, delivery: EventDelivery, settings: Settings) -> None:
        super().__init__(_BATCH)
        self._record = record
        self._bus = bus
        self._delivery = delivery
        self._event_bytes = settings.events.event_bytes
        self._batch_size = settings.limits.batch_size
        self._waiting = 0

    async def open(self) -> None:
        """Answer workers. A subscription serves one message at a time, so there are several."""
        for _ in range(_AT_ONCE):
            await self._bus.subscribe(EVENTS_STORE, self._asked, queue="schedulers")

    async def store(self, request: pb.StoreEventsRequest) -> pb.StoreEventsResponse:
        """Store a batch; each event succeeds or fails for itself. Raises `Refused` when none could be stored."""
        count = len(request.events)
        if not 1 <= count <= self._batch_size:
            raise field_invalid(("events", f"must hold 1 to {self._batch_size} events, not {count}"))
        if self._waiting + count > _MOST_WAITING:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                ErrorReason.ERROR_REASON_QUEUE_FULL,
                f"{self._waiting} events wait to be stored already; try again later",
                retry_after_s=0.5,
            )
        results = [events_pb2.PublishEventResult() for _ in range(count)]
        parsed: dict[int, _Parsed] = {}
        for place, data in enumerate(request.events):
            found = self._parse(request.namespace, data, f"events[{place}]")
            if isinstance(found, _Parsed):
                parsed[place] = found
            else:
                results[place].error.CopyFrom(found)
        response = pb.StoreEventsResponse()
        if parsed:
            stored, known = await self._submit(list(parsed.values()))
            if request.namespace not in known:
                raise Refused(
                    grpc.StatusCode.NOT_FOUND,
                    ErrorReason.ERROR_REASON_NAMESPACE_NOT_FOUND,
                    f"there is no namespace {request.namespace!r}",
                )
            _fill(results, parsed, stored)
            if request.with_stored:
                await self._add_stored(response, request.namespace, parsed, stored, count)
        response.results.extend(results)
        return response

    def _parse(self, namespace: str, data: bytes, path: str) -> _Parsed | status_pb2.Status:
        if len(data) > self._event_bytes:
            refused = Refused(
                grpc.StatusCode.INVALID_ARGUMENT,
                ErrorReason.ERROR_REASON_PAYLOAD_TOO_LARGE,
                f"{path} has {len(data)} bytes; the limit is {self._event_bytes}",
                field_violations=[FieldViolation(path, f"has more than {self._event_bytes} bytes")],
                metadata={"limit_bytes": str(self._event_bytes), "bytes": str(len(data))},
            )
            return status_proto(refused)
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            return status_proto(field_invalid((path, f"is not JSON: {error}")))
        if too_deep(data):
            return status_proto(field_invalid((path, f"is nested too deeply: more than {VALUE_DEPTH} levels")))
        problems = list(attribute_problems(event))
        if not problems and event["type"].startswith(SIGNAL_TYPE):
            problems = [("type", f"begins with {SIGNAL_TYPE}: signals are for one run, and are sent to it")]
        if problems:
            found = [FieldViolation(f"{path}.{name}" if name else path, why) for name, why in problems]
            return status_proto(field_invalid(*found))
        if any(value is None for name, value in event.items() if name != "data"):
            event = {name: value for name, value in event.items() if value is not None or name == "data"}
            data = orjson.dumps(event)  # an attribute that is null is not there
        identity = blake2b(f"{event['source']}\0{event['id']}".encode(), digest_size=16).digest()
        return _Parsed(NewEvent(namespace, identity, event["type"], data), event)

    async def _submit(self, events: list[_Parsed]) -> tuple[dict[bytes, EventRow], set[str]]:
        unit = _Unit(events, asyncio.get_running_loop().create_future())
        self._waiting += len(events)
        try:
            self._put(unit)
            return await unit.done
        except RecordUnavailable as error:
            raise component_unavailable("PostgreSQL", str(error)) from error
        except LaneClosed as error:
            raise component_unavailable("this scheduler", "it is stopping") from error
        finally:
            self._waiting -= len(events)

    async def _add_stored(
        self,
        response: pb.StoreEventsResponse,
        namespace: str,
        parsed: dict[int, _Parsed],
        stored: dict[bytes, EventRow],
        count: int,
    ) -> None:
        """The stored text of events that had been stored before."""
        repeats = [p.new.identity for p in parsed.values() if _key(p.new) not in stored]
        if not repeats:
            return
        try:
            contents = await self._record.read(lambda c: read_contents(c, namespace, repeats))
        except RecordUnavailable as error:
            raise component_unavailable("PostgreSQL", str(error)) from error
        for place in range(count):
            response.stored.append(contents.get(parsed[place].new.identity, b"") if place in parsed else b"")

    # -- the lane ------------------------------------------------------------------------------------------------------

    def _weight(self, unit: _Unit) -> int:
        return len(unit.events)

    def _refuse(self, unit: _Unit, error: Exception) -> None:
        if not unit.done.done():
            unit.done.set_exception(error)

    async def _commit(self, batch: list[_Unit]) -> None:
        events = [event for unit in batch for event in unit.events]
        stored, place, known = await self._store([event.new for event in events])
        EVENTS.labels("stored").inc(len(stored))
        EVENTS.labels("repeated").inc(len(events) - len(stored))
        for unit in batch:
            if not unit.done.done():
                unit.done.set_result((stored, known))
        if not stored:
            return
        arrivals: dict[bytes, Arrival] = {}
        for event in events:
            key = _key(event.new)
            if key in stored and key not in arrivals:
                arrivals[key] = Arrival(stored[key], event.content)
        self._delivery.arrived(arrivals.values())
        for namespace in {row.namespace for row in stored.values()}:
            self._tell(namespace, place)

    async def _store(self, events: Sequence[NewEvent]) -> tuple[dict[bytes, EventRow], str, set[str]]:
        """One commit. Tried again when PostgreSQL is away for a moment, or two batches waited for each other."""
        namespaces = {event.namespace for event in events}
        for attempt in range(1, _TRIES + 1):
            try:
                known = await self._record.read(lambda c: known_namespaces(c, namespaces))
                stored, place = await self._record.lane("events", lambda c: put_events(c, events))
                return stored, place, known
            except RecordUnavailable:
                if attempt == _TRIES:
                    raise
                await asyncio.sleep(_PAUSE_S * attempt)
        raise AssertionError("unreachable")

    def _tell(self, namespace: str, place: str) -> None:
        try:
            self._bus.publish_now(events_stored_subject(namespace), pb.EventsStored(place=place).SerializeToString())
        except BusError as error:
            log.debug("events_not_told", error=str(error))  # followers look again by themselves

    # -- workers -------------------------------------------------------------------------------------------------------

    async def _asked(self, message: Message) -> None:
        request = pb.StoreEventsRequest()
        try:
            request.ParseFromString(message.data)
        except DecodeError:
            log.warning("store_events_undecodable")
            return
        try:
            response = await self.store(request)
        except Refused as refused:
            response = pb.StoreEventsResponse(refused=status_proto(refused))
        message.respond(response.SerializeToString())


def _key(event: NewEvent) -> bytes:
    return event.namespace.encode() + b"\0" + event.identity


def _fill(
    results: list[events_pb2.PublishEventResult], parsed: dict[int, _Parsed], stored: dict[bytes, EventRow]
) -> None:
    seen: set[bytes] = set()
    for place, event in parsed.items():
        key = _key(event.new)
        published = results[place].published
        published.id = event.content["id"]
        published.source = event.content["source"]
        published.created = key in stored and key not in seen
        seen.add(key)
