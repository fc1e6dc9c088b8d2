"""The fleet's history in PostgreSQL, written by the registry that leads.

States of a leader: **reconciling** (first the rows without an end are read, then the keys in etcd: a row is only
written after its key stood, so a row whose key is missing has ended) → **following** the keys: a new one is recorded,
a vanished one ends its row. It was LOST when its lease ran out, ENDED when it left by itself: Deregister writes its
card to `departures/…` before it revokes the lease, and the leader deletes that note once it is recorded. Changes are
written one after another, each until it succeeds; meanwhile etcd keeps the rest. A break of the watch is reconciled
again.

When the leader dies or loses its lease in the middle, the next one reconciles, so nothing that a leader saw is missed,
nor a departure of the last ten minutes; a worker that came and was lost while nobody led leaves no row. Two leaders
that overlap for a moment write the same: each write may be repeated, and the first end stays.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine

from flint_contracts.gen.flint.fleet.v1 import fleet_pb2
from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_coord import ChangeKind, Coord, CoordUnavailable, Lease, keys
from flint_ops.logging import get_logger
from flint_registry import metrics
from flint_registry.view import read_card
from flint_store import fleet
from flint_store.errors import StoreUnavailable

__all__ = ["Historian"]

_log = get_logger("flint_registry.historian")
_Result = TypeVar("_Result")
_PAUSE_S = 0.2
_MAX_PAUSE_S = 5.0


class Historian:
    """What a leading registry does. `lead` runs while it leads, at most once at a time."""

    def __init__(self, coord: Coord, engine: AsyncEngine) -> None:
        self._coord = coord
        self._engine = engine
        self._open: dict[str, str] = {}  # incarnations without a recorded end → their pool

    async def lead(self, lease: Lease) -> None:
        """Keeps the history until cancelled."""
        metrics.LEADING.set(1)
        _log.info("leading", lease=f"{lease.id:x}")
        try:
            rows = await _insist(lambda: fleet.live(self._engine))
            self._open = {row.incarnation: row.pool for row in rows}
            async with contextlib.aclosing(self._coord.watch(keys.WORKERS)) as changes:
                async for change in changes:
                    if change.kind is ChangeKind.SNAPSHOT:
                        present = {item.key.removeprefix(keys.WORKERS): item.value for item in change.items}
                        await self._reconcile(present)
                    elif change.kind is ChangeKind.PUT:
                        await self._lives(change.key.removeprefix(keys.WORKERS), change.value)
                    else:
                        await self._ended(change.key.removeprefix(keys.WORKERS))
        finally:
            metrics.LEADING.set(0)

    async def _reconcile(self, present: dict[str, bytes]) -> None:
        for incarnation in [known for known in self._open if known not in present]:
            await self._ended(incarnation)
        for incarnation, value in present.items():
            await self._lives(incarnation, value)
        for note in await _insist(lambda: self._coord.scan(keys.DEPARTURES)):
            incarnation = note.key.removeprefix(keys.DEPARTURES)
            if incarnation not in present:
                await self._ended(incarnation)

    async def _lives(self, incarnation: str, value: bytes) -> None:
        card = read_card(value)
        if card is None:
            return
        state = fleet_pb2.Worker.STATE_DRAINING if card.draining else fleet_pb2.Worker.STATE_READY
        await _insist(lambda: self._record(incarnation, card, state))
        self._open[incarnation] = card.pool

    async def _record(
        self, incarnation: str, card: registry_pb2.WorkerCard, state: fleet_pb2.Worker.State.ValueType
    ) -> bool:
        return await fleet.upsert_worker(
            self._engine,
            card.SerializeToString(deterministic=True),
            incarnation=incarnation,
            worker_id=card.worker_id,
            pool=card.pool,
            region=card.region,
            state=state,
            at=card.register_time.ToDatetime(UTC),
        )

    async def _ended(self, incarnation: str) -> None:
        at = datetime.now(UTC)
        pool = self._open.get(incarnation, "")
        note = await _insist(lambda: self._coord.get(keys.departure(incarnation)))
        if note is not None:
            # It may have come and gone while nobody led.
            await self._lives(incarnation, note.value)
        state = fleet_pb2.Worker.STATE_LOST if note is None else fleet_pb2.Worker.STATE_ENDED
        if await _insist(lambda: fleet.end_worker(self._engine, incarnation, state, at)):
            _log.info("worker_lost" if note is None else "worker_ended", incarnation=incarnation, pool=pool)
            if note is None:
                metrics.LOST.labels(pool).inc()
        self._open.pop(incarnation, None)
        if note is not None:
            await _insist(lambda: self._coord.delete(keys.departure(incarnation)))


async def _insist(work: Callable[[], Awaitable[_Result]]) -> _Result:
    """Repeats until PostgreSQL or etcd is there again. All that is repeated here may be."""
    pause = _PAUSE_S
    while True:
        try:
            return await work()
        except (StoreUnavailable, CoordUnavailable) as error:
            _log.warning("history_waits", error=str(error), pause_s=pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_S)
