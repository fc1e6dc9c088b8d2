"""One inbox for every answer: token → future.

A wildcard subscription, a dict and one timer serve all requests and all appends of a connection: no subscription, no
task and no timer per message. Answers that come after their deadline find no token and are dropped.

The sweep runs only while somebody waits, and goes through them only when the earliest deadline has come. When the
connection breaks, `fail_all` tells everybody at once.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from flint_bus.wire import Wire

__all__ = ["Inbox"]

_SWEEP_S: Final = 0.05

Settle = Callable[[bytes, bytes | None], Any]
"""Makes the result of an answer (payload, raw headers), or raises."""


class _Waiting:
    __slots__ = ("deadline", "future", "on_timeout", "settle")

    def __init__(
        self,
        future: asyncio.Future[Any],
        settle: Settle,
        deadline: float,
        on_timeout: Callable[[str], Exception],
    ) -> None:
        self.future = future
        self.settle = settle
        self.deadline = deadline
        self.on_timeout = on_timeout


class Inbox:
    """Answers to what was asked with `reply_to`. `limit` bounds how many may be outstanding."""

    def __init__(self, prefix: str, limit: int) -> None:
        self._prefix = prefix
        self._cut = len(prefix)
        self._limit = limit
        self._waiting: dict[bytes, _Waiting] = {}
        self._queue: deque[asyncio.Future[None]] = deque()
        self._next = 0
        self._loop = asyncio.get_running_loop()
        self._sweep: asyncio.TimerHandle | None = None
        self._earliest = math.inf  # no deadline of those who wait is before it

    def attach(self, wire: Wire) -> None:
        """Listens on a (new) connection."""
        wire.listen(self._prefix + "*", self._on_answer)

    @property
    def outstanding(self) -> int:
        """Answers that are waited for."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether `reply_to` must wait for `room`."""
        return len(self._waiting) >= self._limit

    async def room(self, timeout_s: float) -> None:
        """Waits until there is room. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while self.full:
                turn: asyncio.Future[None] = self._loop.create_future()
                self._queue.append(turn)
                try:
                    await turn
                except asyncio.CancelledError:
                    if turn.done() and not turn.cancelled():
                        self._wake()  # the turn was given to us but we leave: pass it on
                    raise

    def reply_to(
        self, settle: Settle, timeout_s: float, on_timeout: Callable[[str], Exception]
    ) -> tuple[str, asyncio.Future[Any]]:
        """A fresh reply subject and the future of its answer. `on_timeout` makes the exception when none comes."""
        self._next += 1
        token = b"%x" % self._next
        future: asyncio.Future[Any] = self._loop.create_future()
        deadline = self._loop.time() + timeout_s
        if deadline < self._earliest:
            self._earliest = deadline
        self._waiting[token] = _Waiting(future, settle, deadline, on_timeout)
        if self._sweep is None:
            self._sweep = self._loop.call_later(_SWEEP_S, self._expire)
        return f"{self._prefix}{self._next:x}", future

    def fail_all(self, why: str) -> None:
        """The connection is gone: nobody will answer."""
        waiting, self._waiting = self._waiting, {}
        for entry in waiting.values():
            if not entry.future.done():
                entry.future.set_exception(entry.on_timeout(why))
        self._wake_all()

    def close(self) -> None:
        """Stops the sweep and fails what is outstanding."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        self.fail_all("the bus was closed")

    def _on_answer(self, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        entry = self._waiting.pop(subject[self._cut :], None)
        if self._queue:
            self._wake()
        if entry is not None:
            _tell(entry, data, headers)

    def _expire(self) -> None:
        self._sweep = None
        now = self._loop.time()
        if now >= self._earliest or self._queue:
            self._drop_expired(now)
        if self._waiting:
            self._sweep = self._loop.call_later(_SWEEP_S, self._expire)

    def _drop_expired(self, now: float) -> None:
        earliest = math.inf
        expired: list[bytes] = []
        for token, entry in self._waiting.items():
            if entry.deadline <= now or entry.future.done():
                expired.append(token)
            elif entry.deadline < earliest:
                earliest = entry.deadline
        self._earliest = earliest
        for token in expired:
            entry = self._waiting.pop(token)
            if not entry.future.done():
                entry.future.set_exception(entry.on_timeout("no answer in time"))
            self._wake()

    def _wake(self) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _wake_all(self) -> None:
        while self._queue:
            self._wake()


def _tell(entry: _Waiting, data: bytes, headers: bytes | None) -> None:
    future = entry.future
    if future.done():
        return
    try:
        result = entry.settle(data, headers)
    except Exception as error:
        future.set_exception(error)  # reaches whoever waits
    else:
        future.set_result(result)
