"""Quarantine, in the registry that leads: workers that stand out from their pool are drained, and say why.

States of a worker: **counted** (its figures of the last window are compared with the others') → outlier:
**quarantined** (a key under its own lease, and the wish to drain) → it gives its legs back and ends; the autoscaler
replaces it. Never more than one worker in `fleet.quarantine.one_in` of a pool at the same time: what ails so many is
not theirs. A leader that dies takes its windows along; the next one begins to count anew.
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
from flint_registry.view import FleetView, LiveWorker

__all__ = ["Quarantine"]

_ETCD_TIMEOUT_S: Final = 2.0
_LOOKS: Final = 12
"""Looks at the figures within one window."""
_LONGEST_REASON: Final = 500

_log = get_logger("flint_registry.quarantine")


class Quarantine:
    """`lead` runs while the registry leads, at most once at a time."""

    def __init__(self, settings: QuarantineSettings, coord: Coord, view: FleetView) -> None:
        self._settings = settings
        self._coord = coord
        self._view = view
        self._past: dict[str, deque[tuple[float, dict[str, Figures]]]] = {}
        self.bus: Bus | None = None
        """Where quarantines are published; None while there is no connection."""

    async def lead(self) -> None:
        """Until cancelled."""
        self._past.clear()
        while self._settings.enabled:
            await asyncio.sleep(self._settings.window_s / _LOOKS)
            await self.look(boottime())

    async def look(self, at: float) -> None:
        """Compares, and quarantines who stands out. `at`: seconds, of any steady clock."""
        pools: dict[tuple[str, str], list[LiveWorker]] = defaultdict(list)
        for worker in self._view.live():
            pools[worker.card.region, worker.card.pool].append(worker)
        alive = {worker.card.incarnation for workers in pools.values() for worker in workers}
        self._past = {known: past for known, past in self._past.items() if known in alive}
        for workers in pools.values():
            figures = {worker.card.incarnation: self._window(worker, at) for worker in workers}
            out = [worker for worker in workers if self._view.quarantine(worker.card.incarnation) is not None]
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

    async def _put_away(self, worker: LiveWorker, outlier: Outlier) -> bool:
        card = worker.card
        told = registry_pb2.Quarantine(
            incarnation=card.incarnation,
            worker_id=card.worker_id,
            pool=card.pool,
            region=card.region,
            reason=outlier.reason[:_LONGEST_REASON],
        )
        told.time.FromMilliseconds(now_ms())
        data = told.SerializeToString(deterministic=True)
        try:
            for key, value in ((keys.quarantine(card.incarnation), data), (keys.drain(card.incarnation), b"")):
                await self._coord.put(key, value, card.lease_id, timeout_s=_ETCD_TIMEOUT_S)
        except LeaseEnded:
            return False
        except CoordUnavailable as error:
            _log.warning("not_quarantined", incarnation=card.incarnation, error=str(error))
            return False
        metrics.QUARANTINED.labels(card.pool).inc()
        _log.warning("worker_quarantined", incarnation=card.incarnation, worker=card.worker_id, why=told.reason)
        if self.bus is not None and self.bus.connected.is_set():
            self.bus.publish_now(FLEET_QUARANTINES, data)
        return True
