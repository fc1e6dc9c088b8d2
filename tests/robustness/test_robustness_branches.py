"""kill -9 of a worker and of schedulers amid a wide fork: every branch counts once, nothing recorded is repeated."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from flint_sdk import AsyncFlint, RunState
from support.outside import Outside, outside_world
from support.record_reader import Record
from support.stack import RunningStack, eventually, running_stack

pytestmark = pytest.mark.robustness

COUNT = 400
WIDE = """
document: {dsl: 1.0.3, namespace: default, name: wide, version: 1.0.0}
do:
  - each:
      metadata: {flint: {parallel: 60}}
      for: {each: n, in: '${ [range(.count)] }'}
      do:
        - ask: {call: http, with: {method: post, endpoint: '${ $workflow.input.url + "/steps/ask" }'}}
        - keep: {set: '${ {n: $n, key: .key} }'}
"""
BRANCHES = "SELECT count(*) FROM run WHERE parent_run_id IS NOT NULL"
TWICE = "SELECT count(*) - count(DISTINCT request_id) FROM run WHERE parent_run_id IS NOT NULL"
LEFT = "SELECT (SELECT count(*) FROM run_await) + (SELECT count(*) FROM inbox)"


async def _recorded(flint: AsyncFlint, run: str) -> dict[str, float]:
    """When each call was recorded, by iteration (Unix epoch, seconds)."""
    found: dict[str, float] = {}
    async for branch in flint.list_runs(branches_of=run, page_size=500):
        async for entry in flint.history(branch.id):
            for step in entry.steps:
                if step.step.endswith("/ask") and step.state.value == "SUCCEEDED":
                    assert step.iteration not in found, f"iteration {step.iteration} is recorded twice"
                    assert entry.record_time is not None
                    found[step.iteration] = entry.record_time.timestamp()
    return found


async def _check(stack: RunningStack, world: Outside, flint: AsyncFlint, record: Record, started: str) -> None:
    run = await flint.wait(started, timeout_s=240)
    assert run.state is RunState.SUCCEEDED, run.error
    keys = [f"{run.id}/0/do/0/each/do/0/ask/{n}" for n in range(COUNT)]
    assert run.output == [{"n": n, "key": key} for n, key in enumerate(keys)]
    times = Counter(execution.key for execution in world.executions)
    assert set(times) == set(keys)
    recorded = await _recorded(flint, run.id)
    assert set(recorded) == {str(n) for n in range(COUNT)}
    late = [e for e in world.executions if e.came_at > recorded[e.key.rsplit("/", 1)[1]]]
    assert not late, f"executed after their outcome was recorded: {late[:5]}"
    assert await record.number(TWICE) == 0
    assert await record.number(BRANCHES) == COUNT // 10

    async def settled() -> bool:
        return not await record.number(LEFT)

    await eventually(settled, timeout_s=60)


async def test_kill_worker_and_both_schedulers_amid_a_wide_fork(tmp_path: Path) -> None:
    async with outside_world(delay_s=0.1) as world, running_stack(tmp_path, workers=3) as stack:
        flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
        record = Record(stack.settings.postgres)
        try:
            await flint.apply(WIDE)
            started = (await flint.start("wide", {"count": COUNT, "url": world.url})).id
            await eventually(lambda: len(world.executions) >= 60, timeout_s=60)
            await stack.kill("worker-1")
            await eventually(lambda: len(world.executions) >= 120, timeout_s=60)
            await stack.kill("scheduler-1")
            await eventually(lambda: len(world.executions) >= 200, timeout_s=90)
            await stack.kill("scheduler-2")
            await _check(stack, world, flint, record, started)
        finally:
            await flint.close()
            await record.close()
