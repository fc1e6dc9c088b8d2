"""Clients under faults: they start, cancel, read and watch runs, publish events, and write down what they were told.

A call that failed without an answer may have happened: it stays open in the history until the same request is asked
again at the end.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from dataclasses import dataclass, field

from flint_sdk import AsyncFlint, FailedPrecondition, FlintError, NotFound, RunChanged, RunSnapshot, WatchEvent
from support.soak.workflows import KINDS, Kind

__all__ = ["History", "Started", "Traffic"]

_PATIENCE_S = 20.0
_ROUNDS = 60


@dataclass
class Started:
    """One start, under its own request id. `runs`: ids that answers named; all must be one. Times: Unix epoch, s."""

    kind: Kind
    request_id: str
    asked_at: float
    runs: set[str] = field(default_factory=set)
    answered_at: float = 0.0
    cancel_asked: bool = False
    cancel_answered: bool = False


@dataclass
class History:
    """Everything that clients saw."""

    starts: dict[str, Started] = field(default_factory=dict)
    reads: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """By run: (change, state) in the order of one reader's reads."""
    watches: list[list[tuple[int, str]]] = field(default_factory=list)
    """Of each watch: (cursor, state) in the order of its messages."""
    refused: list[str] = field(default_factory=list)
    """Answers that no fault explains."""
    unanswered: int = 0


class Traffic:
    """Some clients of one stack."""

    def __init__(self, flint: AsyncFlint, url: str, seed: int) -> None:
        self._flint = flint
        self._url = url
        self._draw = random.Random(seed)
        self._seed = seed
        self._numbers = itertools.count()
        self.history = History()

    async def apply(self) -> None:
        """Store the definitions."""
        for kind in KINDS:
            await self._flint.apply(kind.source)

    async def run(self, for_s: float, clients: int = 5) -> None:
        """Go on for a while."""
        until = asyncio.get_running_loop().time() + for_s
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._client(number, until))
            group.create_task(self._reader(until))
            for _ in range(2):
                group.create_task(self._watcher(until))

    async def settle(self) -> None:
        """Ask again for what was not answered, and send events to whoever has begun to listen after they had come."""
        for started in list(self.history.starts.values()):
            if not started.runs:
                await self._start(started)
        waiting = [s for s in self.history.starts.values() if s.kind.events and s.runs]
        for _ in range(_ROUNDS):
            runs = [(started, await self._flint.get_run(min(started.runs))) for started in waiting]
            waiting = [started for started, run in runs if run.end_time is None]
            if not waiting:
                return
            for started in waiting:
                await self._publish(started)
            await asyncio.sleep(0.5)

    # -- one client ----------------------------------------------------------------------------------------------------

    async def _client(self, number: int, until: float) -> None:
        loop, draw = asyncio.get_running_loop(), random.Random(self._seed * 1000 + number)
        count = 0
        while loop.time() < until:
            count += 1
            kind = draw.choice(KINDS)
            started = Started(kind, f"soak-{self._seed}-{number}-{count}", time.time())
            self.history.starts[started.request_id] = started
            await self._start(started)
            if kind.events and draw.random() < 0.9:
                await self._publish(started)
            if draw.random() < 0.1:
                await asyncio.sleep(draw.uniform(0, 0.5))
                await self._cancel(started)
            await asyncio.sleep(draw.uniform(0.02, 0.2))

    async def _start(self, started: Started) -> None:
        given = {"url": self._url, "key": started.request_id}
        try:
            async with asyncio.timeout(_PATIENCE_S):
                handle = await self._flint.start(f"soak-{started.kind.name}", given, request_id=started.request_id)
        except (FlintError, TimeoutError) as error:
            self._unanswered(error)
            return
        started.runs.add(handle.id)
        started.answered_at = started.answered_at or time.time()

    async def _publish(self, started: Started) -> None:
        event = {
            "id": f"{started.request_id}-{next(self._numbers)}",
            "source": "https://soak.test/traffic",
            "type": "dev.soak.go",
            "subject": started.request_id,
            "data": {"go": True},
        }
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._flint.publish_events([event])
        except (FlintError, TimeoutError) as error:
            self._unanswered(error)

    async def _cancel(self, started: Started) -> None:
        if not started.runs:
            return
        started.cancel_asked = True
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._flint.cancel(min(started.runs), "the traffic wanted so")
        except FailedPrecondition:
            return  # it had ended
        except (FlintError, TimeoutError) as error:
            self._unanswered(error)
            return
        started.cancel_answered = True

    def _unanswered(self, error: Exception) -> None:
        self.history.unanswered += 1
        if not isinstance(error, TimeoutError) and _surprising(error):
            self.history.refused.append(f"{type(error).__name__}: {error}")

    # -- readers -------------------------------------------------------------------------------------------------------

    def _some_run(self) -> str | None:
        known = [s for s in self.history.starts.values() if s.runs]
        return min(self._draw.choice(known[-40:]).runs) if known else None

    async def _reader(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            run = self._some_run()
            if run is not None:
                try:
                    async with asyncio.timeout(_PATIENCE_S):
                        found = await self._flint.get_run(run)
                    self.history.reads.setdefault(run, []).append((found.change, found.state.value))
                except NotFound:
                    self.history.refused.append(f"run {run} was answered and is not found")
                except (FlintError, TimeoutError) as error:
                    self._unanswered(error)
            await asyncio.sleep(self._draw.uniform(0.02, 0.1))

    async def _watcher(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            run = self._some_run()
            if run is None:
                await asyncio.sleep(0.1)
                continue
            seen: list[tuple[int, str]] = []
            self.history.watches.append(seen)
            try:
                async with asyncio.timeout(max(0.1, until - loop.time())):
                    async for event in self._flint.watch(run, recorded_only=True):
                        _note(seen, event)
            except TimeoutError:
                return
            except FlintError as error:
                self._unanswered(error)


def _note(seen: list[tuple[int, str]], event: WatchEvent) -> None:
    if isinstance(event, RunSnapshot | RunChanged):
        seen.append((event.run.change, event.run.state.value))


def _surprising(error: Exception) -> bool:
    """Whether it is an answer that a client should never get for a right request, whatever fails."""
    name = type(error).__name__
    return name in ("InvalidArgument", "NotFound", "AlreadyExists", "InternalError", "PermissionDenied")
