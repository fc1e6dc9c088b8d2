"""Traffic for robustness tests: runs whose steps are calls to the outside, and the judgement of what was recorded.

The judgement is promise 3: no execution of a step began after its outcome was folded; a step that was executed twice
was in flight when its worker or its journal was lost. And promises 1 and 2: every answered start is there, and ended.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from flint_ops.config import Settings
from flint_sdk import AsyncFlint
from support.outside import Outside
from support.record_reader import Record, Recorded
from support.stack import eventually

__all__ = ["DEFINITION", "STEPS", "WORKERS_KEEP_LEASES", "Moment", "Record", "Traffic", "run_of"]

STEPS = 5
WORKERS_KEEP_LEASES = {"registry": {"lease_ttl_s": 15}}
"""No worker loses its lease because the machine is busy: for tests in which only another process is to."""
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


class Place(Protocol):
    """Where a Flint is."""

    @property
    def gateway(self) -> str: ...
    @property
    def admin_key(self) -> str: ...
    @property
    def settings(self) -> Settings: ...


@dataclass(frozen=True)
class Moment:
    """What was so when something was lost: the time, and the steps that PostgreSQL had by then."""

    at: float
    recorded: frozenset[tuple[str, str]]


def run_of(key: str) -> str:
    """The run in an idempotency key."""
    return key.split("/")[0]


def step_of(key: str) -> str:
    """The step's pointer in an idempotency key."""
    return "/" + key.partition("/")[2].partition("/")[2].rstrip("/")


class Traffic:
    """Some runs of `DEFINITION`, under way."""

    def __init__(self, place: Place, world: Outside) -> None:
        self.world = world
        self.flint = AsyncFlint(address=place.gateway, key=place.admin_key)
        self.record = Record(place.settings.postgres)
        self.runs: list[str] = []

    @classmethod
    async def start(cls, place: Place, world: Outside, runs: int = 200) -> Traffic:
        """Apply the definition and start the runs; returns when every start is answered."""
        traffic = cls(place, world)
        await traffic.flint.apply(DEFINITION)
        for _ in range(4):  # in waves: both schedulers get their part
            await traffic.more(runs // 4)
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

    async def incarnations(self) -> set[str]:
        """All live incarnations."""
        return {found.name.removeprefix("workers/") async for found in self.flint.list_workers()}

    async def moment(self) -> Moment:
        """Now, right after something was lost."""
        at = time.time()
        return Moment(at, frozenset((s.run, s.step) for s in await self.record.steps() if s.recorded_at <= at))

    async def finish(self, timeout_s: float = 120.0) -> None:
        """Let the outside answer and wait for every run's end; all must succeed."""
        self.world.gate.set()
        for run in await asyncio.gather(*(self.flint.wait(r, timeout_s=timeout_s) for r in self.runs)):
            assert run.state.value == "SUCCEEDED", (run.name, run.state, run.error)

    async def judge(self) -> dict[str, int]:
        """Check promises 1 to 3 against the outside's log; answers steps that were executed more than once."""
        recorded = await self.record.steps()
        by_key: dict[tuple[str, str], Recorded] = {(r.run, r.step): r for r in recorded}
        assert len(by_key) == len(recorded), "a step was recorded twice"
        assert set(self.runs) == {r.run for r in recorded}, "a run that was answered has no record"
        assert len(recorded) == STEPS * len(self.runs)
        repeats: dict[str, int] = {}
        for key, executions in self.world.by_key().items():
            row = by_key.get((str(UUID(run_of(key))), step_of(key)))
            assert row is not None, f"{key} was executed and never recorded"
            late = [e for e in executions if e.came_at > row.recorded_at]
            assert not late, f"{key} was executed again after its outcome was folded"
            if len(executions) > 1:
                repeats[key] = len(executions)
        return repeats

    def were_in_flight(
        self, repeats: Iterable[str], lost: Moment, *, last_only: bool = True, went_on_at: float | None = None
    ) -> None:
        """Each repeated step had begun before the loss and was not recorded then.

        `last_only`: and it was the last one that its run had begun, for an outcome is acknowledged before the next
        call; so at most one step of a run repeats, unless the journal itself was lost. `went_on_at`: when the process
        that was stopped went on. It may have stopped between its look at the lease and the call of the next step,
        which is then made when it goes on.
        """
        executions = self.world.by_key()
        begun: dict[str, list[str]] = defaultdict(list)
        for execution in self.world.executions:
            if execution.came_at <= lost.at and execution.key not in begun[run_of(execution.key)]:
                begun[run_of(execution.key)].append(execution.key)
        for key in repeats:
            if went_on_at is not None and executions[key][-1].came_at >= went_on_at:
                earlier = begun[run_of(key)]
                if key not in earlier and len(earlier) == int(step_of(key).split("/")[2]):
                    assert (run_of(key), step_of(key)) not in lost.recorded, f"{key} was recorded before it began"
                    continue
            assert executions[key][0].came_at <= lost.at, f"{key} began after the loss and was executed twice"
            assert (run_of(key), step_of(key)) not in lost.recorded, f"{key} was recorded before the loss"
            if last_only:
                assert begun[run_of(key)][-1] == key, f"{key} was over when its worker was lost"

    async def close(self) -> None:
        await self.flint.close()
        await self.record.close()
