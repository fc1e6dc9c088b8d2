"""A pool that exists in numbers only: legs queue, workers start, take legs, drain and end. Events in order of time.
Pure.

Waiting legs begin in order of arrival, on the ready worker with the fewest legs, at once: the placement costs no time
here. Whoever decides sees the pool every `interval_s`, as the registry's leader does, and never what is to come.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from flint_elastic.observation import Backlog, Coming, Observation, WorkerState, WorkerView
from flint_elastic.simulation.days import Day

__all__ = ["Ended", "Moves", "Outcome", "Sample", "play"]

_LEVEL: Final = 5
_SAMPLE_S: Final = 60.0
_TAIL_S: Final = 3_600.0
_WARM_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Moves:
    """What a controller wants done."""

    start: int = 0
    revive: tuple[str, ...] = ()
    drain: tuple[str, ...] = ()
    end: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """What happened since the last observation, for those who learn."""

    durations: list[float]
    arrivals: int
    running_since: Mapping[int, float]
    """When each leg that runs now began, the oldest first."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The pool at one moment, for plots."""

    at: float
    workers: int
    running: int
    waiting: int


@dataclass(slots=True)
class Outcome:
    """How a day went."""

    waits: list[float]
    """Seconds that each leg waited, ordered by length."""
    worker_s: float
    """From asking for each worker to its end."""
    starts: int
    ends: int
    turns: int
    """Changes of direction, from starting to draining or back."""
    samples: list[Sample] = field(default_factory=list)

    def wait(self, share: float) -> float:
        """A quantile of the waits; 0 without legs."""
        return self.waits[min(len(self.waits) - 1, int(share * len(self.waits)))] if self.waits else 0.0

    def late(self, target_s: float) -> float:
        """Share of legs that waited longer than a target."""
        return sum(1 for wait in self.waits if wait > target_s) / len(self.waits) if self.waits else 0.0


@dataclass(slots=True, eq=False)
class _Worker:
    name: str
    asked_at: float
    state: WorkerState = WorkerState.STARTING
    legs: int = 0
    idle_since: float | None = None


