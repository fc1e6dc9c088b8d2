"""Traffic for robustness tests: runs whose steps are calls to the outside, and the judgement of what was recorded.

The judgement is promise 3: no execution of a step began after its outcome was folded; a step that was executed twice
was in flight when its worker or its journal was lost. And promises 1 and 2: every answered start is there, and ended.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_sdk import AsyncFlint
from flint_store.engine import create_engine, fetch
from support.outside import Outside
from support.stack import RunningStack, eventually

__all__ = ["DEFINITION", "STEPS", "Record", "Traffic"]

STEPS = 5
DEFINITION = """
document:
  dsl: 1.0.3
  namespace: default
  name: robust
  version: 1.0.0
do:
""" + "".join(
    f"""  - step{n}:
      call: http
      with:
        method: post
        endpoint: ${{ $workflow.input.url + "/steps/step{n}" }}
"""
    for n in range(STEPS)
)


@dataclass(frozen=True)
class Recorded:
    """One recorded step."""

    run: str
    step: str
    recorded_at: float
    leg: int
    worker: str


class Record:
    """Questions to PostgreSQL that tests ask. Reads only."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def rows(self, statement: str, **values: object) -> list[tuple[object, ...]]:
        return [tuple(row) for row in await fetch(self._engine, text(statement), values)]

    async def one(self, statement: str, **values: object) -> object:
        return (await self.rows(statement, **values))[0][0]

    async def terms(self) -> dict[int, int]:
        return dict(await self.rows("SELECT group_id, term FROM shard_group"))  # type: ignore[misc]

    async def groups_of(self, scheduler: str) -> set[int]:
        found = await self.rows(
            "SELECT g.group_id FROM shard_group g JOIN owner_session s USING (session_id) "
            "WHERE s.scheduler_id = :s AND s.ended_at IS NULL",
            s=scheduler,
        )
        return {int(row[0]) for row in found}  # type: ignore[call-overload]

    async def open_legs(self) -> dict[str, list[str]]:
        """Runs with an open leg, by claimant."""
        found: dict[str, list[str]] = defaultdict(list)
        for claimant, run in await self.rows("SELECT claimant, run_id::text FROM run WHERE leg_nonce IS NOT NULL"):
            found[str(claimant)].append(str(run))
        return found

    async def legs(self) -> dict[str, int]:
        return {str(r): int(n) for r, n in await self.rows("SELECT run_id::text, leg FROM run")}  # type: ignore[call-overload]

    async def steps(self) -> list[Recorded]:
        """All recorded calls."""
        found = []
        for run, leg, claimant, steps, at in await self.rows(
            "SELECT run_id::text, leg, claimant, steps, extract(epoch FROM recorded_at)::float8 FROM run_entry"
        ):
            entry = journal_pb2.JournalEntry.FromString(bytes(steps))  # type: ignore[arg-type]
            found += [
                Recorded(str(run), s.step, float(at), int(leg), str(claimant))  # type: ignore[arg-type,call-overload]
                for s in entry.steps
                if s.kind == "call"
            ]
        return found


class Traffic:
    """Some runs of `DEFINITION`, under way."""

    def __init__(self, stack: RunningStack, world: Outside, flint: AsyncFlint, record: Record) -> None:
        self.stack = stack
        self.world = world
        self.flint = flint
        self.record = record
        self.runs: list[str] = []

    @classmethod
    async def start(cls, stack: RunningStack, world: Outside, runs: int = 200) -> Traffic:
        """Apply the definition and start the runs; returns when every start is answered."""
        flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
        traffic = cls(stack, world, flint, Record(create_engine(stack.settings.postgres, "reading", pool_size=3)))
        await flint.apply(DEFINITION)
        await traffic.more(runs)
        return traffic

    async def more(self, runs: int) -> None:
        handles = await asyncio.gather(*(self.flint.start("robust", {"url": self.world.url}) for _ in range(runs)))
        self.runs += [h.id for h in handles]

    async def until_executions(self, count: int) -> None:
        """Wait until so many calls have reached the outside."""
        await eventually(lambda: len(self.world.executions) >= count, timeout_s=60)

    async def incarnation(self, worker: str) -> str:
        """The live incarnation of a worker."""
        async for found in self.flint.list_workers():
            if found.worker_id == worker:
                return found.name.removeprefix("workers/")
        raise AssertionError(f"{worker} is not registered")

    async def finish(self, timeout_s: float = 120.0) -> None:
        """Wait for every run's end; all must succeed."""
        for run in await asyncio.gather(*(self.flint.wait(r, timeout_s=timeout_s) for r in self.runs)):
            assert run.state.value == "SUCCEEDED", (run.name, run.state, run.error)

    async def judge(self) -> dict[str, int]:
        """Check promises 1 to 3 against the outside's log; answers steps that were executed more than once."""
        recorded = await self.record.steps()
        by_key = {(r.run, r.step): r for r in recorded}
        assert len(by_key) == len(recorded), "a step was recorded twice"
        assert set(self.runs) == {r.run for r in recorded}, "a run that was answered has no record"
        assert len(recorded) == STEPS * len(self.runs)
        repeats: dict[str, int] = {}
        for key, executions in self.world.by_key().items():
            run, _, rest = key.partition("/")
            step = "/" + rest.partition("/")[2].rstrip("/")
            row = by_key.get((str(UUID(run)), step))
            assert row is not None, f"{key} was executed and never recorded"
            late = [e for e in executions if e.came_at > row.recorded_at]
            assert not late, f"{key} was executed again after its outcome was folded"
            if len(executions) > 1:
                repeats[key] = len(executions)
        return repeats

    async def close(self) -> None:
        await self.flint.close()
        await self.record._engine.dispose()
