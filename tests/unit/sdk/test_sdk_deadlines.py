"""Deadlines of waits: one timer for all of one timeout."""

from __future__ import annotations

import asyncio

import pytest

from flint_sdk import TimedOut
from flint_sdk._deadlines import Deadlines


async def test_each_comes_due_after_its_own_time() -> None:
    loop = asyncio.get_running_loop()
    deadlines = Deadlines()
    began = loop.time()

    async def wait(begin_s: float, timeout_s: float, name: str) -> float:
        await asyncio.sleep(begin_s)
        future = loop.create_future()
        deadlines.add(future, timeout_s, f"namespaces/default/runs/{name}")
        with pytest.raises(TimedOut, match=f"run {name} has not ended within {timeout_s:g} s"):
            await future
        return loop.time() - began

    ended = await asyncio.gather(wait(0, 0.1, "a"), wait(0.05, 0.1, "b"), wait(0, 0.02, "c"))
    for took, least in zip(ended, (0.1, 0.15, 0.02), strict=True):
        assert least - 0.01 <= took < least + 1
    assert ended[2] < ended[0] < ended[1]
    assert not deadlines._due
    assert not deadlines._timers


async def test_what_is_done_or_discarded_is_left_alone() -> None:
    loop = asyncio.get_running_loop()
    deadlines = Deadlines()
    done, discarded, late = (loop.create_future() for _ in range(3))
    for future in (done, discarded, late):
        deadlines.add(future, 0.05, "run")
    done.set_result(1)
    deadlines.discard(discarded, 0.05)
    deadlines.discard(discarded, 7.0)
    with pytest.raises(TimedOut):
        await late
    assert done.result() == 1
    assert not discarded.done()
    kept = loop.create_future()
    deadlines.add(kept, 60.0, "run")
    deadlines.close()
    assert not deadlines._timers
