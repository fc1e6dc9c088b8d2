"""What a run costs: entries in the journal, commits in PostgreSQL, and who does the work."""

from __future__ import annotations

import asyncio

import psutil
import pytest

from flint_sdk import StartRequest
from support.house import House
from support.stack import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEN = "do:\n" + "".join(f"  - s{n}: {{call: noop, with: {{output: {{n: {n}}}}}}}\n" for n in range(10))
ONE = "do: [{s: {call: noop}}]"
SERVICES = {
    "gateway": "flint_gateway",
    "scheduler-1": "flint_scheduler",
    "scheduler-2": "flint_scheduler",
    "registry-1": "flint_registry",
    "registry-2": "flint_registry",
    "worker-1": "flint_worker",
    "worker-2": "flint_worker",
}


async def test_ten_effectful_steps_are_ten_entries_and_one_leg(house: House) -> None:
    run = await house.run(TEN)
    assert run.output == {"n": 9}
    assert (run.leg, run.position) == (1, 10)
    rows = await house.record.rows(
        "SELECT index, end_kind FROM run_entry WHERE run_id = CAST(:r AS uuid) ORDER BY index", r=run.id
    )
    assert rows == [(n, 1 if n == 10 else 0) for n in range(1, 11)]
    assert await house.journal_entries(run.id) == 10
    entries = [entry async for entry in house.flint.history(run.id)]
    assert [[step.step for step in entry.steps] for entry in entries] == [[f"/do/{n}/s{n}"] for n in range(10)]


async def test_pure_steps_cost_no_entry_of_their_own(house: House) -> None:
    body = "do:\n" + "".join(f"  - p{n}: {{set: {{n: {n}}}}}\n" for n in range(20)) + "  - s: {call: noop}\n"
    run = await house.run(body)
    # Nothing is recorded before the call; its outcome and the run's end are one entry, with the traces of all steps.
    assert await house.journal_entries(run.id) == run.position == 1


async def commits_of(house: House, runs: int, name: str) -> int:
    """Commits of the whole database while so many concurrent runs were started and ended."""
    statement = (
        "SELECT xact_commit, (SELECT sum(n_tup_ins) FROM pg_stat_user_tables WHERE relname = 'run'),"
        " (SELECT sum(n_tup_ins) FROM pg_stat_user_tables WHERE relname = 'run_entry')"
        " FROM pg_stat_database WHERE datname = current_database()"
    )

    async def figures() -> tuple[int, ...]:
        return tuple(int(str(n)) for n in (await house.record.rows(statement))[0])

    async def settled() -> tuple[int, ...]:
        """Figures that hold everything that is in the tables: each backend tells what it did with a delay."""
        rows = await house.record.rows("SELECT (SELECT count(*) FROM run), (SELECT count(*) FROM run_entry)")
        inserted = tuple(int(str(n)) for n in rows[0])

        async def told() -> tuple[int, ...] | None:
            found = await figures()
            return found if found[1:] >= inserted and found[2] >= inserted[1] else None

        return await eventually(told, 60, interval_s=0.5)  # each question is a commit, too

    before = await settled()
    handles = await asyncio.gather(*(house.flint.start(name) for _ in range(runs)))
    for ended in await asyncio.gather(*(house.flint.wait(handle.id, 60) for handle in handles)):
        assert ended.state.value == "SUCCEEDED"
    after = await settled()
    assert after[1] - before[1] >= runs
    return after[0] - before[0]


async def test_commits_are_far_fewer_than_starts(house: House) -> None:
    commits = await commits_of(house, 500, await house.apply(ONE))
    assert commits < 500 / 2, "starts, legs, steps and ends together"


async def test_commits_are_far_fewer_than_steps(house: House) -> None:
    commits = await commits_of(house, 100, await house.apply(TEN))
    assert commits < 1000 / 4


async def test_a_batch_shares_commits(house: House) -> None:
    async def accepts() -> tuple[float, float]:
        figures = [await house.figures(name) for name in ("scheduler-1", "scheduler-2")]
        commits = sum(f.total("flint_scheduler_commit_rows_count", lane="accept") for f in figures)
        return commits, sum(f.total("flint_scheduler_commit_rows_sum", lane="accept") for f in figures)

    name = await house.apply(ONE)
    commits, rows = await accepts()
    handles = await house.flint.start_many(StartRequest(name) for _ in range(100))
    runs = [handle.id for handle in handles if not isinstance(handle, Exception)]
    assert len(set(runs)) == 100
    after = await accepts()
    assert after[1] - rows == 100
    assert after[0] - commits <= 2, "one for each scheduler"
    await asyncio.gather(*(house.flint.wait(run, 60) for run in runs))


async def test_each_service_is_a_process_of_its_own(house: House) -> None:
    pids = house.stack.pids
    assert {*SERVICES, "postgres", "nats", "etcd"} == set(pids)
    assert len(set(pids.values())) == len(pids)
    for name, module in SERVICES.items():
        command = psutil.Process(pids[name]).cmdline()
        assert module in command, command
    workers = {worker.worker_id: worker.pid async for worker in house.flint.list_workers()}
    assert workers == {name: pids[name] for name in ("worker-1", "worker-2")}
