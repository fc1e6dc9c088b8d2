"""The live fleet as one replica sees it: the keys in etcd, joined with the last heartbeats that came to any replica.

States: **empty** (nothing is known yet; `known` is clear) → **following** etcd's watch, for ever. A watch that broke so
that changes may have been missed begins again with everything there is, which replaces what was known. Beats are only
an ornament: losing them makes figures old, never a worker dead. If a following task died, the service would stop (its
composition root watches it): a replica with a frozen view is worse than none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.message import DecodeError

from flint_contracts.gen.flint.fleet.v1 import fleet_pb2
from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_coord import ChangeKind, Coord, keys
from flint_ops.clock import now_ms
from flint_ops.logging import get_logger
from flint_registry import metrics
from flint_registry.cards import WorkerState, shown

__all__ = ["FleetView", "LiveWorker", "read_card", "read_quarantine"]

_log = get_logger("flint_registry.view")

_GAUGE_S: Final = 0.25
_ASIDE: Final = registry_pb2.Quarantine.STATE_ASIDE
_PROBATION: Final = registry_pb2.Quarantine.STATE_PROBATION


@dataclass(slots=True)
class LiveWorker:
    """One incarnation whose key stands."""

    card: registry_pb2.WorkerCard
    beat: registry_pb2.Beat | None = None
    beat_ms: int = 0
    figures: dict[str, registry_pb2.FunctionFigures] = field(default_factory=dict)
    """The latest of each function: beats tell only what changed."""


def read_card(value: bytes) -> registry_pb2.WorkerCard | None:
    """The card in a key's value; None (and a line in the log) when it is none."""
    try:
        card = registry_pb2.WorkerCard.FromString(value)
    except DecodeError as error:
        _log.error("worker_card_unreadable", error=str(error))
        return None
    return card


def read_quarantine(value: bytes) -> registry_pb2.Quarantine | None:
    """The same of a quarantine."""
    try:
        quarantine = registry_pb2.Quarantine.FromString(value)
    except DecodeError as error:
        _log.error("quarantine_unreadable", error=str(error))
        return None
    return quarantine


