"""Schedules, backfills and what steers them, of one scheduler: the part of the composition root that wires them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from flint_bus import Bus
from flint_contracts.gen.flint.scheduling.v1 import schedules_pb2, schedules_pb2_grpc
from flint_ops.config import Settings
from flint_rpc.server import Service
from flint_scheduler.accept import Acceptor
from flint_scheduler.attention import Attention
from flint_scheduler.backfills import Backfills
from flint_scheduler.clock import RecordClock
from flint_scheduler.fold import Folder
from flint_scheduler.holdings import Holdings
from flint_scheduler.ready import ReadyQueue
from flint_scheduler.record import Record
from flint_scheduler.schedule_desk import ScheduleDesk
from flint_scheduler.schedule_starts import ScheduleStarts
from flint_scheduler.schedules import Schedules, nudge_schedule_of
from flint_scheduler.starts import LevelNamed

__all__ = ["TIMETABLE_LANES", "Timetable"]

TIMETABLE_LANES = 2  # schedules, backfills: connections of the record's


class Timetable:
    """Built by the composition root: `services` to serve, then `attach`, then `spawn`."""

    def __init__(
        self,
        settings: Settings,
        engine: AsyncEngine,
        record: Record,
        holdings: Holdings,
        acceptor: Acceptor,
        queue: ReadyQueue,
        clock: RecordClock,
        bus: Bus,
        levels: LevelNamed,
    ) -> None:
        mine = settings.scheduler
        self._bus = bus
        self._groups = settings.cluster.shard_groups
        make = ScheduleStarts(levels)
        self._schedules = Schedules(record, holdings, acceptor, queue, clock, bus, make, mine, settings.limits)
        self._backfills = Backfills(record, holdings, acceptor, queue, clock, make, mine)
        self._schedules.on_filling = self._backfills.look_at
        self.services = [
            Service(
                schedules_pb2.DESCRIPTOR.services_by_name["ScheduleStoreService"],
                schedules_pb2_grpc.add_ScheduleStoreServiceServicer_to_server,
                ScheduleDesk(settings, engine, record, acceptor, bus, clock, make),
            )
        ]

    def attach(self, attention: Attention, folder: Folder) -> None:
        """Hear what the sweep finds and what nudges tell, and which runs have ended."""
        attention.on_schedules = self._schedules.due
        attention.on_backfills = self._backfills.look_at
        folder.on_ended = partial(nudge_schedule_of, self._bus, self._groups)

    def spawn(self, spawn: Callable[[str, Coroutine[Any, Any, Any]], None]) -> None:
        """Start the loops, each by the root's own means."""
        spawn("schedules", self._schedules.run())
        spawn("backfills", self._backfills.run())
