"""Room for large values in one process's memory: first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

__all__ = ["Held", "Room"]


class _Waiter(NamedTuple):
    held: Held
    size: int
    admitted: asyncio.Future[None]


class Held:
    """What one holder has of the room."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.size = 0

    async def grow(self, size: int) -> None:
        """Take `size` bytes more; waits until they are there. Of those that grow the eldest never waits: so they do
        not wait for one another for ever, and what is held exceeds the budget by no more than one value.
        """
        await self._room._grow(self, size)


class Room:
    """A budget of bytes. For one event loop; safe for concurrent use."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._used = 0
        self._coming: deque[_Waiter] = deque()
        self._growing: list[_Waiter] = []
        self._growers: dict[Held, None] = {}  # by age: holders that have grown, to the end of their block

    @property
    def used(self) -> int:
        """Bytes that are held now."""
        return self._used

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[Held]:
        """Room for `size` bytes while the block lasts; waits for its turn. What is larger than all goes alone."""
        held = Held(self)
        try:
            await self._wait(self._coming, _Waiter(held, size, asyncio.get_running_loop().create_future()))
            yield held
        finally:
            self._used -= held.size
            self._growers.pop(held, None)
            self._admit()

    async def _grow(self, held: Held, size: int) -> None:
        self._growers.setdefault(held)
        await self._wait(self._growing, _Waiter(held, size, asyncio.get_running_loop().create_future()))

    async def _wait(self, queue: deque[_Waiter] | list[_Waiter], waiter: _Waiter) -> None:
        queue.append(waiter)
        self._admit()
        try:
            await waiter.admitted
        except asyncio.CancelledError:
            if waiter in queue:
                queue.remove(waiter)
                self._admit()
            raise

    def _admit(self) -> None:
        for waiter in list(self._growing):
            if self._fits(waiter.size) or waiter.held is next(iter(self._growers)):
                self._growing.remove(waiter)
                self._take(waiter)
        # Whoever holds something already goes first: it ends sooner.
        while self._coming and not self._growing and (self._used == 0 or self._fits(self._coming[0].size)):
            self._take(self._coming.popleft())

    def _fits(self, size: int) -> bool:
        return self._used + size <= self._budget

    def _take(self, waiter: _Waiter) -> None:
        waiter.held.size += waiter.size
        self._used += waiter.size
        if not waiter.admitted.done():
            waiter.admitted.set_result(None)
