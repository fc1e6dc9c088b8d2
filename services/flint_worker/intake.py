"""Taking jobs: the incarnation's own subject of the jobs stream, in batches, into the leg table.

States: READING; when the stream is missing or lost (its whole store may go, R11) → WAITING a moment → READING from its
beginning: what was taken before is refused by the table. When the task dies the worker's service ends (it is watched).
"""

from __future__ import annotations

import asyncio
from typing import Final

from google.protobuf.message import DecodeError

from flint_bus import JOBS_STREAM, Bus, StreamLost
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_ops.logging import get_logger
from flint_worker.table import LegTable

__all__ = ["Intake"]

_PAUSE_S: Final = 0.5
_BATCH: Final = 256

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

    async def run(self) -> None:
        """For ever."""
        while True:
            consumer = self._bus.consume(JOBS_STREAM, self._subject, 1)
            opened = asyncio.create_task(self._opened(consumer.live))
            try:
                while True:
                    for message in await consumer.next_batch(_BATCH):
                        self._take(message.data)
                    # A full stream of jobs must not keep running legs from their turn.
                    await asyncio.sleep(0)
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

    def _take(self, data: bytes) -> None:
        try:
            job = dispatch_pb2.Job.FromString(data)
        except DecodeError:
            _log.error("job_unreadable", size=len(data))
            return
        self._table.offer(job)
