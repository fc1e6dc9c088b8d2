"""The best possible: what somebody would pay who knows all arrivals in advance. Pure.

For each minute, the fewest workers with which 95 of 100 of its legs begin within the target, found by trying; they are
there when the minute begins, because their start was asked for in time. Between two minutes that need a worker it is
kept when that is cheaper than its start-up. Running legs are packed together as if they could move, and a worker ends
at once: no real policy can do either. The other bound is blunter: the work alone on workers that are always full.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass
from typing import Final

from flint_elastic.simulation.days import Day

__all__ = ["Bound", "best_possible"]

_STRETCH_S: Final = 60.0
_LATE: Final = 0.05


@dataclass(frozen=True, slots=True)
class Bound:
    """What the best possible costs and how long legs wait with it."""

    worker_s: float
    waits: list[float]
    """Ordered by length."""
    work_s: float
    """Worker-seconds of the work alone, however long legs wait."""
    workers: list[int]
    """Workers of each minute, for plots."""

    def wait(self, share: float) -> float:
        """A quantile of the waits; 0 without legs."""
        return self.waits[min(len(self.waits) - 1, int(share * len(self.waits)))] if self.waits else 0.0


@dataclass(slots=True)
class _Minute:
    ends: list[float]
    queue: deque[int]
    following: int
    waits: list[float]


def best_possible(day: Day, slots_per_worker: int, startup_s: float, target_wait_s: float) -> Bound:
    """The bounds of a day, for workers of so many slots that cost their start-up time too."""
    state = _Minute([], deque(), 0, [])
    workers: list[int] = []
    waits: list[float] = []
    moment, until = day.starts_at, day.starts_at + day.lasts_s
    while moment < until or state.queue:
        least = max(0, math.ceil(len(state.ends) / slots_per_worker) - 2) if state.ends else 0
        count = least
        while True:
            tried = _try(day, state, moment, count * slots_per_worker)
            late = sum(1 for wait in tried.waits if wait > target_wait_s)
            overdue = sum(1 for leg in tried.queue if moment + _STRETCH_S - day.arrivals[leg] > target_wait_s)
            if late + overdue <= _LATE * (len(tried.waits) + overdue):
                break
            count += 1
        held = math.ceil(max(_busy(state.ends, moment), _busy(tried.ends, moment + _STRETCH_S)) / slots_per_worker)
        workers.append(max(count, held))
        waits.extend(tried.waits)
        state = tried
        moment += _STRETCH_S
    return Bound(_cost(workers, startup_s), sorted(waits), day.work_s / slots_per_worker, workers)


def _try(day: Day, state: _Minute, moment: float, slots: int) -> _Minute:
    """One minute on so many slots. Legs that run already stay, and slots are taken only below the number."""
    ends, queue, following = state.ends.copy(), state.queue.copy(), state.following
    waits: list[float] = []
    until = moment + _STRETCH_S

    def begin(leg: int, at: float) -> None:
        waits.append(max(0.0, at - day.arrivals[leg]))
        heapq.heappush(ends, at + day.durations[leg])

    now = moment
    while True:
        while ends and ends[0] <= now:
            heapq.heappop(ends)
        while queue and len(ends) < slots:
            begin(queue.popleft(), now)
        arrival = day.arrivals[following] if following < len(day.arrivals) else math.inf
        now = min(arrival, ends[0] if ends else math.inf)
        if now >= until:
            return _Minute(ends, queue, following, waits)
        if arrival <= now:
            queue.append(following)
            following += 1


def _busy(ends: list[float], moment: float) -> int:
    return sum(1 for end in ends if end > moment)


def _cost(workers: list[int], startup_s: float) -> float:
    """Minutes of the workers, and for each one that is added its start-up, or its keep since it was last needed."""
    total, stopped = 0.0, []
    before = 0
    for minute, count in enumerate(workers):
        total += count * _STRETCH_S
        stopped.extend([minute] * (before - count))
        for _ in range(count - before):
            gap_s = (minute - stopped.pop()) * _STRETCH_S if stopped else math.inf
            total += min(gap_s, startup_s)
        before = count
    return total
