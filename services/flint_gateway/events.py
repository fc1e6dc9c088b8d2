"""EventService: events in, and events as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

import grpc

from flint_contracts.gen.flint.events.v1 import events_pb2
from flint_contracts.gen.flint.events.v1.events_pb2_grpc import EventServiceServicer
from flint_contracts.gen.flint.scheduling.v1 import events_pb2 as scheduling_pb2
from flint_gateway.event_feeds import EventFeeds, Filters, parse_place
from flint_gateway.validation import check_json, namespace_of_parent
from flint_gateway.watching import Hub
from flint_ops.config import Settings
from flint_rpc.errors import FieldViolation, Refused, field_invalid, status_proto
from flint_rpc.upstream import Client

if TYPE_CHECKING:
    from flint_contracts.gen.flint.scheduling.v1.events_pb2_grpc import EventStoreServiceAsyncStub

__all__ = ["EventServicer"]

_TIMEOUT_S: Final = 15.0
_QUIET_S: Final = 15.0
_FILTERS: Final = 32
_PREFIX_CHARACTERS: Final = 256
_SOURCE_CHARACTERS: Final = 2048

Context = grpc.aio.ServicerContext[Any, Any]


class EventServicer(EventServiceServicer):
    """See the module. Callers are authenticated and authorised by the interceptor."""

    def __init__(
        self, client: Client[EventStoreServiceAsyncStub], feeds: EventFeeds, hub: Hub, settings: Settings
    ) -> None:
        self._client = client
        self._feeds = feeds
        self._hub = hub
        self._batch_size = settings.limits.batch_size

    async def PublishEvents(
        self, request: events_pb2.PublishEventsRequest, context: Context
    ) -> events_pb2.PublishEventsResponse:
        """Answers after the commit; each event succeeds or fails for itself."""
        namespace = namespace_of_parent(request.parent)
        count = len(request.events)
        if not 1 <= count <= self._batch_size:
            raise field_invalid(("events", f"must hold 1 to {self._batch_size} events, not {count}"))
        refused: dict[int, Refused] = {}
        sound: list[bytes] = []
        for place, data in enumerate(request.events):
            problem = check_json(data)
            if problem is None:
                sound.append(data)
            else:
                refused[place] = field_invalid((f"events[{place}]", problem))
        answers: list[events_pb2.PublishEventResult] = []
        if sound:
            inner = scheduling_pb2.StoreEventsRequest(namespace=namespace, events=sound)
            answers = list((await self._client.call(lambda stub: stub.StoreEvents, inner, _TIMEOUT_S)).results)
        stored = iter(answers)
        response = events_pb2.PublishEventsResponse()
        for place in range(count):
            if place in refused:
                response.results.add().error.CopyFrom(status_proto(refused[place]))
            else:
                response.results.append(next(stored))
        return response

    async def SubscribeEvents(
        self, request: events_pb2.SubscribeEventsRequest, context: Context
    ) -> AsyncIterator[events_pb2.SubscribeEventsResponse]:
        """An empty response when the subscription stands, then events, and an empty one each 15 s without any."""
        namespace = namespace_of_parent(request.parent)
        filters = _filters(request)
        place = None
        if request.cursor:
            place = parse_place(request.cursor)
            if place is None:
                raise field_invalid(("cursor", "was not issued by this method"))
        with self._hub.admit():
            async with self._feeds.follow(namespace, filters, place) as follower:
                yield events_pb2.SubscribeEventsResponse(cursor=follower.cursor)
                while True:
                    batch = await follower.next(_QUIET_S)
                    yield events_pb2.SubscribeEventsResponse(
                        events=batch.events, cursor=batch.cursor, dropped=batch.dropped
                    )


def _filters(request: events_pb2.SubscribeEventsRequest) -> Filters:
    violations: list[FieldViolation] = []
    for field, values, most in (
        ("type_prefixes", request.type_prefixes, _PREFIX_CHARACTERS),
        ("sources", request.sources, _SOURCE_CHARACTERS),
    ):
        if len(values) > _FILTERS:
            violations.append(FieldViolation(field, f"has more than {_FILTERS} entries"))
        violations += [
            FieldViolation(f"{field}[{index}]", f"must have 1 to {most} characters")
            for index, value in enumerate(values[:_FILTERS])
            if not 1 <= len(value) <= most
        ]
    if violations:
        raise field_invalid(*violations)
    return Filters(tuple(request.type_prefixes), frozenset(request.sources), not request.without_lifecycle)
