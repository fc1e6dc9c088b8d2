"""Deadlines of many waits, with one timer for all that were given the same time.

A client may wait for thousands of runs with the same timeout; a timer each costs more than the rest of the wait.
Those of one timeout come due in the order in which they came, so the first one's timer serves all. A timer stays
armed until it fires and finds nobody left, or `close`.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any, Final

from flint_sdk._errors import TimedOut

_EARLY_S: Final = 0.002
"""Event loops round their timers to milliseconds."""


class Deadlines:
    """See the module. Belongs to one event loop."""

    def __init__(self) -> None:
        self._due: dict[float, OrderedDict[asyncio.Future[Any], tuple[float, str]]] = {}
        self._timers: dict[float, asyncio.TimerHandle] = {}

    def add(self, future: asyncio.Future[Any], timeout_s: float, name: str) -> None:
        """Fails the future of this run with TimedOut after so long, unless it is done by then."""
        loop = future.get_loop()
        due = self._due.get(timeout_s)
        if due is None:
            due = self._due[timeout_s] = OrderedDict()
            self._timers[timeout_s] = loop.call_later(timeout_s, self._fire, loop, timeout_s)
        due[future] = (loop.time() + timeout_s, name)

    def discard(self, future: asyncio.Future[Any], timeout_s: float) -> None:
        """Forgets a future that was added with this timeout; nothing when it has come due."""
        due = self._due.get(timeout_s)
        if due is not None:
            due.pop(future, None)

    def close(self) -> None:
        """Forgets all of them."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._due.clear()

    def _fire(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        due = self._due[timeout_s]
        now = loop.time() + _EARLY_S
        while due:
            future = next(iter(due))
            when, name = due[future]
            if when > now:
                self._timers[timeout_s] = loop.call_at(when, self._fire, loop, timeout_s)
                return
            del due[future]
            if not future.done():
                future.set_exception(TimedOut(f"run {name.rpartition('/')[2]} has not ended within {timeout_s:g} s"))
        del self._due[timeout_s], self._timers[timeout_s]
