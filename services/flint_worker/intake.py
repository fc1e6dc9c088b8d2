"""Taking jobs: the incarnation's own subject of the jobs stream, in batches, into the leg table.

Urgent ones are offered as they arrive, within the connection's reader: they wait neither for what came before them nor
for the turn of the event loop in which others are offered. So are a few that come while nothing else waits here: they
need no order among others, and no turn of their own.

States: READING; when the stream is missing or lost (its whole store may go, R11) → WAITING a moment → READING from its
beginning: what was taken before is refused by the table. When the task dies the worker's service ends (it is watched).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence, Sized
from typing import Final

from google.protobuf.message import DecodeError

from flint_bus import JOBS_STREAM, Bus, Consumer, Portion, StoredMessage, StreamLost
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_core.queueing import LEVELS, URGENT
from flint_ops.logging import get_logger
from flint_worker.table import LegTable

__all__ = ["Intake", "jobs_in"]

_PAUSE_S: Final = 0.5
_MESSAGES: Final = 32
"""Messages that are read in one turn of the event loop; each holds up to 128 jobs."""
_ENOUGH: Final = 256
"""Jobs that wait to be offered, beyond which no more are read."""
_AT_ONCE: Final = 64
_AT_ONCE_IN_A_HURRY: Final = 16
"""Legs that begin in one turn of the event loop: those under way, and urgent ones that come, must not wait for all."""
_FEW: Final = 4
"""Jobs that are offered as they arrive while no others wait."""

_log = get_logger("flint_worker.intake")


class Intake:
    """Reads one incarnation's jobs until it is cancelled."""

    def __init__(self, bus: Bus, subject: str, table: LegTable) -> None:
        self._bus = bus
        self._subject = subject
        self._table = table
        self.reading = asyncio.Event()
        """Set while jobs can arrive."""
        self._told = False
        self._portion = Portion(bus.pace, _AT_ONCE, _AT_ONCE_IN_A_HURRY)
        self._arrived: deque[list[dispatch_pb2.Job]] = deque()  # what the consumer holds, read already
        self._offering = False  # jobs that were taken from there wait for their turn
        self._offered = 0  # as they arrived, in this turn of the event loop
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """For ever."""
        while True:
            self._arrived.clear()
            consumer = self._bus.consume(JOBS_STREAM, self._subject, 1, ahead=self._arrives)
            opened = asyncio.create_task(self._opened(consumer.live))
            try:
                while True:
                    await self._take_all(consumer)
            except StreamLost as lost:
                if self.reading.is_set() or not self._told:
                    _log.warning("jobs_stream_lost", error=str(lost))
                    self._told = True
                self.reading.clear()
            finally:
                opened.cancel()
                await consumer.close()
            await asyncio.sleep(_PAUSE_S)

    async def _opened(self, live: asyncio.Event) -> None:
        await live.wait()
        self.reading.set()

    def _arrives(self, message: StoredMessage) -> bool:
        """Read jobs within the connection's reader; whether none of them is left to be offered."""
        others: list[dispatch_pb2.Job] = []
        urgent = False
        for job in jobs_in(message.data):
            if job.level != URGENT:
                others.append(job)
                continue
            if not urgent:
                urgent = True
                self._bus.pace.hurry()
            self._table.offer(job)  # before those behind it are read
        if not others:
            return True
        if not self._arrived and not self._offering and self._offered + len(others) <= _FEW:
            if not self._offered:
                self._loop.call_soon(self._turned)
            self._offered += len(others)
            for job in sorted(others, key=_level):
                self._table.offer(job)
            return True
        self._arrived.append(others)
        return False

    def _turned(self) -> None:
        """It is another turn of the event loop."""
        self._offered = 0

    async def _take_all(self, consumer: Consumer) -> None:
        """Wait for jobs and offer them, the most urgent first, also of those that come meanwhile."""
        jobs: list[deque[dispatch_pb2.Job]] = [deque() for _ in range(LEVELS)]
        left = self._sort(await consumer.next_batch(_MESSAGES), jobs)
        self._offering = True
        try:
            at_once = self._portion.first()
            while left:
                for _ in range(min(left, at_once)):
                    self._table.offer(next(filter(None, jobs)).popleft())
                    left -= 1
                await asyncio.sleep(0)
                at_once = self._portion.next()
                if left and consumer.waiting and left < _ENOUGH:
                    left += self._sort(await consumer.next_batch(_MESSAGES), jobs)
        finally:
            self._offering = False

    def _sort(self, messages: Sized, jobs: list[deque[dispatch_pb2.Job]]) -> int:
        """Sort the jobs of messages by level; how many there are."""
        count = 0
        for _ in range(len(messages)):
            for job in self._arrived.popleft():
                jobs[min(job.level, LEVELS - 1)].append(job)
                count += 1
        return count


def _level(job: dispatch_pb2.Job) -> int:
    return job.level


def jobs_in(data: bytes) -> Iterator[dispatch_pb2.Job]:
    """The jobs of one message: of a batch, or the one that it is. What cannot be read is logged and left out."""
    try:
        batch: Sequence[bytes] = dispatch_pb2.JobBatch.FromString(data).jobs or (data,)
    except DecodeError:
        batch = (data,)  # it is none of the two
    for part in batch:
        try:
            yield dispatch_pb2.Job.FromString(part)
        except DecodeError:
            _log.error("job_unreadable", size=len(part))
