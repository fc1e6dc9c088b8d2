"""A lane: one commit under way at a time; whatever arrives meanwhile is the next batch.

Natural batching needs no timer: an idle lane commits a single start at once, a busy one shares each commit among
hundreds. If a batch fails unexpectedly its units are told; the lane goes on. When the lane's task is cancelled, units
that wait are told `LaneClosed`; the one under way may have happened.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from typing import Generic, TypeVar

from flint_ops.logging import get_logger

__all__ = ["Lane", "LaneClosed"]

log = get_logger(__name__)

Unit = TypeVar("Unit")


class LaneClosed(Exception):
    """The lane stopped before the unit's turn came; it did not happen."""


class Lane(ABC, Generic[Unit]):
    """Units in, batches of them committed one after the other."""

    def __init__(self, batch_weight: int) -> None:
        self._batch_weight = batch_weight
        self._pending: deque[Unit] = deque()
        self._arrived = asyncio.Event()
        self._turn = asyncio.Lock()
        self._closed = False

    def _put(self, unit: Unit) -> None:
        if self._closed:
            raise LaneClosed
        self._pending.append(unit)
        self._arrived.set()

    async def run(self) -> None:
        """Commit batches until cancelled."""
        try:
            while True:
                await self._arrived.wait()
                async with self._turn:
                    batch = self._take()
                    if batch:
                        await self._commit_safely(batch)
        finally:
            self._closed = True
            while self._pending:
                self._refuse(self._pending.popleft(), LaneClosed())

    async def _commit_safely(self, batch: list[Unit]) -> None:
        try:
            await self._commit(batch)
        except Exception as error:
            log.exception("batch_failed", lane=type(self).__name__, units=len(batch))
            for unit in batch:
                self._refuse(unit, error)

    @property
    def waiting(self) -> int:
        """Units that wait for their batch."""
        return len(self._pending)

    def _take(self) -> list[Unit]:
        batch: list[Unit] = []
        weight = 0
        while self._pending:
            unit_weight = self._weight(self._pending[0])
            if batch and weight + unit_weight > self._batch_weight:
                break
            weight += unit_weight
            batch.append(self._pending.popleft())
        if not self._pending:
            self._arrived.clear()
        return batch

    @property
    def turn(self) -> asyncio.Lock:
        """Held while a batch is under way; whoever holds it keeps the next one waiting."""
        return self._turn

    async def barrier(self) -> None:
        """Return when the batch under way has ended; batches that begin later see what the caller changed before."""
        async with self._turn:
            return

    def _weight(self, unit: Unit) -> int:
        """How much of a batch a unit takes."""
        return 1

    @abstractmethod
    async def _commit(self, batch: list[Unit]) -> None:
        """Commit one batch and settle each of its units. What it raises is a defect: logged, and told to the units."""

    @abstractmethod
    def _refuse(self, unit: Unit, error: Exception) -> None:
        """Tell a unit that it failed: it did not happen (LaneClosed), or may have (anything else)."""
