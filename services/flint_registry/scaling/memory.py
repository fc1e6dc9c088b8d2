"""What a leader remembers of workers and pools between two looks. Lost with the leader: another learns it anew within
minutes, and is slow to end anybody until then.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_elastic import DurationSketch
from flint_registry.view import LiveWorker

__all__ = ["LegTimes", "PoolMemory", "Staying", "WorkerMemory", "legs_that_stay"]

_HALF_LIFE_S: Final = 600.0
_ENOUGH: Final = 1e-6
_MOST_SPREAD: Final = 100.0
_LEAST_LOOK_S: Final = 3.0
_MOST_LOOK_S: Final = 3_600.0
_LOOK_LEGS: Final = 5.0  # learned leg times over which slots in use and ended legs are compared
_DOUBT: Final = 2.0  # standard deviations that chance is allowed


class LegTimes:
    """Mean and spread of the time that legs hold a slot; what was seen ten minutes ago counts half."""

    def __init__(self) -> None:
        self._at = 0.0
        self._legs = 0.0
        self._sum = 0.0
        self._squares = 0.0

    def add(self, legs: int, seconds: float, squares: float, at: float) -> None:
        """With legs that ended, and the sums of their times and of the squares."""
        fade = 0.5 ** (max(0.0, at - self._at) / _HALF_LIFE_S) if self._at else 1.0
        self._at = at
        self._legs = self._legs * fade + legs
        self._sum = self._sum * fade + max(0.0, seconds)
        self._squares = self._squares * fade + max(0.0, squares)

    @property
    def mean_s(self) -> float | None:
        """None before the first."""
        return self._sum / self._legs if self._legs > _ENOUGH else None

    @property
    def spread(self) -> float:
        """Coefficient of variation; 1 before the first."""
        mean = self.mean_s
        if not mean:
            return 1.0
        return min(_MOST_SPREAD, math.sqrt(max(0.0, self._squares / self._legs - mean * mean)) / mean)


@dataclass(slots=True)
class Staying:
    """Slots in use beyond what legs that end explain: by Little's law, those of legs that stay.

    Both sides are means that forget within some learned leg times. Slots in use are smoothed twice, so that they come
    later than the ends of what filled them: a pool that just filled with short legs shows nobody who stays.
    """

    _at: float = 0.0
    _busy_soon: float = 0.0
    _busy: float = 0.0
    _explained: float = 0.0

    def look(self, legs: int, ended_s: float, mean_s: float | None, at: float) -> None:
        """With the legs that are held now, and the time that those held which ended since the last look."""
        over_s, self._at = (max(0.0, at - self._at) if self._at else 0.0), at
        if over_s <= 0:
            return
        keep = math.exp(-over_s / self._window_s(mean_s))
        self._busy_soon += (1 - keep) * (legs - self._busy_soon)
        self._busy += (1 - keep) * (self._busy_soon - self._busy)
        self._explained += (1 - keep) * (max(0.0, ended_s) / over_s - self._explained)

    @staticmethod
    def _window_s(mean_s: float | None) -> float:
        return min(_MOST_LOOK_S, max(_LEAST_LOOK_S, _LOOK_LEGS * (mean_s or 0.0)))

    def parts(self) -> tuple[float, float]:
        """Slots in use, and those of them that ends explain."""
        return self._busy, self._explained


def legs_that_stay(workers: Iterable[tuple[int, Staying]]) -> int:
    """How many of the legs now held, by worker, stay: never more than are held, none by chance alone."""
    held = busy = explained = 0.0
    for legs, staying in workers:
        part = staying.parts()
        held, busy, explained = held + legs, busy + part[0], explained + part[1]
    # Ends come by chance: as many as a window has legs, give or take their root.
    doubt = _DOUBT * math.sqrt(2 * max(0.0, explained) / _LOOK_LEGS)
    return int(max(0.0, min(held, busy - explained - doubt)))


@dataclass(slots=True)
class WorkerMemory:
    """One incarnation."""

    idle_since: float | None = None
    cordoned_at: float = 0.0
    """When it was first seen to take no more legs by a decision; 0: it takes them."""
    drained_at: float = 0.0
    """When it was first seen on its way to its end; 0: it is not."""
    ended_legs: int = 0
    leg_s: float = 0.0
    leg_s_squared: float = 0.0
    staying: Staying = field(default_factory=Staying)

    def look(self, worker: LiveWorker, at: float, times: LegTimes) -> None:
        """Takes over its last heartbeat."""
        beat = worker.beat
        if beat is None:
            return
        self.staying.look(beat.legs, beat.leg_s - self.leg_s, times.mean_s, at)
        busy = beat.legs > 0 or beat.legs_ended > self.ended_legs
        if beat.legs_ended > self.ended_legs:
            legs = beat.legs_ended - self.ended_legs
            times.add(legs, beat.leg_s - self.leg_s, beat.leg_s_squared - self.leg_s_squared, at)
            self.ended_legs, self.leg_s, self.leg_s_squared = beat.legs_ended, beat.leg_s, beat.leg_s_squared
        if busy:
            self.idle_since = None
        elif self.idle_since is None:
            self.idle_since = at


@dataclass(slots=True)
class PoolMemory:
    """One pool."""

    times: LegTimes = field(default_factory=LegTimes)
    startup: DurationSketch = field(default_factory=DurationSketch)
    start_failures: int = 0
    slots: int = 0
    """Of a new worker: as ordered, else of the one that registered last; 0 while neither is known."""
    quiet_since: float | None = None
    """Since when nothing waited, ran or arrived."""

    def listen(self, busy: bool, at: float) -> None:
        """Whether anything waits, runs or arrives at this moment."""
        if busy:
            self.quiet_since = None
        elif self.quiet_since is None:
            self.quiet_since = at

    def registered(self, card: registry_pb2.WorkerCard, ordered_ms: int, at: float) -> None:
        """A worker that was ordered has come."""
        self.start_failures = 0
        self.startup.add(max(0, card.register_time.ToMilliseconds() - ordered_ms) / 1000, at)

    @property
    def startup_s(self) -> float | None:
        """From ordering a worker to its registration, 95th percentile; None before the first."""
        return self.startup.quantile(0.95)
