"""The pace: how many of those who wait for a turn of the event loop have their say in one.

Usually many, as few make many small messages, which cost more. While somebody is impatient, few; and fewer still where
turns cost the thread more than they may: then what has come meanwhile is read, and what was said is written, soon.
Measured is CPU time, so that a machine that is busy with others does not look like long turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

__all__ = ["Pace", "Portion"]

_HURRY_S: Final = 1.0
_TURN_S: Final = 0.002
"""CPU time that a turn may cost in a hurry."""
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


class Portion:
    """Of one kind of work, what one turn may take."""

    def __init__(self, pace: Pace, usual: int, hurried: int) -> None:
        """`usual`, and at most `hurried` while somebody is in a hurry."""
        self._pace = pace
        self._usual = usual
        self._hurried = hurried
        self._size = hurried
        self._spent_before = 0.0

    def first(self) -> int:
        """Of the first turn after a pause."""
        self._spent_before = self._pace.spent()
        return self._size if self._pace.hurried else self._usual

    def next(self) -> int:
        """Of the turn after the one for which it was asked last."""
        if not self._pace.hurried:
            return self.first()
        now = self._pace.spent()
        cost_s, self._spent_before = now - self._spent_before, now
        if cost_s > _TURN_S:
            self._size = max(_LEAST, self._size // 2)
        elif cost_s < _TURN_S / 2 and self._size < self._hurried:
            self._size += 1
        return self._size