class FleetView:
    """Live workers and who is asked to drain. Used from one event loop."""

    def __init__(self, coord: Coord) -> None:
        self._coord = coord
        self._workers: dict[str, LiveWorker] = {}
        self._drains: set[str] = set()
        self._quarantines: dict[str, registry_pb2.Quarantine] = {}
        self._gauged: set[tuple[str, str]] = set()
        self._gauge_timer: asyncio.TimerHandle | None = None
        self.known = asyncio.Event()
        """Set once etcd has been read."""

    # -- what it knows

    def get(self, incarnation: str) -> LiveWorker | None:
        """A live worker, or None."""
        return self._workers.get(incarnation)

    def drain_asked(self, incarnation: str) -> bool:
        """Whether somebody asked it to drain."""
        return incarnation in self._drains

    def live(self) -> list[LiveWorker]:
        """All live workers, in no order."""
        return list(self._workers.values())

    def quarantine(self, incarnation: str) -> registry_pb2.Quarantine | None:
        """Why it is quarantined; None when it is not, or only on probation."""
        told = self._quarantines.get(incarnation)
        return None if told is None or told.state == _PROBATION else told

    def known_quarantine(self, incarnation: str) -> registry_pb2.Quarantine | None:
        """The same, also on probation."""
        return self._quarantines.get(incarnation)

    def aside(self, incarnation: str) -> bool:
        """Whether it is in a quarantine that ends."""
        told = self._quarantines.get(incarnation)
        return told is not None and told.state == _ASIDE

    def ends(self, worker: LiveWorker) -> bool:
        """Whether it is on its way to its end: nothing brings it back."""
        incarnation = worker.card.incarnation
        told = worker.beat is not None and worker.beat.draining
        quarantine = self._quarantines.get(incarnation)
        for_good = quarantine is not None and quarantine.state == registry_pb2.Quarantine.STATE_UNSPECIFIED
        return told or incarnation in self._drains or for_good

    def leaves(self, worker: LiveWorker) -> bool:
        """Whether it gets no legs for another reason than the size of its pool: it ends, or stands aside."""
        return worker.card.quarantined or self.aside(worker.card.incarnation) or self.ends(worker)

    def state(self, worker: LiveWorker) -> WorkerState:
        """READY or DRAINING."""
        if worker.card.draining or self.leaves(worker):
            return fleet_pb2.Worker.STATE_DRAINING
        return fleet_pb2.Worker.STATE_READY

    def shown(self) -> Iterator[fleet_pb2.Worker]:
        """All live workers, in no order."""
        for worker in self._workers.values():
            told = shown(worker.card, self.state(worker), beat=worker.beat, beat_ms=worker.beat_ms)
            quarantine = self.quarantine(worker.card.incarnation)
            if quarantine is not None:
                told.quarantine_reason = quarantine.reason
                if quarantine.HasField("end_time"):
                    told.quarantine_end_time.CopyFrom(quarantine.end_time)
            yield told

    # -- what it hears

    def hear(self, beats: Iterable[registry_pb2.Beat]) -> None:
        """Takes over heartbeats, from this replica or another. Those of unknown incarnations are passed over."""
        now = now_ms()
        changed = False
        for beat in beats:
            worker = self._workers.get(beat.incarnation)
            if worker is not None:
                changed |= (worker.beat is not None and worker.beat.draining) != beat.draining
                worker.beat = beat
                worker.beat_ms = now
                for figures in beat.functions:
                    worker.figures[figures.function] = figures
        if changed:
            self._gauge_soon()

    async def follow_workers(self) -> None:
        """Follows the workers' keys until cancelled."""
        async with contextlib.aclosing(self._coord.watch(keys.WORKERS)) as changes:
            async for change in changes:
                if change.kind is ChangeKind.SNAPSHOT:
                    before, self._workers = self._workers, {}
                    for item in change.items:
                        self._put(item.key, item.value, before)
                    self.known.set()
                elif change.kind is ChangeKind.PUT:
                    self._put(change.key, change.value, self._workers)
                else:
                    self._workers.pop(change.key.removeprefix(keys.WORKERS), None)
                self._gauge_soon()

    async def follow_drains(self) -> None:
        """Follows who is asked to drain, until cancelled."""
        async with contextlib.aclosing(self._coord.watch(keys.DRAINS)) as changes:
            async for change in changes:
                if change.kind is ChangeKind.SNAPSHOT:
                    self._drains = {item.key.removeprefix(keys.DRAINS) for item in change.items}
                elif change.kind is ChangeKind.PUT:
                    self._drains.add(change.key.removeprefix(keys.DRAINS))
                else:
                    self._drains.discard(change.key.removeprefix(keys.DRAINS))
                self._gauge_soon()

    async def follow_quarantines(self) -> None:
        """Follows who is quarantined, until cancelled."""
        async with contextlib.aclosing(self._coord.watch(keys.QUARANTINES)) as changes:
            async for change in changes:
                if change.kind is ChangeKind.SNAPSHOT:
                    self._quarantines = {}
                    for item in change.items:
                        self._quarantined(item.key, item.value)
                elif change.kind is ChangeKind.PUT:
                    self._quarantined(change.key, change.value)
                else:
                    self._quarantines.pop(change.key.removeprefix(keys.QUARANTINES), None)
                self._gauge_soon()

    def _quarantined(self, key: str, value: bytes) -> None:
        quarantine = read_quarantine(value)
        if quarantine is None:
            return
        self._quarantines[key.removeprefix(keys.QUARANTINES)] = quarantine

    def _put(self, key: str, value: bytes, before: dict[str, LiveWorker]) -> None:
        card = read_card(value)
        if card is None:
            return
        incarnation = key.removeprefix(keys.WORKERS)
        worker = before.get(incarnation) or LiveWorker(card)
        worker.card = card
        self._workers[incarnation] = worker

    def _gauge_soon(self) -> None:
        """Counting takes a look at every worker: the changes of a moment share one."""
        if self._gauge_timer is None:
            self._gauge_timer = asyncio.get_running_loop().call_later(_GAUGE_S, self._gauge)

    def _gauge(self) -> None:
        self._gauge_timer = None
        names = fleet_pb2.Worker.State
        counts = Counter(
            (worker.card.pool, names.Name(self.state(worker)).removeprefix("STATE_").lower())
            for worker in self._workers.values()
        )
        for labels in self._gauged - counts.keys():
            metrics.WORKERS.remove(*labels)
        for labels, count in counts.items():
            metrics.WORKERS.labels(*labels).set(count)
        self._gauged = set(counts)
