"""Run control of one scheduler: the part of the composition root that wires it, and its loop.

The loop sweeps with one small query, or at once when it is told: signals that nobody looked at, jobs at work, holds
that changed, failures to be counted, escalations to be told of. When it dies the service stops; all is in PostgreSQL.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from flint_bus import Bus
from flint_contracts.gen.flint.scheduling.v1 import control_pb2, control_pb2_grpc
from flint_ops.config import Settings
from flint_ops.logging import get_logger
from flint_rpc.errors import Refused
from flint_rpc.server import Service
from flint_scheduler.accept import Acceptor
from flint_scheduler.attention import Attention
from flint_scheduler.cards import RunCard
from flint_scheduler.clock import RecordClock
from flint_scheduler.control.batches import BatchDesk
from flint_scheduler.control.commander import Commander
from flint_scheduler.control.escalation import EscalationDesk
from flint_scheduler.control.holds import Holds
from flint_scheduler.control.record_desk import RecordDesk
from flint_scheduler.control.servicer import ControlServicer
from flint_scheduler.control.signals import SignalDesk
from flint_scheduler.dispatch import Dispatcher
from flint_scheduler.eventing import Eventing
from flint_scheduler.fold import Folder
from flint_scheduler.holdings import Holdings
from flint_scheduler.ready import ReadyQueue
from flint_scheduler.record import Record, RecordUnavailable
from flint_scheduler.recovery import Recovery
from flint_scheduler.timers import Timers
from flint_store.workflow_control import control_sweep

__all__ = ["CONTROL_LANES", "RunControl"]

CONTROL_LANES = 1  # control: a connection of the record's

log = get_logger(__name__)


class RunControl:
    """Built by the composition root: `services` to serve, then `open`, then `spawn`."""

    def __init__(
        self,
        settings: Settings,
        engine: AsyncEngine,
        record: Record,
        bus: Bus,
        holdings: Holdings,
        commander: Commander,
        holds: Holds,
        eventing: Eventing,
        clock: RecordClock,
    ) -> None:
        self.commander = commander
        self.holds = holds
        self._record = record
        self._holdings = holdings
        self._settings = settings
        self._sweep_s = settings.scheduler.sweep_interval_s
        self._signals = SignalDesk(record, bus)
        self._batches = BatchDesk(record, bus, holdings, self._signals)
        self._escalation = EscalationDesk(record, eventing.store)
        self._records = RecordDesk(record, bus)
        self._wake = asyncio.Event()
        eventing.hear_signals(self._signals)
        self._servicer = ControlServicer(
            engine,
            record,
            bus,
            self._signals,
            settings.cluster.shard_groups,
            settings.limits.batch_size,
            settings.limits.message_bytes,
            clock.now_ms,
        )
        self._escalation.on_held = self._servicer.tell_replicas
        self.services = [
            Service(
                control_pb2.DESCRIPTOR.services_by_name["ControlService"],
                control_pb2_grpc.add_ControlServiceServicer_to_server,
                self._servicer,
            )
        ]

    def attach(
        self,
        attention: Attention,
        folder: Folder,
        recovery: Recovery,
        dispatcher: Dispatcher,
        acceptor: Acceptor,
        queue: ReadyQueue,
        timers: Timers,
    ) -> None:
        """Wire it to the rooms that it calls, and that call it."""
        attention.on_commands = self.commander.serve
        attention.on_control = self.look_soon
        folder.on_drop = self.commander.drop_leg
        folder.on_paused = lambda card: attention.look_at((card.run_id,))
        folder.counts_failures = self.holds.counts
        folder.on_failures = self.look_soon
        recovery.cancel_grace_ms = int(self._settings.scheduler.cancel_grace_s * 1000)
        self.commander.on_ready = dispatcher.wake
        self.commander.on_waiting = timers.add
        dispatcher.holds = acceptor.holds = self.holds

        def released(card: RunCard) -> None:
            queue.push(card, card.ready_since)
            dispatcher.wake()

        self.holds.on_released = released

    async def open(self) -> None:
        """Begin to hear workers."""
        await self._records.open()

    def spawn(self, spawn: Callable[[str, Coroutine[Any, Any, Any]], None]) -> None:
        """Start the loops, each by the root's own means."""
        spawn("control", self.run())
        spawn("batches", self._batches.run())

    def look_soon(self) -> None:
        """Something changed: sweep at once."""
        self._wake.set()

    async def run(self) -> None:
        """Sweep every few seconds, for ever."""
        while True:
            try:
                await self._sweep()
            except RecordUnavailable as error:
                log.warning("control_waits_for_postgresql", error=str(error))
            except Refused as refused:
                log.warning("escalation_not_told", error=str(refused))  # with the next sweep
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._sweep_s):
                    await self._wake.wait()
            self._wake.clear()

    async def _sweep(self) -> None:
        groups = self._holdings.settled_groups()
        found = await self._record.read(partial(control_sweep, groups=groups))
        await self.holds.refresh(found.changed)
        if found.signals:
            await self._signals.offer(found.signals)
        if found.batches:
            self._batches.look_at(found.batches)
        if found.failures:
            await self._escalation.count()
            found.escalations = True
        if found.escalations:
            await self._escalation.tell()
