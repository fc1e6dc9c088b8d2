"""Events, approvals and lifecycle events of one scheduler: the part of the composition root that wires them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from flint_bus import Bus
from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_contracts.gen.flint.scheduling.v1 import events_pb2, events_pb2_grpc
from flint_ops.config import Settings
from flint_rpc.server import Service
from flint_scheduler.announce import Announcer
from flint_scheduler.approvals import ApprovalDesk
from flint_scheduler.awaits import Agent
from flint_scheduler.event_delivery import EventDelivery, SignalListener
from flint_scheduler.event_servicer import EventStoreServicer
from flint_scheduler.events import EventDesk
from flint_scheduler.lifecycle_events import LifecycleFeed
from flint_scheduler.record import Record

__all__ = ["EVENTING_LANES", "Eventing"]

EVENTING_LANES = 2  # events, matching: connections of the record's


class Eventing:
    """Built by the composition root: `services` to serve, then `open`, then `spawn`."""

    def __init__(
        self, settings: Settings, record: Record, engine: AsyncEngine, bus: Bus, agent: Agent, announcer: Announcer
    ) -> None:
        sweep_s = settings.scheduler.sweep_interval_s
        self._delivery = EventDelivery(record, bus, settings.events, sweep_s)
        self._desk = EventDesk(record, bus, self._delivery, settings)
        self._approvals = ApprovalDesk(record, engine, bus, self._delivery, sweep_s)
        self._feed = LifecycleFeed(
            bus, settings.events.lifecycle, self._desk if settings.events.lifecycle_to_listen else None
        )
        announcer.feed = self._feed
        agent.serve(journal_pb2.AwaitOpened.KIND_EVENTS, self._delivery)
        agent.serve(journal_pb2.AwaitOpened.KIND_APPROVAL, self._approvals)
        self.services = [
            Service(
                events_pb2.DESCRIPTOR.services_by_name["EventStoreService"],
                events_pb2_grpc.add_EventStoreServiceServicer_to_server,
                EventStoreServicer(self._desk, record, settings.limits.message_bytes),
            ),
            Service(
                events_pb2.DESCRIPTOR.services_by_name["ApprovalStoreService"],
                events_pb2_grpc.add_ApprovalStoreServiceServicer_to_server,
                self._approvals,
            ),
        ]

    async def store(self, request: events_pb2.StoreEventsRequest) -> events_pb2.StoreEventsResponse:
        """Store events and hand them to those who listen. Raises `Refused`."""
        return await self._desk.store(request)

    def hear_signals(self, signals: SignalListener) -> None:
        """Signals are offered to runs that listen, too."""
        self._delivery.signals = signals

    async def open(self) -> None:
        """Begin to hear workers and gateways."""
        await self._desk.open()
        await self._feed.open()

    def spawn(self, spawn: Callable[[str, Coroutine[Any, Any, Any]], None]) -> None:
        """Start the loops, each by the root's own means."""
        spawn("events", self._desk.run())
        spawn("matching", self._delivery.run())
        spawn("escalation", self._approvals.run())
        spawn("lifecycle", self._feed.run())
