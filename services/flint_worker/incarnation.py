"""One life of the worker between registering and losing or giving back its lease (R4).

States: OPEN (takes jobs, answers control requests, beats) → DRAINING (takes jobs only to give them back) → CLOSED, or
at once from OPEN to CLOSED when the lease lapses: every leg is dropped, nothing is appended any more. Never reused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from flint_bus import Bus, Subscription
from flint_bus.subjects import control_subject, job_subject
from flint_ops.config import WorkerSettings
from flint_ops.logging import get_logger
from flint_worker.control import Control
from flint_worker.intake import Intake
from flint_worker.lanes import Lanes
from flint_worker.lease import Lease
from flint_worker.leg import Leg, LegServices
from flint_worker.registration import Heartbeats, Registrar
from flint_worker.reporting import Hints
from flint_worker.table import LegTable

__all__ = ["Incarnation"]

_DROP_S: Final = 10.0

_log = get_logger("flint_worker.incarnation")


class Incarnation:
    """Everything that lives and ends with one lease."""

    def __init__(
        self,
        bus: Bus,
        settings: WorkerSettings,
        services: LegServices,
        registrar: Registrar,
        lease: Lease,
        interval_s: float,
    ) -> None:
        self._bus = bus
        self._registrar = registrar
        self._unfinished_calls: Callable[[], int] = lambda: services.caller.unfinished
        self.lease = lease
        self._lanes = Lanes(bus, lease)
        self.table = LegTable(lease.incarnation, settings.slots, lambda job: Leg(job, lease, services, self._lanes))
        self._control = Control(lease.incarnation, self.table)
        self._intake = Intake(bus, job_subject(settings.region, settings.pool, lease.incarnation), self.table)
        self._hints = Hints(bus, lambda: self.table.running, self.table.busy)
        self.drain_requested = asyncio.Event()
        """Set when the registry asked for it."""
        self._heartbeats = Heartbeats(
            registrar,
            lease,
            interval_s,
            lambda: self.table.held,
            self.drain_requested.set,
            self.table.give_back,
        )
        self._subscription: Subscription | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._waited = False

    async def open(self) -> list[asyncio.Task[None]]:
        """Begins to take jobs. Returns the tasks that must live as long as it is open."""
        self._subscription = await self._bus.subscribe(control_subject(self.lease.incarnation), self._control.handle)
        self._tasks = [
            asyncio.create_task(self._heartbeats.run(), name="heartbeats"),
            asyncio.create_task(self._intake.run(), name="intake"),
            asyncio.create_task(self._hints.run(), name="hints"),
        ]
        return self._tasks

    @property
    def reading(self) -> bool:
        """Whether jobs can arrive."""
        return self._intake.reading.is_set()

    async def drain(self, grace_s: float) -> None:
        """Gives every leg back at its next boundary; after `grace_s` drops what is left. Then ends the incarnation.

        Deregistering tells the owners that nothing of it goes on any more. While that is not so (a leg or a side effect
        that does not stop), the lease is left to run out instead.
        """
        self._heartbeats.draining = True
        self.table.drain()
        lapsed = asyncio.create_task(self.lease.ended.wait())
        idle = asyncio.create_task(self.table.idle.wait())
        try:
            done, _ = await asyncio.wait({lapsed, idle}, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            lapsed.cancel()
            idle.cancel()
        if idle not in done:
            _log.warning("drain_incomplete", legs=self.table.held, lapsed=lapsed in done)
        still_ours = self.lease.valid()
        legs = await self.close()
        calls = self._unfinished_calls()
        if legs or calls:
            _log.warning("lease_runs_out", incarnation=self.lease.incarnation, legs=legs, calls=calls)
        elif still_ours:
            await self._registrar.deregister(self.lease)

    async def close(self) -> int:
        """Drops every leg and stops. Returns how many legs have not ended after 10 s. Waits for them once only."""
        self.lease.end()
        ending = self.table.drop_all()
        if ending and not self._waited:
            self._waited = True
            _, left = await asyncio.wait(ending, timeout=_DROP_S)
            if left:
                _log.error("legs_do_not_stop", legs=len(left))
        await self._lanes.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._subscription is not None:
            await self._subscription.close()
            self._subscription = None
        return self.table.held
