"""The owner's statements on a real PostgreSQL: fences under concurrency, all or nothing, plans that stay on indexes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import TextClause, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from flint_core.ids import group_of_run, make_run_id
from flint_ops.config import PostgresSettings
from flint_store import fold as fold_module
from flint_store.accept import NewRun, accept_runs
from flint_store.await_changes import AwaitChanges, AwaitOpening, ParentMessage
from flint_store.engine import create_engine
from flint_store.errors import StoreUnavailable
from flint_store.fence import Fenced, OwnerSession
from flint_store.fold import EntryRow, RunFold, fold_runs
from flint_store.legs import LegOpening, load_leg_starts, load_runs, load_unfinished, open_legs
from flint_store.ownership import begin_session, end_session, give_groups, next_generation, read_terms, take_groups
from flint_store.sweep import put_inbox, read_inbox, sweep
from support.record import GROUPS, add_version

NOW_MS = 1_795_000_000_000


@pytest.fixture
async def lane(dsn: str) -> AsyncIterator[AsyncEngine]:
    created = create_engine(PostgresSettings(dsn=SecretStr(dsn)), "lane", pool_size=4)
    yield created
    await created.dispose()


@pytest.fixture
async def definition(engine: AsyncEngine) -> int:
    return await add_version(engine)


async def owner(engine: AsyncEngine, name: str) -> OwnerSession:
    session = await begin_session(engine, name, "127.0.0.1:1")
    await take_groups(engine, session, range(GROUPS))
    return session


def new_run(definition: int, **changes: object) -> NewRun:
    run_id = make_run_id(3, NOW_MS, os.urandom(9))
    run = NewRun(
        run_id=run_id,
        namespace="default",
        definition_id=definition,
        group=group_of_run(run_id, GROUPS),
        level=5,
        request_id=f"r-{run_id.hex()}",
        request_hash=b"h" * 16,
        trace_id=b"t" * 16,
        input=b"{}",
    )
    return replace(run, **changes)  # type: ignore[arg-type]


def leg_run(definition: int) -> NewRun:
    return new_run(definition, leg_nonce=os.urandom(16), claimant="w1", generation=1)


def done(run: NewRun, change: int = 2) -> tuple[RunFold, EntryRow]:
    fold = RunFold(
        run_id=run.run_id, change=change, position=1, state=4, leg_closed=True, losses=0, output=b"1", ended=True
    )
    return fold, EntryRow(run.run_id, 1, 1, "w1", b"", b"[]", 1)


async def count(engine: AsyncEngine, table: str) -> int:
    async with engine.connect() as connection:
        return int((await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one())


async def test_an_ended_session_commits_nothing(engine: AsyncEngine, lane: AsyncEngine, definition: int) -> None:
    first = await owner(engine, "s1")
    run = leg_run(definition)
    async with lane.connect() as connection:
        assert await accept_runs(connection, [run], first)
        second = await owner(engine, "s2")
        fold, entry = done(run)
        with pytest.raises(Fenced):
            await fold_runs(connection, first, [fold], [entry])
        with pytest.raises(Fenced):
            await open_legs(connection, first, [LegOpening(run.run_id, 2, 2, os.urandom(16), "w2", 1)])
        assert await accept_runs(connection, [leg_run(definition)], first) is None
        with pytest.raises(Fenced):
            await sweep(connection, first, range(GROUPS), 10, 100)
        with pytest.raises(Fenced):
            await give_groups(connection, first, {0: 1}, 1)
        assert await count(engine, "run_entry") == 0
        assert await count(engine, "run") == 1
        await fold_runs(connection, second, [fold], [entry])
    assert await count(engine, "run_entry") == 1


async def test_a_wrong_nonce_is_no_session(engine: AsyncEngine, lane: AsyncEngine, definition: int) -> None:
    session = await owner(engine, "s1")
    forged = OwnerSession(session.session_id, uuid4())
    async with lane.connect() as connection:
        assert await accept_runs(connection, [leg_run(definition)], forged) is None


async def test_a_takeover_waits_for_the_commit_under_way(
    engine: AsyncEngine, lane: AsyncEngine, definition: int
) -> None:
    """A zombie's commit is either seen by its successor's first read, or refused; never in between."""
    first = await owner(engine, "s1")
    run = leg_run(definition)
    async with lane.connect() as connection:
        await accept_runs(connection, [run], first)
    fold, entry = done(run)
    async with engine.connect() as raw:
        zombie = await raw.execution_options(isolation_level="READ COMMITTED")
        await zombie.execute(text("SET idle_in_transaction_session_timeout = 0"))
        await fold_runs(zombie, first, [fold], [entry])  # holds its session's row until it commits
        second = await begin_session(engine, "s2", "127.0.0.1:2")
        takeover = asyncio.create_task(take_groups(engine, second, range(GROUPS)))
        while not await waiting_for_locks(lane):
            assert not takeover.done(), "the takeover did not wait"
        await zombie.commit()
        await takeover
    async with lane.connect() as connection:
        assert await load_unfinished(connection, range(GROUPS)) == []


async def test_takers_at_the_same_time_leave_one_owner(engine: AsyncEngine) -> None:
    """Whoever took a group and does not own it any more has lost its session: two owners never both commit."""
    owners = text("""
        SELECT g.group_id, g.session_id, s.ended_at FROM shard_group g JOIN owner_session s USING (session_id)""")
    living = text("SELECT session_id FROM owner_session WHERE ended_at IS NULL")
    for round_ in range(30):
        sessions = [await begin_session(engine, f"s{number}-{round_}", "127.0.0.1:1") for number in range(4)]
        outcomes = await asyncio.gather(
            *(take_groups(engine, session, range(GROUPS)) for session in sessions), return_exceptions=True
        )
        assert all(isinstance(outcome, list | Fenced | StoreUnavailable) for outcome in outcomes), outcomes
        async with engine.connect() as connection:
            rows = (await connection.execute(owners)).all()
            alive = {row.session_id for row in (await connection.execute(living)).all()}
        holders = {row.session_id for row in rows}
        assert len(holders) == 1
        took = {s.session_id for s, outcome in zip(sessions, outcomes, strict=True) if isinstance(outcome, list)}
        assert took & alive <= holders


async def waiting_for_locks(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        found = await connection.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted"))
        return int(found.scalar_one())


async def test_a_commit_that_waited_for_a_takeover_is_refused(
    engine: AsyncEngine, lane: AsyncEngine, definition: int
) -> None:
    first = await owner(engine, "s1")
    run = leg_run(definition)
    async with lane.connect() as connection:
        await accept_runs(connection, [run], first)
    fold, entry = done(run)
    async with engine.connect() as raw:
        taking = await raw.execution_options(isolation_level="READ COMMITTED")
        await taking.execute(text("SET idle_in_transaction_session_timeout = 0"))
        await taking.execute(
            text("UPDATE owner_session SET ended_at = now() WHERE session_id = :s"), {"s": first.session_id}
        )

        async def late() -> None:
            async with lane.connect() as connection:
                await fold_runs(connection, first, [fold], [entry])

        task = asyncio.create_task(late())
        async with engine.connect() as other:
            while not (await other.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted"))).scalar_one():
                assert not task.done()
        await taking.commit()
        with pytest.raises(Fenced):
            await task
    assert await count(engine, "run_entry") == 0


async def test_one_wrong_row_undoes_the_whole_fold(engine: AsyncEngine, lane: AsyncEngine, definition: int) -> None:
    session = await owner(engine, "s1")
    runs = [leg_run(definition) for _ in range(3)]
    async with lane.connect() as connection:
        await accept_runs(connection, runs, session)
        folds = [done(r) for r in runs]
        folds[1] = done(runs[1], change=7)
        with pytest.raises(DBAPIError, match="division by zero"):
            await fold_runs(connection, session, [f for f, _ in folds], [e for _, e in folds])
        assert await count(engine, "run_entry") == 0
        rows = await load_runs(connection, [r.run_id for r in runs])
    assert {r.change for r in rows} == {1}


async def test_request_ids_make_starts_idempotent(engine: AsyncEngine, lane: AsyncEngine, definition: int) -> None:
    session = await owner(engine, "s1")
    run = leg_run(definition)
    other_content = replace(leg_run(definition), request_id=run.request_id, request_hash=b"x" * 16)
    again = replace(leg_run(definition), request_id=run.request_id)
    async with lane.connect() as connection:
        first = await accept_runs(connection, [run, again, other_content], session)
        repeated = await accept_runs(connection, [run], session)
    assert first is not None
    assert repeated is not None
    assert [a.created for a in first] == [True, False, False]
    assert [a.same_request for a in first] == [True, True, False]
    assert {a.run_id for a in first} == {run.run_id}
    assert (repeated[0].created, repeated[0].same_request) == (True, True)
    assert await count(engine, "run") == 1


async def test_a_foreign_start_is_found_by_the_sweep(engine: AsyncEngine, lane: AsyncEngine, definition: int) -> None:
    session = await owner(engine, "s1")
    run = new_run(definition)
    async with lane.connect() as connection:
        await accept_runs(connection, [run], None)
        found = await sweep(connection, session, range(GROUPS), 10, 100)
        assert found.accepted == [run.run_id]
        await open_legs(connection, session, [LegOpening(run.run_id, 2, 1, os.urandom(16), "w1", 1)])
        assert (await sweep(connection, session, range(GROUPS), 10, 100)).accepted == []
        starts = await load_leg_starts(connection, [run.run_id])
    assert starts[run.run_id].input == b"{}"


async def test_a_wait_is_due_by_postgresqls_clock(engine: AsyncEngine, lane: AsyncEngine, definition: int) -> None:
    session = await owner(engine, "s1")
    near, far = leg_run(definition), leg_run(definition)
    async with lane.connect() as connection:
        await accept_runs(connection, [near, far], session)
        at = await connection.execute(text("SELECT extract(epoch FROM clock_timestamp()) * 1000"))
        now_ms = int(at.scalar_one())
        folds = [
            RunFold(r.run_id, 2, 1, 3, True, 0, snapshot=b"s", snapshot_position=1, wake_at_ms=now_ms + wait_ms)
            for r, wait_ms in ((near, 2_000), (far, 600_000))
        ]
        await fold_runs(connection, session, folds, [])
        found = await sweep(connection, session, range(GROUPS), 10, 100)
    assert found.due == [(near.run_id, now_ms + 2_000)]


async def test_inbox_rows_are_cleared_with_the_fold(engine: AsyncEngine, lane: AsyncEngine, definition: int) -> None:
    session = await owner(engine, "s1")
    run = leg_run(definition)
    async with lane.connect() as connection:
        await accept_runs(connection, [run], session)
        for _ in range(2):
            known = await put_inbox(connection, "default", [run.run_id], "cancel", "cancel", b"why")
        assert known == {run.run_id: (run.group, 2)}
        assert await read_inbox(connection, [run.run_id]) == {run.run_id: [("cancel", b"why")]}
        assert await put_inbox(connection, "other", [run.run_id], "cancel", "cancel", b"") == {}
        served = AwaitChanges(run.run_id, run.group, "default", cancel_served=True)
        fold = RunFold(run.run_id, 2, 0, 6, True, 0, cancel_requested=True, ended=True, awaits=served)
        await fold_runs(connection, session, [fold], [])
        assert await read_inbox(connection, [run.run_id]) == {}
        await put_inbox(connection, "default", [run.run_id], "cancel", "cancel", b"")
        assert await read_inbox(connection, [run.run_id]) == {}, "a run that has ended takes no more rows"


async def test_ending_a_session_frees_its_groups_once(engine: AsyncEngine) -> None:
    session = await owner(engine, "s1")
    await end_session(engine, session)
    with pytest.raises(Fenced):
        await end_session(engine, session)
    async with engine.connect() as connection:
        owned = await connection.execute(text("SELECT count(*) FROM shard_group WHERE session_id IS NOT NULL"))
        assert owned.scalar_one() == 0


async def test_a_successor_of_the_same_name_ends_its_predecessor(engine: AsyncEngine, lane: AsyncEngine) -> None:
    first = await owner(engine, "s1")
    await begin_session(engine, "s1", "127.0.0.1:1")
    async with lane.connect() as connection:
        with pytest.raises(Fenced):
            await sweep(connection, first, [0], 1, 1)


async def test_one_generation_is_opened_by_many_who_try(engine: AsyncEngine, lane: AsyncEngine) -> None:
    session = await owner(engine, "s1")

    async def attempt() -> int:
        async with lane.connect() as connection:
            return await next_generation(connection, session, 0)

    assert await asyncio.gather(*(attempt() for _ in range(4))) == [1, 1, 1, 1]


async def test_terms_rise_with_every_takeover(engine: AsyncEngine) -> None:
    first = await begin_session(engine, "s1", "a")
    second = await begin_session(engine, "s2", "b")
    terms = [
        {t.group: t.term for t in await take_groups(engine, session, [0, 5])}
        for session in (first, second, first)
        if session is not first or not await ended(engine, session)
    ]
    assert terms == [{0: 1, 5: 1}, {0: 2, 5: 2}]
    with pytest.raises(Fenced):
        await take_groups(engine, first, [0])


async def test_a_group_that_was_taken_since_its_term_was_read_is_left_out(engine: AsyncEngine) -> None:
    """Its new owner may hold its lease: what it took stays its own, and its session stands; the others are taken."""
    dead, rightful, late = [await begin_session(engine, name, "a") for name in ("dead", "rightful", "late")]
    await take_groups(engine, dead, [0, 1, 2])
    async with engine.connect() as connection:
        read = await read_terms(connection, [0, 1, 2, 3])
    assert read == {0: 1, 1: 1, 2: 1, 3: 0}
    assert [t.term for t in await take_groups(engine, rightful, [0, 1], read)] == [2, 2]
    assert [(t.group, t.term) for t in await take_groups(engine, late, [0, 3], read)] == [(3, 1)]
    assert await take_groups(engine, late, [0, 1], read) == []
    assert not await ended(engine, rightful) and not await ended(engine, late)
    async with engine.connect() as connection:
        again = await read_terms(connection, [0])
    assert [t.term for t in await take_groups(engine, late, [0], again)] == [3]
    assert await ended(engine, rightful), "who owned it when its term was read has lost it"


async def ended(engine: AsyncEngine, session: OwnerSession) -> bool:
    async with engine.connect() as connection:
        row = await connection.execute(
            text("SELECT ended_at IS NOT NULL FROM owner_session WHERE session_id = :s"), {"s": session.session_id}
        )
        return bool(row.scalar_one())


@pytest.mark.parametrize("awaits", [False, True])
async def test_a_fold_touches_only_the_rows_it_names(
    engine: AsyncEngine, lane: AsyncEngine, definition: int, awaits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tables that have grown, every node of the plan that reads them goes through an index."""
    session = await owner(engine, "s1")
    async with lane.connect() as connection:
        for _ in range(5):
            await accept_runs(connection, [leg_run(definition) for _ in range(1000)], session)
        runs = [leg_run(definition) for _ in range(300)]
        await accept_runs(connection, runs, session)
        await connection.execute(
            text(
                "INSERT INTO run_await (run_id, key, kind, group_id, namespace_id, step, iteration, request, opened_at)"
                " SELECT run_id, n::text, 3, group_id, 'default', '', '', '', now() FROM run, generate_series(1, 4) n"
            )
        )
        await connection.execute(
            text(
                "INSERT INTO inbox (run_id, key, group_id, kind, await_key)"
                " SELECT run_id, n::text, group_id, 'message', '1' FROM run, generate_series(1, 4) n"
            )
        )
    folds = [done(r) for r in runs]
    if awaits:
        folds = [(f._replace(awaits=changes_of(r, runs[0])), e) for r, (f, e) in zip(runs, folds, strict=True)]
    captured: dict[str, object] = {}
    used: list[TextClause] = []

    class Seen(Exception):
        pass

    async def record(connection: AsyncConnection, statement: TextClause, parameters: dict[str, object]) -> object:
        used.append(statement)
        captured.update(parameters)
        raise Seen

    monkeypatch.setattr(fold_module, "execute_hot", record)
    async with lane.connect() as connection:
        with pytest.raises(Seen):
            await fold_runs(connection, session, [f for f, _ in folds], [e for _, e in folds])
    assert used == [fold_module.FOLD_AND_AWAITS if awaits else fold_module.FOLD]
    async with lane.connect() as connection:
        plan = await connection.execute(text("EXPLAIN " + used[0].text), captured)
        lines = [row[0] for row in plan]
    assert not [line for line in lines if "Seq Scan on run" in line or "Seq Scan on inbox" in line], "\n".join(lines)
    assert [line for line in lines if "Index Scan using run_pkey" in line], "\n".join(lines)
    indexes = ("run_await_pkey", "inbox_pkey")
    assert all(any(name in line for line in lines) for name in indexes) == awaits, "\n".join(lines)


def changes_of(run: NewRun, parent: NewRun) -> AwaitChanges:
    opening = AwaitOpening("9", 3, "/do/0/a", "", b"{}", NOW_MS)
    answer = ParentMessage(parent.run_id, "1", parent.group, b"{}")
    return AwaitChanges(run.run_id, run.group, "default", [opening], ["1"], ["2"], True, True, answer)
