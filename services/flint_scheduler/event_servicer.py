"""EventStoreService: what gateways ask of a scheduler about events. Any replica answers."""

from __future__ import annotations

from typing import Any

import grpc

from flint_contracts.gen.flint.scheduling.v1 import events_pb2 as pb
from flint_contracts.gen.flint.scheduling.v1 import events_pb2_grpc
from flint_rpc.errors import component_unavailable, field_invalid
from flint_scheduler.events import EventDesk
from flint_scheduler.record import Record, RecordUnavailable
from flint_store import events as store

__all__ = ["EventStoreServicer"]

_MAX_PAGE = 1000

Context = grpc.aio.ServicerContext[Any, Any]


class EventStoreServicer(events_pb2_grpc.EventStoreServiceServicer):
    """See the module."""

    def __init__(self, desk: EventDesk, record: Record, message_bytes: int) -> None:
        self._desk = desk
        self._record = record
        self._budget = message_bytes - 65_536

    async def StoreEvents(self, request: pb.StoreEventsRequest, context: Context) -> pb.StoreEventsResponse:
        """Answers after the commit."""
        return await self._desk.store(request)

    async def ReadEvents(self, request: pb.ReadEventsRequest, context: Context) -> pb.ReadEventsResponse:
        """Events after a place, as many as fit a message; without a place, the place of the newest."""
        if not 1 <= request.limit <= _MAX_PAGE:
            raise field_invalid(("limit", f"must be 1 to {_MAX_PAGE}"))
        if request.after and store.parse_place(request.after) is None:
            raise field_invalid(("after", "is not the place of an event"))
        namespace, after, limit = request.namespace, request.after, request.limit
        try:
            if not after:
                return pb.ReadEventsResponse(place=await self._record.read(lambda c: store.last_place(c, namespace)))
            found = await self._record.read(lambda c: store.read_place(c, namespace, after, limit))
        except RecordUnavailable as error:
            raise component_unavailable("PostgreSQL", str(error)) from error
        response = pb.ReadEventsResponse(place=after)
        size = 0
        for event in found:
            size += len(event.content) + 64
            if response.events and size > self._budget:
                response.more = True
                break
            response.events.add(content=event.content, place=event.place)
            response.place = event.place
        response.more = response.more or len(found) == limit
        return response
