"""Reading the journal, one ordered reader per owned group (R8), and noticing that a store was lost (R11).

States of a group's reader: READING from just after the group's watermark → LOST when its stream is missing or has
gone back → the keeper of the generation opens the next one and starts all readers anew. Positions live in PostgreSQL,
so reading entries again is harmless: the fold drops what it has. When a reader dies unexpectedly the service stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from flint_bus import Bus, BusError, StreamLost
from flint_bus.subjects import journal_filter, journal_stream
from flint_ops.config import JournalSettings
from flint_ops.logging import get_logger
from flint_scheduler.fold import Folder, Reading
from flint_scheduler.holdings import GroupHolding, Holdings
from flint_scheduler.lane import LaneClosed
from flint_scheduler.metrics import GENERATIONS
from flint_scheduler.record import Record, RecordUnavailable
from flint_store.fence import Fenced
from flint_store.ownership import next_generation, read_generation

__all__ = ["Readers"]

log = get_logger(__name__)

_CREATE_GRACE_S = 2.0
_RETRY_S = 0.3
_BATCH = 100  # messages, of up to 100 entries each


class Readers:
    """The journal readers of one scheduler, and the keeper of the journal's generation."""

    def __init__(self, bus: Bus, record: Record, holdings: Holdings, folder: Folder, settings: JournalSettings) -> None:
        self._bus = bus
        self._record = record
        self._holdings = holdings
        self._folder = folder
        self._settings = settings
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._suspect = asyncio.Event()
        self._establishing = asyncio.Lock()
        self.on_generation: Callable[[], None] = lambda: None
        self.failed: Callable[[BaseException], None] = lambda error: None

    def start(self, holding: GroupHolding) -> None:
        """Read a group's journal from its watermark on."""
        self.stop_soon(holding.group)
        task = asyncio.create_task(self._read(holding, self._holdings.generation), name=f"reader-{holding.group}")
        task.add_done_callback(self._ended)
        self._tasks[holding.group] = task

    def stop_soon(self, group: int) -> None:
        """Stop reading a group; what was handed over is judged by ownership."""
        task = self._tasks.pop(group, None)
        if task is not None:
            task.cancel()

    def stop_all(self) -> None:
        """Stop reading."""
        for group in list(self._tasks):
            self.stop_soon(group)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed(error)

    async def _read(self, holding: GroupHolding, generation: int) -> None:
        consumer = self._bus.consume(
            journal_stream(generation), journal_filter(generation, holding.group), holding.folded + 1
        )
        loop = asyncio.get_running_loop()
        try:
            while True:
                messages = await consumer.next_batch(_BATCH)
                holding.received = max(holding.received, messages[-1].sequence)
                await self._folder.read(Reading(holding, generation, messages, loop.time()))
        except StreamLost as error:
            if generation == self._holdings.generation:
                log.warning("journal_lost", group=holding.group, generation=generation, error=str(error))
                self._suspect.set()
        except LaneClosed:
            return
        finally:
            await consumer.close()

    def suspect(self) -> None:
        """Somebody found the journal's stream missing: look."""
        self._suspect.set()

    async def keep(self) -> None:
        """Open the next generation whenever the current one's stream is missing or has lost its end."""
        while True:
            await self._suspect.wait()
            self._suspect.clear()
            try:
                await self.establish()
            except (BusError, RecordUnavailable) as error:
                log.warning("generation_unknown", error=str(error))
                await asyncio.sleep(_RETRY_S)
                self._suspect.set()
                continue
            except Fenced as fenced:
                self._holdings.fenced(fenced.session)

    async def restart_soon(self, group: int) -> None:
        """Read a group's journal again from what is folded: a batch of it was given up by a defect."""
        await asyncio.sleep(_RETRY_S)
        holding = self._holdings.groups.get(group)
        if holding is not None and holding.settled:
            fresh = replace(holding, received=holding.folded)
            self._holdings.groups[group] = fresh  # what was handed over under the old one is void
            self.start(fresh)

    async def establish(self) -> bool:
        """One at a time; see `_establish`."""
        async with self._establishing:
            return await self._establish()

    async def _establish(self) -> bool:
        """Make sure that the journal has a current stream; True when its generation is another one than before.

        Raises BusError, RecordUnavailable, Fenced.
        """
        session = self._holdings.session
        if session is None:
            return False
        known = self._holdings.generation
        current = await self._record.read(read_generation)
        if current == known and known > 0 and await self._stands(known):
            await self._bus.create_jobs(self._settings)
            self._restart_readers(ended_only=True)
            return False
        if current == 0 or current == known or not await self._appears(current):
            current = await self._record.lane("generation", lambda c: next_generation(c, session, current))
            log.warning("journal_generation_opened", generation=current, before=known)
            if known > 0:
                GENERATIONS.inc()
            # What is left of a generation that lost its end would only keep its space reserved.
            await self._bus.delete_stream(journal_stream(current - 1))
            await self._bus.create_journal(current, self._settings)
        await self._bus.create_jobs(self._settings)
        if current == known:
            return False
        self._holdings.generation = current
        for holding in self._holdings.groups.values():
            holding.folded = holding.saved = holding.received = 0
        self._restart_readers(ended_only=False)
        self.on_generation()
        return True

    def _restart_readers(self, *, ended_only: bool) -> None:
        for holding in self._holdings.groups.values():
            task = self._tasks.get(holding.group)
            if holding.settled and not (ended_only and task is not None and not task.done()):
                self.start(holding)

    async def _stands(self, generation: int) -> bool:
        state = await self._bus.stream_state(journal_stream(generation))
        if state is None:
            return False
        return state.last_sequence >= max((h.received for h in self._holdings.groups.values()), default=0)

    async def _appears(self, generation: int) -> bool:
        """Whether the stream that PostgreSQL names is there, or comes soon: its opener commits before it creates."""
        deadline = asyncio.get_running_loop().time() + _CREATE_GRACE_S
        while True:
            if await self._bus.stream_state(journal_stream(generation)) is not None:
                return True
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(_RETRY_S)
