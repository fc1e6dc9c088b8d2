"""Purging: entries that were folded long ago leave the journal's stream, all groups together (R8, decision 0030).

    resting ── every purge_interval_s, at the owner of group 0 ──▶ noting how far PostgreSQL has each group as folded
       ▲                                                                                │
       └── removing, a portion at a time, what every group had folded keep_folded_s ago ◀┘

What PostgreSQL has of a generation only grows, and every owner reads its groups' journals from there on: what lies at
or below all of it is read by nobody any more. So whoever purges needs no fence: an owner that was deposed, or is paused
amid it, removes only what it may. A group in which nothing happens does not hold the others back: what it has not
folded is looked for in the stream, and where there is nothing, there is nothing to keep.

JetStream removes a prefix of a stream by dropping whole files. A purge of one group's subjects reads every file of the
stream, with the stream locked, so it is the last resort: for when a group that makes no progress holds back the others
and the stream is half full.

When the loop dies the service stops.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Final

from flint_bus import Bus, BusError, StreamState, journal_stream
from flint_bus.subjects import journal_filter
from flint_ops.config import JournalSettings
from flint_ops.logging import get_logger
from flint_scheduler.holdings import Holdings
from flint_scheduler.metrics import PURGED
from flint_scheduler.record import Record, RecordUnavailable
from flint_store.ownership import read_watermarks

__all__ = ["PURGING_GROUP", "Purger"]

log = get_logger(__name__)

PURGING_GROUP: Final = 0
"""Its owner purges for all."""
_PORTION_BYTES: Final = 16 * 2**20
"""About what one request removes: the stream takes no appends meanwhile."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """How far the groups were folded at a moment of the event loop's clock."""

    at: float
    folded: dict[int, int]

    @property
    def floor(self) -> int:
        return min(self.folded.values())


class Purger:
    """See the module. For one event loop."""

    def __init__(self, bus: Bus, record: Record, holdings: Holdings, settings: JournalSettings) -> None:
        self._bus = bus
        self._record = record
        self._holdings = holdings
        self._settings = settings
        self._generation = 0
        self._samples: deque[_Sample] = deque()
        self._looked_at = 0  # the stream's end when the groups were looked at last
        self._empty: dict[int, int] = {}  # of groups that hung back: nothing of theirs is left up to here

    async def run(self) -> None:
        """Purge every so often, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._settings.purge_interval_s)
            if not self._holdings.owns(PURGING_GROUP):
                self._forget(0)
                continue
            try:
                await self.turn(loop.time())
            except RecordUnavailable as error:
                log.info("purge_failed", error=str(error))
            except BusError as error:
                log.info("purge_failed", error=str(error) or type(error).__name__)

    async def turn(self, now: float) -> int:
        """Note how far the groups are folded, and remove what they had folded long enough ago; answers how many.

        Raises BusError, RecordUnavailable; the next turn goes on.
        """
        generation = self._holdings.generation
        if generation != self._generation:
            self._forget(generation)
        stream = journal_stream(generation)
        state = await self._bus.stream_state(stream) if generation else None
        if state is None or not state.messages or state.last_sequence < self._looked_at:
            self._forget(generation)  # it is empty, missing, or has lost its end, which its readers see to
            return 0
        self._samples.append(_Sample(now, await self._folded(generation, state)))
        ripe: _Sample | None = None
        while self._samples and now - self._samples[0].at >= self._settings.keep_folded_s:
            ripe = self._samples.popleft()
        if ripe is None:
            return 0
        removed = await self._remove(stream, state, ripe.floor)
        if not removed and state.bytes > self._settings.max_bytes // 2:
            for group, folded in ripe.folded.items():
                if folded > ripe.floor:
                    removed += await self._bus.purge_up_to(stream, folded, journal_filter(generation, group))
        PURGED.inc(removed)
        return removed

    def _forget(self, generation: int) -> None:
        self._generation = generation
        self._samples.clear()
        self._empty.clear()
        self._looked_at = 0

    async def _folded(self, generation: int, state: StreamState) -> dict[int, int]:
        """Of each group, a sequence up to which the stream holds nothing of it that is not folded."""
        before, self._looked_at = self._looked_at, state.last_sequence
        folded: dict[int, int] = {}
        for group, watermark in (await self._record.read(lambda c: read_watermarks(c, generation))).items():
            upto = max(watermark, self._empty.get(group, 0))
            # Only of those that have not moved since the last turn: the others will have by the next one.
            if watermark < before or not before:
                stream, subjects = journal_stream(generation), journal_filter(generation, group)
                found = await self._bus.next_sequence(stream, subjects, upto + 1)
                upto = self._empty[group] = state.last_sequence if found is None else found - 1
            # What was stored or folded behind the end that the state told of is for the next turn.
            folded[group] = min(upto, state.last_sequence)
        return folded

    async def _remove(self, stream: str, state: StreamState, floor: int) -> int:
        """A prefix of the stream, a portion at a time."""
        portion = max(1, _PORTION_BYTES * state.messages // max(1, state.bytes))
        removed = 0
        upto = state.first_sequence - 1
        while upto < floor:
            upto = min(upto + portion, floor)
            removed += await self._bus.purge_up_to(stream, upto)
        return removed