class _Pool:
    """The numbers. Ready workers stand in one dictionary for each count of legs, so that the least busy one is found
    at once."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.workers: dict[str, _Worker] = {}
        self.by_legs: list[dict[_Worker, None]] = [{} for _ in range(slots + 1)]
        self.running: dict[int, float] = {}

    def least_busy(self) -> _Worker | None:
        for legs in range(self.slots):
            if self.by_legs[legs]:
                return next(iter(self.by_legs[legs]))
        return None

    def change(self, worker: _Worker, by: int, now: float) -> None:
        if worker.state is WorkerState.READY:
            del self.by_legs[worker.legs][worker]
            self.by_legs[worker.legs + by][worker] = None
        worker.legs += by
        worker.idle_since = None if worker.legs else now

    def become(self, worker: _Worker, state: WorkerState, now: float) -> None:
        if worker.state is WorkerState.READY:
            del self.by_legs[worker.legs][worker]
        elif worker.state is WorkerState.STARTING:
            worker.idle_since = now
        worker.state = state
        if state is WorkerState.READY:
            self.by_legs[worker.legs][worker] = None


def play(
    day: Day,
    decide: Callable[[Observation, Ended], Moves],
    slots_per_worker: int,
    startup_s: float,
    interval_s: float = 5.0,
) -> Outcome:
    """A whole day, and up to an hour more until all legs have begun. `decide` is called at every interval, first at
    the start."""
    pool = _Pool(slots_per_worker)
    outcome = Outcome([], 0.0, 0, 0, 0)
    events: list[tuple[float, int, _Worker]] = []
    queue: deque[int] = deque()
    arrivals, durations = day.arrivals, day.durations
    following = arrived = asked = direction = 0
    ended: list[float] = []
    waits_since: list[float] = []
    tick, until = day.starts_at, day.starts_at + day.lasts_s
    next_sample = tick
    known = deque(day.coming)
    # The day before left as many workers as the first minutes fill.
    soon_s = sum(took for at, took in zip(arrivals, durations, strict=True) if at < tick + _WARM_S)
    for _ in range(math.ceil(soon_s / _WARM_S / slots_per_worker) + 1):
        asked += 1
        worker = _Worker(f"worker-{asked:05}", tick, WorkerState.READY, 0, tick)
        pool.workers[worker.name] = worker
        pool.by_legs[0][worker] = None

    def begin(leg: int, now: float, worker: _Worker) -> None:
        wait = now - arrivals[leg]
        outcome.waits.append(wait)
        waits_since.append(wait)
        pool.change(worker, 1, now)
        pool.running[leg] = now
        heapq.heappush(events, (now + durations[leg], leg, worker))

    def serve(now: float) -> None:
        while queue and (worker := pool.least_busy()) is not None:
            begin(queue.popleft(), now, worker)

    while tick < until or (queue and tick < until + _TAIL_S):
        while True:
            event_at = events[0][0] if events else tick
            arrival_at = arrivals[following] if following < len(arrivals) else tick
            if min(event_at, arrival_at) >= tick:
                break
            if arrival_at <= event_at:
                arrived += 1
                free = pool.least_busy() if not queue else None
                if free is None:
                    queue.append(following)
                else:
                    begin(following, arrival_at, free)
                following += 1
                continue
            now, leg, worker = heapq.heappop(events)
            if leg >= 0:
                ended.append(now - pool.running.pop(leg))
                pool.change(worker, -1, now)
            elif worker.state is WorkerState.STARTING:
                pool.become(worker, WorkerState.READY, now)
            serve(now)
        while known and known[0].at <= tick:
            known.popleft()
        seen = _seen(pool, tick, queue, arrivals, arrived / interval_s, tuple(known)[:64], sorted(waits_since))
        moves = decide(seen, Ended(ended, arrived, pool.running))
        ended, arrived = [], 0
        waits_since.clear()
        asked = _carry_out(pool, moves, tick, startup_s, events, outcome, asked)
        serve(tick)
        turned = 1 if moves.start or moves.revive else -1 if moves.drain else 0
        outcome.turns += turned * direction == -1
        direction = turned or direction
        if tick >= next_sample:
            outcome.samples.append(Sample(tick, len(pool.workers), len(pool.running), len(queue)))
            next_sample += _SAMPLE_S
        tick += interval_s
    outcome.worker_s += sum(tick - worker.asked_at for worker in pool.workers.values())
    outcome.waits.extend(tick - arrivals[leg] for leg in queue)
    outcome.waits.sort()
    return outcome


def _carry_out(
    pool: _Pool,
    moves: Moves,
    now: float,
    startup_s: float,
    events: list[tuple[float, int, _Worker]],
    outcome: Outcome,
    asked: int,
) -> int:
    for name in moves.revive:
        pool.become(pool.workers[name], WorkerState.READY, now)
    for _ in range(moves.start):
        asked += 1
        worker = _Worker(f"worker-{asked:05}", now)
        pool.workers[worker.name] = worker
        # Negative numbers, so that no two events are equal and workers are never compared.
        heapq.heappush(events, (now + startup_s, -asked, worker))
        outcome.starts += 1
    for name in moves.drain:
        pool.become(pool.workers[name], WorkerState.DRAINING, now)
    for name in moves.end:
        worker = pool.workers.pop(name)
        if worker.legs or worker.state is not WorkerState.DRAINING:
            raise AssertionError(f"{name} was ended as {worker.state} with {worker.legs} legs")
        outcome.worker_s += now - worker.asked_at
        outcome.ends += 1
    return asked


def _seen(
    pool: _Pool,
    now: float,
    queue: deque[int],
    arrivals: list[float],
    arrivals_per_s: float,
    coming: tuple[Coming, ...],
    waits: list[float],
) -> Observation:
    backlog = (Backlog(_LEVEL, len(queue), now - arrivals[queue[0]]),) if queue else ()
    workers = tuple(
        WorkerView(worker.name, worker.state, pool.slots, worker.legs, worker.idle_since, worker.asked_at)
        for worker in pool.workers.values()
    )
    wait_p95_s = waits[min(len(waits) - 1, int(0.95 * len(waits)))] if waits else None
    return Observation(now, backlog, arrivals_per_s, workers=workers, coming=coming, wait_p95_s=wait_p95_s)
