"""Runs random workflows through a Flint and compares what came of them with the core."""

from __future__ import annotations

import asyncio
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson

if __name__ == "__main__":  # python tests/support/random_runs.py SEED INDEX N
    sys.path.insert(0, str(Path(__file__).parents[1]))

from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_sdk import AsyncFlint, FlintError, StartRequest
from flint_sdk._approvals import ApprovalState
from flint_sdk.testing import Result
from support.random_workflows import LEAVES, Workflow, approves, generate_batch
from support.random_world import Outcome, World, expect, outcome_of
from support.record_reader import Record
from support.stack import RunningStack

__all__ = ["Batch", "Killer", "Step"]

_STATE = journal_pb2.JournalEntry.DESCRIPTOR.fields_by_name["steps"].message_type.fields_by_name["state"].enum_type
_BRANCH = re.compile(r".*/fork/branches/\d+/[^/]+")


@dataclass(frozen=True)
class Step:
    """What is recorded of a step's attempt."""

    step: str
    iteration: str
    attempt: int
    state: str


class Batch:
    """Workflows and what the core says of each, to be run as often as wanted."""

    def __init__(self, stack: RunningStack, world: World, batch: list[Workflow], inputs: int) -> None:
        self.stack, self.world, self.workflows, self.inputs = stack, world, batch, inputs
        self.by_name = {workflow.name: workflow for workflow in batch}
        self.flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
        self.record = Record(stack.settings.postgres)

    async def close(self) -> None:
        await self.flint.close()
        await self.record.close()

    async def apply(self) -> None:
        """Applies all of them, some at a time."""
        room = asyncio.Semaphore(8)

        async def one(workflow: Workflow) -> None:
            async with room:
                await self.flint.apply(orjson.dumps(workflow.document))

        await asyncio.gather(*map(one, self.workflows))

    def given(self, label: str) -> list[tuple[Workflow, dict[str, Any]]]:
        """Each workflow with each of its inputs."""
        return [
            (workflow, {"url": self.world.url, "key": f"{label}{number}.{workflow.name}", "n": number})
            for workflow in self.workflows
            for number in range(self.inputs)
        ]

    async def run(self, label: str, wave: int = 250, timeout_s: float = 120.0) -> Outcomes:
        """Starts all, in waves, decides what is asked of people, and waits for every end."""
        given = self.given(label)
        deciding = asyncio.create_task(self._decide())
        try:
            ends: list[asyncio.Task[Outcome]] = []
            runs: list[str] = []
            for at in range(0, len(given), wave):
                starts = [StartRequest(w.name, i, request_id=i["key"]) for w, i in given[at : at + wave]]
                for handle in await self.flint.start_many(starts, timeout_s=60):
                    assert not isinstance(handle, FlintError), handle
                    runs.append(handle.id)
                    ends.append(asyncio.create_task(self._end(handle.id, timeout_s)))
                await asyncio.wait(ends[-wave // 2 :], timeout=5)
            outcomes = await asyncio.gather(*ends)
        finally:
            deciding.cancel()
            await asyncio.gather(deciding, return_exceptions=True)
        return Outcomes(self, given, runs, outcomes)

    async def _end(self, run: str, timeout_s: float) -> Outcome:
        try:
            ended = await self.flint.wait(run, timeout_s)
        except FlintError as error:
            return Outcome(f"{type(error).__name__}: {error}")
        problem = ended.error
        error = None
        if problem is not None:
            error = {"type": problem.type, "status": problem.status, "instance": problem.instance}
        output = await self.flint.resolve(ended.output) if problem is None else None
        return outcome_of(ended.state.value, output, error)

    async def _decide(self) -> None:
        """The person: says to each approval what the core was told."""
        while True:
            try:
                async for found in self.flint.list_approvals(states=[ApprovalState.OPEN], page_size=500):
                    await self.flint.decide_approval(found.name, approve=approves(found.title))
            except FlintError:
                pass  # decided or closed meanwhile, or nobody there: asked again
            await asyncio.sleep(0.1)

    async def steps(self) -> dict[str, list[Step]]:
        """What is recorded, by run."""
        found: dict[str, list[Step]] = defaultdict(list)
        rows = await self.record.rows("SELECT run_id::text, steps FROM run_entry WHERE steps IS NOT NULL")
        for run, steps in rows:
            for s in journal_pb2.JournalEntry.FromString(bytes(steps)).steps:  # type: ignore[arg-type]
                state = _STATE.values_by_number[s.state].name.removeprefix("STATE_").lower()
                found[str(run)].append(Step(s.step, s.iteration, s.attempt, state))
        return found

    async def late(self) -> list[str]:
        """Keys of calls that came after the last outcome of their step was folded."""
        last: dict[str, float] = {}
        rows = await self.record.rows(
            "SELECT run_id::text, steps, extract(epoch FROM recorded_at)::float8 FROM run_entry WHERE steps IS NOT NULL"
        )
        for run, steps, at in rows:
            for s in journal_pb2.JournalEntry.FromString(bytes(steps)).steps:  # type: ignore[arg-type]
                key = f"{UUID(str(run))}/0{s.step}/{s.iteration}"
                last[key] = max(last.get(key, 0.0), float(str(at)))
        wrong = []
        for key, moments in self.world.came.items():
            run, _, rest = key.partition("/")
            known = f"{UUID(run)}/{rest}"
            if known not in last:
                wrong.append(f"{key} was executed and never recorded")
            elif max(moments) > last[known]:
                wrong.append(f"{key} was executed again after its outcome was folded")
        return wrong


@dataclass
class Outcomes:
    """What came of one pass."""

    batch: Batch
    given: list[tuple[Workflow, dict[str, Any]]]
    runs: list[str]
    outcomes: list[Outcome]

    async def differences(self, *, attempts: bool) -> list[str]:
        """Where the engine and the core disagree. `attempts`: the numbers of attempts must be equal too; where workers
        are killed a call that is answered 503 twice may be asked once more, so its retries are fewer."""
        recorded = await self.batch.steps()
        wrong: list[str] = []
        for (workflow, given), run, outcome in zip(self.given, self.runs, self.outcomes, strict=True):
            expected, result = expect(workflow, self.batch.by_name, given)
            if outcome != expected:
                wrong.append(self._told(workflow, given, run, f"core {expected}, engine {outcome}"))
                continue
            difference = _compare(result, recorded[str(UUID(run))], attempts)
            if difference:
                wrong.append(self._told(workflow, given, run, difference))
        return wrong

    @staticmethod
    def _told(workflow: Workflow, given: Mapping[str, Any], run: str, what: str) -> str:
        index = workflow.name.rpartition("-")[2]
        command = f".venv/bin/python tests/support/random_runs.py {workflow.seed} {index} {given['n']}"
        return f"{workflow.name} (run {run}): {what[:1500]}\n  shown by: {command}"

    @property
    def states(self) -> Counter[str]:
        """How many ended how."""
        return Counter(outcome.state for outcome in self.outcomes)


def _compare(result: Result, recorded: Iterable[Step], attempts: bool) -> str:
    made = [_step(m.step, m.iteration, m.attempt, m.state, attempts) for m in result.attempts_made]
    # How far a branch came before another one ended the race depends on how long calls take: that it was cancelled is
    # compared, what stands below it is not, nor that it waited by then.
    lost = {(step.step, step.iteration) for step in made if step.state == "cancelled" and _BRANCH.fullmatch(step.step)}
    core = Counter(step for step in made if not _within(step, lost))
    found = (_step(s.step, s.iteration, s.attempt, s.state, attempts) for s in recorded)
    engine = Counter(step for step in found if not _within(step, lost))
    if not attempts:  # waiting for the pause before a retry, failing before it: as often as it came to that
        core = Counter({step: 1 for step in core if step.state in ("succeeded", "skipped")})
        engine = Counter({step: 1 for step in engine if step.state in ("succeeded", "skipped")})
    if core == engine:
        return ""
    return f"steps: only on the core {list(core - engine)}, only on the engine {list(engine - core)}"


def _within(step: Step, lost: Collection[tuple[str, str]]) -> bool:
    """Whether a step belongs to a branch that lost, its own end apart."""
    for path, iteration in lost:
        if step.step == path and step.iteration == iteration:
            return step.state == "waiting"
        if step.step.startswith(f"{path}/") and re.match(rf"{re.escape(iteration)}([.~]|$)", step.iteration):
            return True
    return False


def _step(step: str, iteration: str, attempt: int, state: str, attempts: bool) -> Step:
    return Step(step, iteration, attempt if attempts else 0, str(state).lower())


class Killer:
    """kill -9 of one worker after the other while a block runs, of a scheduler once."""

    def __init__(self, stack: RunningStack, seed: int, most: int = 60) -> None:
        self.stack, self.random, self.most = stack, random.Random(seed), most
        self.killed: Counter[str] = Counter()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Killer:
        self._task = asyncio.create_task(self._kill())
        return self

    async def __aexit__(self, *exception: object) -> None:
        assert self._task is not None
        self._task.cancel()
        ended = (await asyncio.gather(self._task, return_exceptions=True))[0]
        if isinstance(ended, Exception):
            raise ended

    async def _kill(self) -> None:
        for turn in range(self.most):
            await asyncio.sleep(self.random.uniform(0.1, 0.5))
            ready = sorted(name for name in self.stack.pids if name.startswith("worker-") and self._is_ready(name))
            if turn == self.most // 8:
                ready = ["scheduler-1"]
            if len(ready) < 2 and ready != ["scheduler-1"]:
                continue  # one is left to do some work
            victim = self.random.choice(ready)
            await self.stack.kill(victim)
            self.killed[victim.partition("-")[0]] += 1

    def _is_ready(self, name: str) -> bool:
        return self.stack.stack.supervisor.state(name) == "ready"


async def _show(seed: int, index: int, number: int) -> None:
    """One workflow and what the core makes of it."""
    batch = generate_batch(seed, max(index + 1, LEAVES))
    workflow = batch[index]
    given = {"url": "http://127.0.0.1:1", "key": f"shown{number}", "n": number}
    outcome, result = expect(workflow, {w.name: w for w in batch}, given)
    sys.stdout.write(orjson.dumps(workflow.document, option=orjson.OPT_INDENT_2).decode() + f"\n{given}\n")
    for made in result.attempts_made:
        sys.stdout.write(f"{made.step} {made.iteration} #{made.attempt} {made.state}\n")
    sys.stdout.write(f"{outcome}\n")


if __name__ == "__main__":
    asyncio.run(_show(*map(int, sys.argv[1:4])))
