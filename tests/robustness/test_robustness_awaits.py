"""kill -9 while parents wait for children: every parent ends with its child's result, each child exists once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flint_sdk import AsyncFlint
from support.outside import Outside, outside_world
from support.record_reader import Record
from support.stack import RunningStack, eventually, running_stack

pytestmark = pytest.mark.robustness

PARENTS = 100
CHILD = """
document: {dsl: 1.0.3, namespace: default, name: child, version: 1.0.0}
do:
  - ask: {call: http, with: {method: post, endpoint: '${ .url + "/steps/ask" }'}}
  - answer: {set: '${ {n: ($workflow.input.n * 2)} }'}
"""
PARENT = """
document: {dsl: 1.0.3, namespace: default, name: parent, version: 1.0.0}
do:
  - first: {run: {workflow: {name: child, input: '${ $workflow.input }'}}}
  - second: {run: {workflow: {name: child, input: '${ {url: $workflow.input.url, n: .n} }'}}}
"""
COUNT = (
    "SELECT count(*) FROM run r JOIN workflow_version d USING (definition_id)"
    " WHERE d.workflow_id = 'child' AND parent_run_id IS NOT NULL"
)


class Families:
    """Parents that wait for children whose calls are held."""

    def __init__(self, stack: RunningStack, world: Outside) -> None:
        self.world = world
        self.flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
        self.record = Record(stack.settings.postgres)
        self.runs: list[str] = []

    async def start(self) -> None:
        """Returns when every parent waits for its first child, and every such child is at its call."""
        await self.flint.apply(CHILD)
        await self.flint.apply(PARENT)
        self.world.gate.clear()
        for at in range(0, PARENTS, 10):  # in parts: both schedulers get theirs
            self.runs += await asyncio.gather(*(self._begin(n) for n in range(at, at + 10)))
        await eventually(lambda: len(self.world.executions) >= PARENTS, timeout_s=60)

    async def _begin(self, n: int) -> str:
        return (await self.flint.start("parent", {"n": n, "url": self.world.url})).id

    async def finish(self) -> None:
        """Let the children go on, and check every result and that no child was started twice."""
        self.world.gate.set()
        ended = await asyncio.gather(*(self.flint.wait(run, timeout_s=120) for run in self.runs))
        assert [(run.state.value, run.output) for run in ended] == [
            ("SUCCEEDED", {"n": 4 * n}) for n in range(PARENTS)
        ], [run.error for run in ended if run.error]
        assert await self.record.number(COUNT) == 2 * PARENTS

        async def settled() -> bool:
            left = await self.record.number("SELECT (SELECT count(*) FROM run_await) + (SELECT count(*) FROM inbox)")
            return not left

        await eventually(settled, timeout_s=60)

    async def close(self) -> None:
        await self.flint.close()
        await self.record.close()


async def test_kill_everything_that_knows_of_the_wait(tmp_path: Path) -> None:
    async with outside_world(delay_s=0.05) as world, running_stack(tmp_path) as stack:
        families = Families(stack, world)
        try:
            await families.start()
            await stack.kill("worker-1")
            await stack.kill("scheduler-1", hold=True)
            world.gate.set()
            await eventually(lambda: families.record.groups_of("scheduler-2"), timeout_s=60)
            await stack.kill("worker-2")
            await stack.start("scheduler-1")
            await families.finish()
        finally:
            await families.close()


async def test_stopping_workers_and_schedulers_in_order(tmp_path: Path) -> None:
    async with outside_world(delay_s=0.05) as world, running_stack(tmp_path) as stack:
        families = Families(stack, world)
        try:
            await families.start()
            world.gate.set()
            for name in ("worker-1", "scheduler-2", "worker-2", "scheduler-1"):
                await stack.restart(name)
            await families.finish()
        finally:
            await families.close()


async def test_kill_nats_and_postgresql_while_parents_wait(tmp_path: Path) -> None:
    async with outside_world(delay_s=0.05) as world, running_stack(tmp_path) as stack:
        families = Families(stack, world)
        try:
            await families.start()
            await stack.kill("nats")
            await stack.kill("postgres")
            await families.finish()
        finally:
            await families.close()
