"""Clients that start runs, read them and watch them to their end, and keep account of what they saw."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from flint_sdk import AsyncFlint, FlintError, RunChanged, RunSnapshot, RunState

__all__ = ["Callers", "Seen"]

ENDED = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED})


@dataclass
class Seen:
    """What clients saw: seconds of starts, reads and watches; runs whose end was seen; calls that failed."""

    starts: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)
    watches: list[float] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


class Callers:
    """So many callers, each with one call at a time, from now until `leave`."""

    def __init__(self, flint: AsyncFlint, workflow: str, count: int, pause_s: float = 0.0) -> None:
        self._flint = flint
        self._workflow = workflow
        self._pause_s = pause_s
        self.seen = Seen()
        self._leaving = asyncio.Event()
        self._tasks = [asyncio.create_task(self._call(number)) for number in range(count)]

    async def _call(self, number: int) -> None:
        while not self._leaving.is_set():
            try:
                begun = time.perf_counter()
                run = await self._flint.start(self._workflow, {"caller": number})
                self.seen.starts.append(time.perf_counter() - begun)
                begun = time.perf_counter()
                await self._flint.get_run(run.id)
                self.seen.reads.append(time.perf_counter() - begun)
                begun = time.perf_counter()
                ended = False
                async for event in self._flint.watch(run.id):
                    if isinstance(event, RunSnapshot | RunChanged):
                        ended = event.run.state in ENDED
                self.seen.watches.append(time.perf_counter() - begun)
                if ended:
                    self.seen.runs.append(run.id)
                else:
                    self.seen.failed.append(f"the watch of {run.id} ended before the run")
            except FlintError as error:
                self.seen.failed.append(f"{type(error).__name__}: {error}")
            await asyncio.sleep(self._pause_s)

    async def leave(self) -> Seen:
        """Let every caller end what it is at."""
        self._leaving.set()
        await asyncio.gather(*self._tasks)
        return self.seen
