"""The pace: how many of those who wait for a turn of the event loop have their say in one.

Usually many, as few make many small messages, which cost more, but no more than a turn of some milliseconds takes:
whoever comes meanwhile waits for all of it. While somebody is impatient, few: then what has come is read, and what was
said is written, soon. How many that is, the cost of the turns before tells. Measured is CPU time, so that a machine
that is busy with others does not look like long turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

__all__ = ["Pace", "Portion"]

_HURRY_S: Final = 1.0
_TURN_S: Final = 0.01
"""CPU time that a turn may cost."""
_HURRIED_TURN_S: Final = 0.002
"""The same in a hurry."""
_LEAST: Final = 2


class Pace:
    """Whether anybody is in a hurry. One for each connection, and as many portions as there are kinds of work."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, spent: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock = clock
        self._until = -_HURRY_S
        self.spent: Final = spent

    def hurry(self) -> None:
        """Somebody is impatient: for a second, turns are to be short."""
        self._until = self._clock() + _HURRY_S

    @property
    def hurried(self) -> bool:
        """Whether turns are to be short."""
        return self._clock() < self._until


class _Size:
    """Grows while turns are cheap and is halved when one was too long, between `least` and `most`."""

    __slots__ = ("_least", "_most", "_turn_s", "now")

    def __init__(self, least: int, most: int, turn_s: float) -> None:
        self._least = least
        self._most = most
        self._turn_s = turn_s
        self.now = most

    def fit(self, cost_s: float) -> int:
        if cost_s > self._turn_s:
            self.now = max(self._least, self.now // 2)
        elif cost_s < self._turn_s / 2:
            self.now = min(self._most, self.now + 1 + self.now // 8)
        return self.now


class Portion:
    """Of one kind of work, what one turn may take."""

    def __init__(self, pace: Pace, usual: int, hurried: int) -> None:
        """At most `usual`; at most `hurried` while somebody is in a hurry, and otherwise no fewer."""
        self._pace = pace
        self._usual = _Size(hurried, usual, _TURN_S)
        self._hurried = _Size(_LEAST, hurried, _HURRIED_TURN_S)
        self._size = self._usual
        self._spent_before = 0.0

    def first(self) -> int:
        """Of the first turn after a pause."""
        self._size = self._hurried if self._pace.hurried else self._usual
        self._spent_before = self._pace.spent()
        return self._size.now

    def next(self) -> int:
        """Of the turn after the one for which it was asked last."""
        if self._size is not (self._hurried if self._pace.hurried else self._usual):
            return self.first()  # what the other kind of turn took says nothing of this one
        now = self._pace.spent()
        cost_s, self._spent_before = now - self._spent_before, now
        return self._size.fit(cost_s)
