"""Retention: ended runs go when they were kept long enough; seen to by the owners of their shard groups.

    resting ── every sweep_s ──▶ versions with runs that are old enough ──▶ a page of them ──▶ a batch deleted ─┐
       ▲                                                   ▲                                                    │
       └── jobs, backfills, workers ◀── no page is left ───┴───────────────── a rest after each ◀───────────────┘

A run's id tells when it was created, so the old ones are a range of an index that is there for lists: ending a run
costs nothing for its deletion later. Each batch is one commit under the session's fence (`flint_store.retention`);
whoever dies between two leaves whole runs, and the next owner of the group looks again. It works beside the lanes, on a
connection of the pool. When the loop dies the service stops.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from flint_core.ids import created_ms
from flint_ops.config import RetentionSettings
from flint_ops.logging import get_logger
from flint_scheduler.clock import RecordClock
from flint_scheduler.holdings import Holdings
from flint_scheduler.metrics import RETENTION_DELETED, RETENTION_OLDEST, RETENTION_SWEPT
from flint_scheduler.record import Record, RecordUnavailable
from flint_store import retention as store
from flint_store.command_requests import delete_old_requests
from flint_store.fence import Fenced, OwnerSession

__all__ = ["DAY_S", "FOR_EVER", "Retention", "keep_s_of", "rest_s"]

log = get_logger(__name__)

DAY_S: Final = 86_400
FOR_EVER: Final = -1
"""`retention_days` of a namespace that keeps its runs for ever; 0: as long as the cluster says."""

_SOURCES: Final = 1_000  # versions looked at in one query
_PAGE: Final = 500  # runs read at a time
_LOOKS_PER_S: Final = 5_000  # runs looked at that stay
_OTHERS: Final = 500  # rows of other kinds in one commit


def keep_s_of(cluster_s: float, namespace_days: int, workflow_s: int | None) -> float:
    """How long ended runs are kept, seconds; 0: for ever. The workflow's own word counts first."""
    if workflow_s is not None:
        return workflow_s
    if namespace_days:
        return 0 if namespace_days == FOR_EVER else namespace_days * DAY_S
    return cluster_s


def rest_s(deleted: int, took_s: float, settings: RetentionSettings) -> float:
    """How long to rest after a commit that took so long: for `work_share` of the time, and at most `runs_per_s`.

    The share follows what the database can do: a busy one is given more rest, and an idle one lets retention keep up
    with any rate at which runs end.
    """
    return max(deleted / settings.runs_per_s - took_s, took_s * (1 / settings.work_share - 1), 0.0)


