"""A concurrency key of three through kill -9 of a worker and of a scheduler and a restart of PostgreSQL: never four."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from uuid import UUID

import pytest

from flint_sdk import AsyncFlint
from support.holders import holders_world, most_at_once
from support.record_reader import Record
from support.stack import eventually, running_stack

pytestmark = pytest.mark.robustness

RUNS = 120
LIMIT = 3
DEFINITION = f"""
document:
  dsl: 1.0.3
  namespace: default
  name: limited
  version: 1.0.0
  metadata:
    flint:
      concurrency:
        key: ${{ .shop }}
        limit: {LIMIT}
do:
  - hold:
      call: http
      with:
        method: post
        endpoint: ${{ $workflow.input.url }}
"""


async def holder_among(flint: AsyncFlint, record: Record) -> str:
    """The worker that executes the leg of a holder now."""
    claimant = str(await record.one("SELECT claimant FROM run WHERE claimant IS NOT NULL LIMIT 1"))
    async for worker in flint.list_workers():
        if worker.name == f"workers/{claimant}":
            return worker.worker_id
    raise AssertionError(f"{claimant} is not registered")


async def test_a_key_of_three_shows_no_fourth_holder_whatever_is_killed(tmp_path: Path) -> None:
    async with holders_world(delay_s=0.1) as world, running_stack(tmp_path) as stack:
        flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
        record = Record(stack.settings.postgres)
        try:
            await flint.apply(DEFINITION)
            started = await asyncio.gather(
                *(flint.start("limited", {"url": world.url, "shop": "s"}) for _ in range(RUNS))
            )
            runs = {handle.id for handle in started}

            async def calls(count: int) -> bool:
                return len(world.calls) >= count

            await eventually(lambda: calls(10), timeout_s=60)
            world.gate.clear()
            await eventually(lambda: len(world.holding) == LIMIT, timeout_s=60)
            victim = await holder_among(flint, record)
            await stack.kill(victim)
            world.gate.set()
            await eventually(lambda: calls(30), timeout_s=120)
            world.gate.clear()
            await eventually(lambda: len(world.holding) == LIMIT, timeout_s=120)
            await stack.kill("scheduler-1", hold=True)
            world.gate.set()
            await eventually(lambda: calls(50), timeout_s=120)
            world.gate.clear()
            await eventually(lambda: len(world.holding) == LIMIT, timeout_s=120)
            await stack.restart("postgres")
            await stack.start("scheduler-1")
            world.gate.set()

            async def all_ended() -> bool:
                left = await record.number("SELECT count(*) FROM run WHERE state < 4")
                return left == 0

            await eventually(all_ended, timeout_s=240)
            rows = await record.rows("SELECT run_id, state, started_at, ended_at FROM run")
            assert {str(UUID(str(run))) for run, *_ in rows} == runs
            assert {int(str(state)) for _, state, *_ in rows} == {4}
            assert await record.number("SELECT count(*) FROM run WHERE leg > 1"), "the victim held no leg"
            # Outside: which runs were at work, a call that outlived its worker included.
            assert world.most == LIMIT
            assert {run for run, *_ in world.calls} == runs
            # In the record: from the permit's taking to the run's end.
            spans = []
            for _, _, begun, ended in rows:
                assert isinstance(begun, datetime)
                assert isinstance(ended, datetime)
                spans.append((begun.timestamp(), ended.timestamp()))
            assert most_at_once(spans) == LIMIT

            async def none_left() -> bool:
                return (
                    await record.number("SELECT (SELECT count(*) FROM permit) + (SELECT count(*) FROM permit_wait)")
                    == 0
                )

            await eventually(none_left, timeout_s=60)
        finally:
            await record.close()
            await flint.close()
