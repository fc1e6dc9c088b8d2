"""A subscription whose handler may be a coroutine function.

States: OPEN, then CLOSED. A plain handler runs within the reader. Coroutines are run one after another by one task that
lives only while there is something to run. When it dies (it is only ever cancelled, by `close`) nothing more is
delivered.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from flint_bus.messages import Message
from flint_ops.logging import get_logger

__all__ = ["MessageHandler", "Subscription"]

MessageHandler = Callable[[Message], Awaitable[None] | None]

_QUEUE_LIMIT: Final = 10_000

_log = get_logger("flint_bus.subscription")


class Subscription:
    """What `Bus.subscribe` returns."""

    def __init__(self, subject: str, handler: MessageHandler, publish: Callable[[str, bytes], None]) -> None:
        self.subject = subject
        self.dropped = 0
        """Messages dropped because the handler was too slow."""
        self._handler = handler
        self._publish = publish
        self._queue: deque[Awaitable[None]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._end: Callable[[], None] | None = None

    def start(self, end: Callable[[], None]) -> None:
        """Called once by the bus, with what unsubscribes."""
        self._end = end

    def deliver(self, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        """Called by the reader."""
        if len(self._queue) >= _QUEUE_LIMIT:
            self.dropped += 1
            if self.dropped & (self.dropped - 1) == 0:  # 1, 2, 4, 8, …: told, not flooded
                _log.warning("messages_dropped", subject=self.subject, dropped=self.dropped)
            return
        result = self._handler(Message(subject.decode(), reply.decode(), data, headers, self._publish))
        if result is not None:
            self._queue.append(result)
            if self._task is None:
                self._task = asyncio.create_task(self._run(), name=f"subscription {self.subject}")

    async def close(self) -> None:
        """Unsubscribes; a handler that runs is cancelled."""
        if self._end is not None:
            self._end()
            self._end = None
        task = self._task
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        for left in self._queue:
            if asyncio.iscoroutine(left):
                left.close()
        self._queue.clear()

    async def _run(self) -> None:
        try:
            while self._queue:
                try:
                    await self._queue.popleft()
                except Exception:
                    _log.exception("handler_failed", subject=self.subject)
        finally:
            self._task = None
