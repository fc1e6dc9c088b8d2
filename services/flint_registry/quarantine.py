"""Quarantine, in the registry that leads: workers that stand out from their pool get no work for a time.

States of a worker: **counted** (its figures of the last window are compared with the others') → outlier: **aside** (a
key under its own lease; its card says that it gets no legs, and heartbeats ask it to give back those that it has) →
**on probation** (it gets legs; an outlier once more stands aside for twice as long) → **counted**. The autoscaler
starts another one meanwhile, where the pool has room. With `quarantine_s` 0 it is asked to drain instead, and ends.
Never more than one worker in `fleet.quarantine.one_in` of a pool at the same time: what ails so many is not theirs.

The key is what counts; whoever deletes it has released the worker. The card follows it (`tend`), also when a leader
died between the two. A leader that dies takes its windows along; the next one begins to count anew.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from typing import Final

from flint_bus import Bus
from flint_bus.subjects import FLEET_QUARANTINES
from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_coord import Coord, CoordUnavailable, LeaseEnded, keys
from flint_ops.clock import boottime, now_ms
from flint_ops.config import QuarantineSettings
from flint_ops.logging import get_logger
from flint_registry import metrics
from flint_registry.outliers import Figures, Outlier, outliers
from flint_registry.probation import put_aside, put_on_probation
from flint_registry.view import FleetView, LiveWorker

__all__ = ["Quarantine"]

_ETCD_TIMEOUT_S: Final = 2.0
_LOOKS: Final = 12
"""Looks at the figures within one window."""
_TICK_S: Final = 0.5
"""Time between two looks at who is to come back."""

_log = get_logger("flint_registry.quarantine")


class Quarantine:
    """`lead` runs while the registry leads, at most once at a time."""

    def __init__(self, settings: QuarantineSettings, coord: Coord, view: FleetView) -> None:
        self._settings = settings
        self._coord = coord
        self._view = view
        self._past: dict[str, deque[tuple[float, dict[str, Figures]]]] = {}
        self._differing: set[str] = set()
        self.bus: Bus | None = None
        """Where quarantines are published; None while there is no connection."""

    async def lead(self) -> None:
        """Until cancelled. Who was quarantined comes back also when outliers are not looked for any more."""
        self._past.clear()
        looked_at = boottime()
        while True:
            await asyncio.sleep(_TICK_S)
            await self.tend(now_ms())
            if self._settings.enabled and boottime() - looked_at >= self._settings.window_s / _LOOKS:
                looked_at = boottime()
                await self.look(looked_at)

    async def tend(self, at_ms: int) -> None:
        """Ends what is over, and makes the cards say what the keys say. `at_ms`: epoch milliseconds.

        Keys and cards come by watches of their own: what differs at one look alone may be on its way.
        """
        differed, self._differing = self._differing, set()
        for worker in self._view.live():
            incarnation = worker.card.incarnation
            told = self._view.known_quarantine(incarnation)
            if told is None and not worker.card.quarantined:
                continue
            try:
                if told is not None and told.HasField("end_time") and told.end_time.ToMilliseconds() <= at_ms:
                    await self._end(worker, told, at_ms)
                elif worker.card.quarantined != self._view.aside(incarnation):
                    self._differing.add(incarnation)
                    if incarnation in differed:
                        await self._mark(worker, aside=not worker.card.quarantined)
            except LeaseEnded:
                continue
            except CoordUnavailable as error:
                _log.warning("quarantines_wait_for_etcd", error=str(error))
                return

    async def look(self, at: float) -> None:
        """Compares, and quarantines who stands out. `at`: seconds, of any steady clock."""
        pools: dict[tuple[str, str], list[LiveWorker]] = defaultdict(list)
        for worker in self._view.live():
            pools[worker.card.region, worker.card.pool].append(worker)
        alive = {worker.card.incarnation for workers in pools.values() for worker in workers}
        self._past = {known: past for known, past in self._past.items() if known in alive}
        for workers in pools.values():
            figures = {worker.card.incarnation: self._window(worker, at) for worker in workers}
            out = [w for w in workers if w.card.quarantined or self._view.quarantine(w.card.incarnation) is not None]
            room = len(workers) // self._settings.one_in - len(out)
            by_name = {worker.card.incarnation: worker for worker in workers if not self._view.leaves(worker)}
            for outlier in outliers(figures, self._settings):
                if room > 0 and outlier.worker in by_name:
                    room -= await self._put_away(by_name[outlier.worker], outlier)

    def _window(self, worker: LiveWorker, at: float) -> dict[str, Figures]:
        """What it executed within the window: its sums now less those at the window's beginning."""
        now = {name: Figures(told.calls, told.errors, told.duration_ms) for name, told in worker.figures.items()}
        past = self._past.setdefault(worker.card.incarnation, deque())
        while len(past) > 1 and past[1][0] <= at - self._settings.window_s:
            past.popleft()
        past.append((at, now))
        before = past[0][1]
        nothing = Figures()
        return {
            name: Figures(
                told.calls - before.get(name, nothing).calls,
                told.errors - before.get(name, nothing).errors,
                told.duration_ms - before.get(name, nothing).duration_ms,
            )
            for name, told in now.items()
        }

    async def _end(self, worker: LiveWorker, told: registry_pb2.Quarantine, at_ms: int) -> None:
        key = keys.quarantine(worker.card.incarnation)
        if told.state == registry_pb2.Quarantine.STATE_ASIDE:
            back = put_on_probation(told, self._settings, at_ms)
            data = back.SerializeToString(deterministic=True)
            await self._coord.put(key, data, worker.card.lease_id, timeout_s=_ETCD_TIMEOUT_S)
        else:
            await self._coord.delete(key, timeout_s=_ETCD_TIMEOUT_S)

    async def _mark(self, worker: LiveWorker, *, aside: bool) -> None:
        """Its card: schedulers go by it."""
        card = registry_pb2.WorkerCard()
        card.CopyFrom(worker.card)
        card.draining = card.quarantined = aside
        data = card.SerializeToString(deterministic=True)
        await self._coord.put(keys.worker(card.incarnation), data, card.lease_id, timeout_s=_ETCD_TIMEOUT_S)
        if not aside:
            self._past.pop(card.incarnation, None)  # what it did before does not count any more
            metrics.RETURNED.labels(card.pool).inc()
            _log.info("worker_returned", incarnation=card.incarnation, worker=card.worker_id)

    async def _put_away(self, worker: LiveWorker, outlier: Outlier) -> bool:
        card = worker.card
        before = self._view.known_quarantine(card.incarnation)
        told = put_aside(card, outlier.reason, before, self._settings, now_ms())
        data = told.SerializeToString(deterministic=True)
        try:
            await self._coord.put(keys.quarantine(card.incarnation), data, card.lease_id, timeout_s=_ETCD_TIMEOUT_S)
            if told.state == registry_pb2.Quarantine.STATE_ASIDE:
                await self._mark(worker, aside=True)
            else:
                await self._coord.put(keys.drain(card.incarnation), b"", card.lease_id, timeout_s=_ETCD_TIMEOUT_S)
        except LeaseEnded:
            return False
        except CoordUnavailable as error:
            _log.warning("not_quarantined", incarnation=card.incarnation, error=str(error))
            return False
        metrics.QUARANTINED.labels(card.pool).inc()
        _log.warning(
            "worker_quarantined",
            incarnation=card.incarnation,
            worker=card.worker_id,
            why=told.reason,
            times=told.times,
        )
        if self.bus is not None and self.bus.connected.is_set():
            self.bus.publish_now(FLEET_QUARANTINES, data)
        return True