class Retention:
    """Deletes what is old in the groups of one scheduler. `days_of`: `retention_days` of a namespace."""

    def __init__(
        self,
        record: Record,
        holdings: Holdings,
        clock: RecordClock,
        settings: RetentionSettings,
        days_of: Callable[[str], int],
    ) -> None:
        self._record = record
        self._holdings = holdings
        self._clock = clock
        self._settings = settings
        self._days_of = days_of
        self._oldest_ms = 0

    async def run(self) -> None:
        """Sweep every so often, for ever; schedulers that were started together do not do it together."""
        while True:
            await asyncio.sleep(self._settings.sweep_s * random.uniform(0.75, 1.25))
            try:
                await self.sweep()
            except RecordUnavailable as error:
                log.warning("retention_waits_for_postgresql", error=str(error))
            except Fenced as fenced:
                self._holdings.fenced(fenced.session)

    async def sweep(self) -> int:
        """Delete what is old and not needed; answers how many runs. Raises RecordUnavailable, Fenced."""
        session, groups = self._holdings.session, self._holdings.settled_groups()
        if session is None or not groups:
            return 0
        self._oldest_ms = 0
        deleted = after = 0
        while sources := await self._record.read(partial(store.read_sources, after=after, limit=_SOURCES)):
            after = sources[-1].definition_id
            deleted += await self._versions(sources, session, groups)
        await self._requests(session, groups)
        await self._others(session, groups)
        if self._holdings.session is session:
            await self._record.read(partial(store.note_pass, session=session, groups=groups))
            RETENTION_SWEPT.set(time.time())
            RETENTION_OLDEST.set((self._clock.now_ms() - self._oldest_ms) / 1000 if self._oldest_ms else 0)
        if deleted:
            log.info("old_runs_deleted", runs=deleted)
        return deleted

    async def _versions(self, sources: Sequence[store.RunSource], session: OwnerSession, groups: Sequence[int]) -> int:
        now_ms = self._clock.now_ms()
        keeps: dict[int, float] = {}
        below: dict[int, bytes] = {}
        for source in sources:
            keep_s = keep_s_of(self._settings.keep_s, self._days_of(source.namespace), source.retention_s)
            if keep_s:
                keeps[source.definition_id] = keep_s
                below[source.definition_id] = _first_id(now_ms - int(keep_s * 1000))
        deleted = 0
        if below:
            for definition_id in await self._record.read(partial(store.sources_with_old_runs, below=below)):
                keep_s, end = keeps[definition_id], below[definition_id]
                deleted += await self._version(definition_id, keep_s, end, session, groups)
        return deleted

    async def _version(
        self, definition_id: int, keep_s: float, below: bytes, session: OwnerSession, groups: Sequence[int]
    ) -> int:
        after, deleted = bytes(16), 0
        look = partial(store.old_runs, definition_id=definition_id, groups=groups, keep_s=keep_s, limit=_PAGE)
        while self._holdings.session is session:
            page = await self._record.read(partial(look, after=after, below=below))
            for batch in self._batches([run for run in page if run.old]):
                if self._holdings.session is not session:
                    return deleted
                began = time.monotonic()
                gone = await self._record.transaction(
                    partial(store.delete_runs, session=session, run_ids=batch, keep_s=keep_s)
                )
                took_s = time.monotonic() - began
                deleted += gone.runs
                RETENTION_DELETED.labels("runs").inc(gone.runs)
                RETENTION_DELETED.labels("records").inc(gone.records)
                if gone.runs < len(batch):
                    self._kept(batch)
                await asyncio.sleep(rest_s(gone.runs, took_s, self._settings))
            if len(page) < _PAGE:
                return deleted
            after = page[-1].run_id
            await asyncio.sleep(len(page) / _LOOKS_PER_S)
        return deleted

    def _batches(self, runs: Sequence[store.OldRun]) -> Iterator[list[bytes]]:
        batch: list[bytes] = []
        entries = 0
        for run in runs:
            full = len(batch) >= self._settings.batch_runs or entries + run.entries > self._settings.batch_entries
            if batch and full:
                yield batch
                batch, entries = [], 0
            batch.append(run.run_id)
            entries += run.entries
        if batch:
            yield batch

    def _kept(self, batch: Sequence[bytes]) -> None:
        """Some of these stay; which ones is not worth another question: the first is the oldest."""
        oldest_ms = created_ms(batch[0])
        self._oldest_ms = min(self._oldest_ms, oldest_ms) if self._oldest_ms else oldest_ms

    async def _requests(self, session: OwnerSession, groups: Sequence[int]) -> None:
        """What runs took; seen to by the owner of group 0. A time of its own: runs may be kept for ever."""
        delete = partial(delete_old_requests, session=session, keep_s=self._settings.request_ids_s, limit=_OTHERS)
        while 0 in groups and self._holdings.session is session:
            began = time.monotonic()
            rows = await self._record.transaction(delete)
            took_s = time.monotonic() - began
            RETENTION_DELETED.labels("command_request").inc(rows)
            if rows < _OTHERS:
                return
            await asyncio.sleep(rest_s(rows, took_s, self._settings))

    async def _others(self, session: OwnerSession, groups: Sequence[int]) -> None:
        """What belongs to no run follows the cluster's own time."""
        keep_s = self._settings.keep_s
        more = keep_s > 0
        while more and self._holdings.session is session:
            began = time.monotonic()
            gone = await self._record.transaction(
                partial(store.delete_unowned, session=session, groups=groups, keep_s=keep_s, limit=_OTHERS)
            )
            took_s = time.monotonic() - began
            for kind, rows in gone.by_kind.items():
                RETENTION_DELETED.labels(kind).inc(rows)
            more = max(gone.by_kind.values()) == _OTHERS
            await asyncio.sleep(rest_s(gone.records, took_s, self._settings))


def _first_id(at_ms: int) -> bytes:
    """The lowest run id of a millisecond."""
    return max(0, at_ms).to_bytes(6, "big") + bytes(10)
