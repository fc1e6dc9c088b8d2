"""Clients under faults: they start runs, steer them, send them events and signals, read and watch, and write down what
they were told.

A call that failed without an answer may have happened: it stays open in the history until the same request is asked
again at the end (`settle`).
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable
from datetime import timedelta
from typing import TypeVar

from flint_sdk import (
    AsyncFlint,
    FailedPrecondition,
    FlintError,
    RunChanged,
    RunSnapshot,
    RunState,
    ScheduleSpec,
)
from support.record_reader import Record
from support.soak.history import Count, History, Seen, Started
from support.soak.model import SIGNALS, go_event, signal_payload
from support.soak.workflows import KINDS, TICK

__all__ = ["SCHEDULE", "Traffic"]

SCHEDULE = "soak-tick"
_PATIENCE_S = 20.0
_SURPRISING = {"InvalidArgument", "NotFound", "AlreadyExists", "InternalError", "PermissionDenied", "Unauthenticated"}
"""Answers that a client should never get for a right request, whatever fails."""

Answer = TypeVar("Answer")


class Traffic:
    """Some clients of one stack."""

    def __init__(self, flint: AsyncFlint, url: str, seed: int) -> None:
        self._flint = flint
        self._url = url
        self._seed = seed
        self._draw = random.Random(seed)
        self._numbers = itertools.count()
        self.history = History()

    async def prepare(self) -> None:
        """Stores the definitions and the schedule, of every second."""
        for kind in (*KINDS, TICK):
            await self._flint.apply(kind.source)
        spec = ScheduleSpec(every="PT1S", catch_up="all", catch_up_window=timedelta(minutes=10))
        await self._flint.schedules.create(SCHEDULE, f"soak-{TICK.name}", spec)

    async def run(self, for_s: float, clients: int = 5) -> None:
        """Goes on for a while."""
        until = asyncio.get_running_loop().time() + for_s
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._client(number, until))
            group.create_task(self._steerer(until))
            group.create_task(self._reader(until))
            for number in range(2):
                group.create_task(self._watcher(number, until))

    async def settle(self, record: Record, within_s: float) -> None:
        """Asks again for every start, and gives runs what they wait for, until all have ended and nothing is asked of
        any, or the time is over."""
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        while not await self._asked("stop firing", self._flint.schedules.pause(SCHEDULE, "the trial is over")):
            if loop.time() > until:
                return
        for started in list(self.history.starts.values()):
            await self._start(started)
            while not started.runs and loop.time() < until:
                await self._start(started)
        quiet = 0  # rounds: a fire may have been under way when the schedule was paused
        while quiet < 2 and loop.time() < until:
            left = [run.id async for run in self._flint.list_runs(states=_UNFINISHED, page_size=500)]
            known = self.history.by_run()
            for run in left:
                if run in known:
                    await self._wake(known[run])
            busy = bool(left) or bool(await record.number("SELECT count(*) FROM inbox"))
            quiet = 0 if busy else quiet + 1
            await asyncio.sleep(0.5)

    # -- one client ----------------------------------------------------------------------------------------------------

    async def _client(self, number: int, until: float) -> None:
        loop, draw = asyncio.get_running_loop(), random.Random(self._seed * 1000 + number)
        weights = [kind.weight for kind in KINDS]
        for count in itertools.count():
            if loop.time() >= until:
                return
            kind = draw.choices(KINDS, weights)[0]
            key = f"soak-{self._seed}-{number}-{count}"
            given = {"url": self._url, "key": key, "n": draw.randrange(1000), "shop": draw.choice("abc")}
            started = self.history.starts[key] = Started(kind, key, given)
            await self._start(started)
            if started.runs and draw.random() < 0.8:
                if kind.events:
                    await self._publish(started)
                if kind.signals:
                    await self._signals(started, draw)
            await asyncio.sleep(draw.uniform(0.02, 0.2))

    async def _start(self, started: Started) -> None:
        name = f"soak-{started.kind.name}"
        handle = await self._asked("start", self._flint.start(name, started.given, request_id=started.request_id))
        if handle is not None:
            started.runs.add(handle.id)

    async def _publish(self, started: Started) -> None:
        event = go_event(started.request_id, f"{started.request_id}-{next(self._numbers)}")
        await self._asked("publish", self._flint.publish_events([event]))

    async def _signals(self, started: Started, draw: random.Random) -> None:
        names = list(SIGNALS)
        draw.shuffle(names)
        for name in (*names, draw.choice(names)):
            await self._signal(started, name)
        if draw.random() < 0.3:
            update = self._flint.update(started.run, "go", signal_payload("one"), signal_id="one", timeout_s=5.0)
            sent = await self._asked("update", update)
            if sent is not None and sent.taken:
                self.history.taken.add(started.run)

    async def _signal(self, started: Started, name: str) -> None:
        await self._asked("signal", self._flint.signal(started.run, "go", signal_payload(name), signal_id=name))

    async def _wake(self, started: Started) -> None:
        """What a run may wait for. A run that is not paused, or has ended meanwhile, refuses: that is all."""
        await self._asked("resume", self._flint.resume(started.run))
        if started.kind.events:
            await self._publish(started)
        if started.kind.signals:
            for name in SIGNALS:
                await self._signal(started, name)

    async def _asked(self, what: str, call: Awaitable[Answer]) -> Answer | None:
        """The answer; None when there is none, or it is a refusal that the run's state explains."""
        count = self.history.counts.setdefault(what, Count())
        try:
            async with asyncio.timeout(_PATIENCE_S):
                answer = await call
        except FailedPrecondition:
            count.refused += 1
        except TimeoutError:
            count.unanswered += 1
        except FlintError as error:
            count.unanswered += 1
            if type(error).__name__ in _SURPRISING:
                self.history.surprises.append(f"{what}: {type(error).__name__}: {error}")
        else:
            count.answered += 1
            return answer
        return None

    # -- steering ------------------------------------------------------------------------------------------------------

    async def _steerer(self, until: float) -> None:
        loop, draw = asyncio.get_running_loop(), random.Random(self._seed * 1000 + 500)
        while loop.time() < until:
            started = self._some_start()
            if started is not None:
                await self._steer(started, draw)
            await asyncio.sleep(draw.uniform(0.02, 0.25))

    async def _steer(self, started: Started, draw: random.Random) -> None:
        flint, run = self._flint, started.run
        kinds = {"cancel": 3, "terminate": 2, "level": 2}
        if started.kind.steered:
            kinds |= {"pause": 5, "resume": 4}
            if started.kind.reset:  # signals that were taken stay taken
                kinds |= {"reset": 3, "retry": 1}
        what = draw.choices(list(kinds), list(kinds.values()))[0]
        match what:
            case "cancel":
                started.ended_by = started.ended_by or what
                await self._asked(what, flint.cancel(run, "the traffic wanted so", grace_s=draw.uniform(0, 0.5)))
            case "terminate":
                started.ended_by = started.ended_by or what
                await self._asked(what, flint.terminate(run, "the traffic wanted so"))
            case "level":
                await self._asked(what, flint.set_level(run, draw.randrange(10)))
            case "pause":
                await self._asked(what, flint.pause(run))
            case "resume":
                await self._asked(what, flint.resume(run))
            case _:
                started.reset = True
                await self._asked(what, flint.reset(run) if what == "reset" else flint.retry(run))

    # -- readers -------------------------------------------------------------------------------------------------------

    def _some_start(self) -> Started | None:
        known = [started for started in self.history.starts.values() if started.runs]
        return self._draw.choice(known[-40:]) if known else None

    async def _reader(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            started = self._some_start()
            if started is not None:
                run = await self._asked("read", self._flint.get_run(started.run))
                if run is not None:
                    self.history.reads.setdefault(run.id, []).append(Seen.of(run))
            await asyncio.sleep(self._draw.uniform(0.02, 0.1))

    async def _watcher(self, number: int, until: float) -> None:
        loop = asyncio.get_running_loop()
        while (left := until - loop.time()) > 0:
            started = self._some_start()
            if started is None:
                await asyncio.sleep(0.1)
                continue
            seen: list[Seen] = []
            self.history.watches.append((started.run, seen))
            await self._asked("watch", asyncio.wait_for(self._watch(started.run, seen), min(left, 5.0)))

    async def _watch(self, run: str, seen: list[Seen]) -> None:
        async for event in self._flint.watch(run, recorded_only=True):
            if isinstance(event, RunSnapshot | RunChanged):
                seen.append(Seen.of(event.run))  # noqa: PERF401 what came before a break stays


_UNFINISHED = (RunState.QUEUED, RunState.RUNNING, RunState.WAITING, RunState.PAUSED)
