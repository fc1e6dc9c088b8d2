"""A lane commits one batch at a time; what arrives meanwhile is the next batch."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from flint_scheduler.lane import Lane, LaneClosed


class Collecting(Lane[int]):
    def __init__(self, batch_weight: int = 100) -> None:
        super().__init__(batch_weight)
        self.batches: list[list[int]] = []
        self.refused: list[int] = []
        self.hold = asyncio.Event()
        self.began = asyncio.Event()

    def put(self, unit: int) -> None:
        self._put(unit)

    async def _commit(self, batch: list[int]) -> None:
        self.began.set()
        await self.hold.wait()
        self.batches.append(batch)

    def _refuse(self, unit: int, error: Exception) -> None:
        assert isinstance(error, LaneClosed)
        self.refused.append(unit)


async def test_natural_batching() -> None:
    lane = Collecting()
    task = asyncio.create_task(lane.run())
    lane.put(1)
    await lane.began.wait()
    for unit in (2, 3, 4):
        lane.put(unit)
    lane.hold.set()
    while len(lane.batches) < 2:
        await asyncio.sleep(0)
    assert lane.batches == [[1], [2, 3, 4]]
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_barrier_waits_for_the_batch_under_way() -> None:
    lane = Collecting()
    task = asyncio.create_task(lane.run())
    lane.put(1)
    await lane.began.wait()
    barrier = asyncio.create_task(lane.barrier())
    await asyncio.sleep(0)
    assert not barrier.done()
    lane.hold.set()
    await barrier
    assert lane.batches == [[1]]
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_units_that_wait_are_refused_when_the_lane_stops() -> None:
    lane = Collecting()
    task = asyncio.create_task(lane.run())
    lane.put(1)
    await lane.began.wait()
    lane.put(2)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert lane.refused == [2]
    with pytest.raises(LaneClosed):
        lane.put(3)


async def test_batches_are_bounded() -> None:
    lane = Collecting(batch_weight=2)
    lane.hold.set()
    for unit in range(5):
        lane.put(unit)
    task = asyncio.create_task(lane.run())
    while len(lane.batches) < 3:
        await asyncio.sleep(0)
    assert lane.batches == [[0, 1], [2, 3], [4]]
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
