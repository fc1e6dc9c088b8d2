"""Telling many: a few in each turn of the event loop.

Whoever is told runs in the same turn of the event loop as all others who were told. So where hundreds wait, they are
told a few in each turn, in order, and what comes meanwhile is read and written in between.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from flint_bus.pace import Pace, Portion

__all__ = ["Telling"]

_AT_ONCE: Final = 128
_AT_ONCE_IN_A_HURRY: Final = 16
"""How many are told in one turn of the event loop; see `pace`."""


class Telling:
    """Actions in order, so many in each turn of the event loop. Actions must not raise."""

    def __init__(self, pace: Pace) -> None:
        self._loop = asyncio.get_running_loop()
        self._later: deque[Callable[[], None]] = deque()
        self._portion = Portion(pace, _AT_ONCE, _AT_ONCE_IN_A_HURRY)
        self._at_once = 0  # in this turn of the loop
        self._told = 0  # in this turn of the loop
        self._telling = False

    def tell(self, *actions: Callable[[], None]) -> None:
        """Now, or some turns of the loop later where many came in this one."""
        if not self._telling:
            self._telling = True
            self._at_once = self._portion.first()
            self._loop.call_soon(self._tell_more)
        for action in actions:
            if self._told < self._at_once:
                self._told += 1
                action()
            else:
                self._later.append(action)

    def close(self) -> None:
        """Tells all that are left."""
        while self._later:
            self._later.popleft()()

    def _tell_more(self) -> None:
        """A turn of the loop later: the next of them."""
        later = self._later
        self._at_once = self._portion.next()
        self._told = min(len(later), self._at_once)
        for _ in range(self._told):
            later.popleft()()
        if self._told:
            self._loop.call_soon(self._tell_more)
        else:
            self._telling = False
