"""A run's entries leave the stream by purge or age while its leg is still at a long step (R8)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from worker_bench import Bench, https

from flint_bus import journal_stream

pytestmark = pytest.mark.parametrize("level", [0, 5])  # an urgent leg, on its run's subject; another one, in a lane


async def at_its_second_step(bench: Bench, level: int) -> tuple[Any, asyncio.Task[str], asyncio.Event, Any]:
    job = bench.job(bench.define(https(2)), level=level)
    first, second = asyncio.Event(), asyncio.Event()
    bench.probe.hold = first
    leg = bench.leg(job)
    task = leg.start()
    await bench.probe.begun.wait()
    bench.probe.hold = second
    first.set()
    async with asyncio.timeout(60):
        while len(bench.probe.calls) < 2:
            await asyncio.sleep(0)
    stream = journal_stream(1)
    state = await bench.bus.stream_state(stream)
    assert state is not None
    subject = leg._journal._lane._subject
    assert await bench.bus.purge_up_to(stream, state.last_sequence, subject=subject) == 1
    assert await bench.bus.last_message(stream, subject) is None
    return job, task, second, leg


async def test_the_outcome_of_a_long_step_is_appended_behind_a_purge(bench: Bench, level: int) -> None:
    job, task, release, leg = await at_its_second_step(bench, level)
    leg._journal._lane._stored_at -= 60  # the step has taken a minute
    release.set()
    async with asyncio.timeout(60):
        assert await task == "succeeded"
    assert [entry.index for entry in await bench.entries(job)] == [2]
    assert len(bench.probe.calls) == 2


async def test_an_empty_subject_too_early_is_a_lost_entry(bench: Bench, level: int) -> None:
    _, task, release, _ = await at_its_second_step(bench, level)
    release.set()
    async with asyncio.timeout(60):
        assert await task == "superseded"
