"""A run's record: pages within a budget, results of calls, steps of snapshots."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.events import CallFailed, CallSucceeded, Event, encode_events
from flint_core.problems import Problem
from flint_store.history import SNAPSHOT_STEPS, read_history, read_steps
from support.record import EPOCH_MS, add_entries, add_runs, add_version, run_id_at

BUDGET = 2**20
State = runs_pb2.StepRecord


def step(
    name: str, state: runs_pb2.StepRecord.State.ValueType = State.STATE_SUCCEEDED, *, kind: str = "call", at: int = 0
) -> runs_pb2.StepRecord:
    record = runs_pb2.StepRecord(step=f"/do/{name}", attempt=1, state=state, kind=kind)
    record.start_time.FromMilliseconds(EPOCH_MS + at)
    record.end_time.FromMilliseconds(EPOCH_MS + at + 5)
    return record


def succeeded(output: object, at: int = 0) -> CallSucceeded:
    return CallSucceeded(effect_id=1, output=output, started_ms=EPOCH_MS + at, at_ms=EPOCH_MS + at + 5)


def entry(steps: list[runs_pb2.StepRecord], events: list[Event], **more: object) -> dict[str, object]:
    return {
        "steps": journal_pb2.JournalEntry(steps=steps).SerializeToString(),
        "events": encode_events(events),
        **more,
    }


async def run_with(engine: AsyncEngine, entries: list[dict[str, object]]) -> bytes:
    definition = await add_version(engine)
    [run_id] = await add_runs(engine, [{"definition_id": definition, "position": len(entries)}])
    await add_entries(engine, run_id, entries)
    return run_id


async def test_no_run_no_history(engine: AsyncEngine) -> None:
    assert await read_history(engine, run_id_at(EPOCH_MS), limit=10, budget_bytes=BUDGET) is None


async def test_a_run_without_entries(engine: AsyncEngine) -> None:
    run_id = await run_with(engine, [])
    found = await read_history(engine, run_id, limit=10, budget_bytes=BUDGET)
    assert found is not None
    assert (found.namespace, found.entries, found.more) == ("default", [], False)


async def test_entries_are_mapped_with_results(engine: AsyncEngine) -> None:
    failure = CallFailed(1, Problem("t", 500, "x"), EPOCH_MS, EPOCH_MS + 5)
    run_id = await run_with(
        engine,
        [
            entry([step("a"), step("b", kind="set")], [succeeded({"n": 2**60})]),
            entry([step("c", State.STATE_FAILED)], [failure], leg=2, claimant="w2"),
            entry([step("d")], [succeeded(None)], leg=2, claimant="w2", end_kind=1),
        ],
    )
    found = await read_history(engine, run_id, limit=10, budget_bytes=BUDGET)
    assert found is not None
    assert [(e.index, e.leg, e.worker, e.leg_end) for e in found.entries] == [
        (1, 1, "w1", ""),
        (2, 2, "w2", ""),
        (3, 2, "w2", "succeeded"),
    ]
    results = [(s.step, s.result) for e in found.entries for s in e.steps]
    assert results == [("/do/a", b'{"n":1152921504606846976}'), ("/do/b", b""), ("/do/c", b""), ("/do/d", b"null")]
    assert all(e.record_time.seconds > 0 for e in found.entries)


async def test_results_go_to_their_own_steps(engine: AsyncEngine) -> None:
    """Branches that end in another order than they began, one whose step failed after its call had succeeded."""
    run_id = await run_with(
        engine,
        [
            entry(
                [step("late", at=7), step("spoiled", State.STATE_FAILED, at=1), step("early", at=3)],
                [succeeded("spoiled", at=1), succeeded("early", at=3), succeeded("late", at=7)],
            ),
            entry([step("one", at=9), step("two", at=9)], [succeeded(1, at=9), succeeded(2, at=9)]),
        ],
    )
    found = await read_history(engine, run_id, limit=10, budget_bytes=BUDGET)
    assert found is not None
    assert [(s.step, s.result) for e in found.entries for s in e.steps] == [
        ("/do/late", b'"late"'),
        ("/do/spoiled", b""),
        ("/do/early", b'"early"'),
        ("/do/one", b"1"),
        ("/do/two", b"2"),
    ]


async def test_pages_end_at_the_limit_or_the_budget(engine: AsyncEngine) -> None:
    large = "x" * 10_000
    run_id = await run_with(engine, [entry([step(str(n))], [succeeded(large)]) for n in range(30)])
    seen: list[int] = []
    while True:
        page = await read_history(engine, run_id, after_index=seen[-1] if seen else 0, limit=8, budget_bytes=45_000)
        assert page is not None
        assert len(page.entries) == 4 or (not page.more and len(page.entries) <= 4)
        assert all(e.steps[0].result for e in page.entries)
        if not page.entries:
            break
        seen += [e.index for e in page.entries]
    assert seen == list(range(1, 31))
    single = await read_history(engine, run_id, limit=8, budget_bytes=1)
    assert single is not None and len(single.entries) == 1 and single.more


async def test_steps_of_a_snapshot_stop_at_the_run_s_position(engine: AsyncEngine) -> None:
    run_id = await run_with(engine, [entry([step(f"{n}a"), step(f"{n}b")], []) for n in range(2500)])
    everything = await read_steps(engine, run_id, up_to=2500, budget_bytes=2**22)
    assert [s.step for s in everything] == [f"/do/{n}{half}" for n in range(2500) for half in "ab"]
    some = await read_steps(engine, run_id, up_to=3, budget_bytes=2**22)
    assert [s.step for s in some] == ["/do/0a", "/do/0b", "/do/1a", "/do/1b", "/do/2a", "/do/2b"]
    assert await read_steps(engine, run_id, up_to=0, budget_bytes=2**22) == []


async def test_snapshots_keep_the_last_steps(engine: AsyncEngine) -> None:
    per_entry = 9
    count = SNAPSHOT_STEPS // per_entry + 10
    run_id = await run_with(engine, [entry([step(f"{n}.{k}") for k in range(per_entry)], []) for n in range(count)])
    steps = await read_steps(engine, run_id, up_to=count, budget_bytes=2**24)
    assert len(steps) == SNAPSHOT_STEPS
    assert steps[-1].step == f"/do/{count - 1}.{per_entry - 1}"
    few = await read_steps(engine, run_id, up_to=count, budget_bytes=1000)
    assert few == steps[-len(few) :]
    assert 0 < sum(s.ByteSize() for s in few) <= 1000
