"""Evaluators that come when they are needed and go when they are not: nothing is lost, and nothing stays behind."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import orjson
import psutil
import pytest

from flint_jq import EvaluationFailed, EvaluatorPool, EvaluatorsBusy
from support.eventually import eventually

MEMORY = 512 * 2**20


@asynccontextmanager
async def opened(lanes: int, idle_s: float, keep_bytes: int = 0) -> AsyncIterator[EvaluatorPool]:
    pool = EvaluatorPool(lanes, 60_000, MEMORY, 2**24, large=True, idle_s=idle_s, keep_bytes=keep_bytes)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()
        assert evaluators() == []


def evaluators() -> list[psutil.Process]:
    """Those of this process, whatever a pool knows of them."""
    found = []
    for child in psutil.Process().children():
        try:
            if "flint_jq.evaluator" in child.cmdline():
                found.append(child)
        except psutil.Error:
            continue
    return found


async def ask(pool: EvaluatorPool, number: int) -> int:
    """What comes back is the number."""
    body = orjson.dumps([[number, "x" * 10_000], {}, 0])
    small, pieces = await pool.take_apart(body, 2**20, source=".[0]")
    assert not pieces
    return int(orjson.loads(small))


async def test_they_start_when_asked_and_serve_again_while_they_last() -> None:
    async with opened(2, idle_s=600) as pool:
        assert evaluators() == []
        assert await ask(pool, 0) == 0
        (pid,) = pool.pids
        for number in range(5):  # nobody else is busy: nobody else is needed
            assert await ask(pool, number) == number
        assert pool.pids == [pid]
        assert await asyncio.gather(*(ask(pool, number) for number in range(20))) == list(range(20))
        assert pid in pool.pids
        assert len(evaluators()) == 2


async def test_an_idle_one_ends_and_the_next_question_gets_another() -> None:
    async with opened(2, idle_s=0.1) as pool:
        assert await ask(pool, 1) == 1
        await eventually(lambda: not pool.pids and not evaluators())
        assert await ask(pool, 2) == 2
        assert pool.replaced == 0


async def test_questions_that_meet_an_end_are_answered() -> None:
    async with opened(2, idle_s=0.0) as pool:

        async def one_after_another(first: int) -> None:
            for number in range(first, first + 6):
                assert await ask(pool, number) == number

        async with asyncio.timeout(240):
            await asyncio.gather(*(one_after_another(first) for first in (0, 100, 200)))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process holds")
async def test_one_that_holds_much_ends_before_its_time() -> None:
    async with opened(1, idle_s=600, keep_bytes=1) as pool:
        assert await ask(pool, 1) == 1
        await eventually(lambda: not pool.pids)
        assert await ask(pool, 2) == 2
    async with opened(1, idle_s=600, keep_bytes=2**40) as pool:
        assert await ask(pool, 1) == 1
        assert pool.pids


async def test_a_pool_may_be_closed_at_any_moment() -> None:
    for idle_s in (0.0, 600.0):
        for turns in (0, 1, 3, 10, 1_000):
            async with opened(2, idle_s) as pool:
                asked = [asyncio.create_task(ask(pool, number)) for number in range(4)]
                for _ in range(turns):
                    await asyncio.sleep(0)
            async with asyncio.timeout(60):
                outcomes = await asyncio.gather(*asked, return_exceptions=True)
            for number, outcome in enumerate(outcomes):
                assert outcome == number or isinstance(outcome, EvaluatorsBusy)


@pytest.mark.parametrize("idle_s", [0.0, 600.0])
async def test_whoever_is_killed_at_whatever_moment_nothing_hangs(idle_s: float) -> None:
    """At each answer, some of the processes are killed: idle ones, busy ones, such as start or end just then."""
    chance = random.Random(5)

    async def asker(pool: EvaluatorPool, first: int, answered: Callable[[], None]) -> None:
        for number in range(first, first + 6):
            while True:
                try:
                    assert await ask(pool, number) == number
                    break
                except EvaluatorsBusy:
                    continue  # as a leg does
                except EvaluationFailed as failure:
                    assert failure.kind == "memory"  # two kills met one question
                finally:
                    answered()

    def kill_some() -> None:
        for process in evaluators():
            if chance.random() < 0.3:
                process.kill()

    async with opened(2, idle_s) as pool:
        async with asyncio.timeout(240):
            await asyncio.gather(*(asker(pool, first, kill_some) for first in (0, 100, 200)))
        assert await asyncio.gather(*(ask(pool, number) for number in range(4))) == list(range(4))
