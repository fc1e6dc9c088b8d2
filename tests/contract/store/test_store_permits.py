"""Permits on a real PostgreSQL: never one too many, whoever asks at the same time; nothing for a fenced owner."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import AsyncIterator, Iterable
from datetime import datetime

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_core.ids import SHARDS, group_of_run, make_run_id
from flint_ops.config import PostgresSettings
from flint_store.accept import NewRun, accept_runs
from flint_store.engine import create_engine
from flint_store.fence import Fenced, OwnerSession
from flint_store.fold import EntryRow, RunFold, fold_runs
from flint_store.legs import LegOpening, load_runs
from flint_store.ownership import begin_session, take_groups
from flint_store.permit_changes import PermitChange
from flint_store.permits import (
    PLACE,
    TOKEN,
    PermitAnswer,
    PermitDemand,
    PermitRequest,
    drop_idle_buckets,
    free_after,
    load_after,
    open_permitted,
)
from flint_store.sweep import sweep
from support.record import GROUPS, add_version

NOW_MS = 1_795_000_000_000
PATIENCE_MS = 60_000
THREE = (PermitDemand(PLACE, "k", 3),)
ONE = (PermitDemand(PLACE, "k", 1),)


@pytest.fixture
async def lane(dsn: str) -> AsyncIterator[AsyncEngine]:
    created = create_engine(PostgresSettings(dsn=SecretStr(dsn)), "lane", pool_size=4)
    yield created
    await created.dispose()


@pytest.fixture
async def definition(engine: AsyncEngine) -> int:
    return await add_version(engine)


async def owner(engine: AsyncEngine, name: str, groups: Iterable[int] = range(GROUPS)) -> OwnerSession:
    session = await begin_session(engine, name, "127.0.0.1:1")
    await take_groups(engine, session, list(groups))
    return session


async def stored(lane: AsyncEngine, session: OwnerSession, definition: int, count: int, group: int = 3) -> list[NewRun]:
    """Queued runs of one group, oldest first."""
    runs = []
    for number in range(count):
        shard = group + GROUPS * random.randrange(SHARDS // GROUPS)
        run_id = make_run_id(shard, NOW_MS + number, os.urandom(9))
        runs.append(NewRun(run_id, "default", definition, group_of_run(run_id, GROUPS), 5, "", b"", b"t" * 16, b"{}"))
    async with lane.connect() as connection:
        assert await accept_runs(connection, runs, session) is not None
    return runs


def request(run: NewRun, demands: tuple[PermitDemand, ...], *, number: int = 0, level: int = 5) -> PermitRequest:
    opening = LegOpening(run.run_id, 2, 1, os.urandom(16), "w1", 1)
    return PermitRequest(opening, "default", run.group, level, NOW_MS + number, demands)


async def ask(
    lane: AsyncEngine, session: OwnerSession, *requests: PermitRequest, patience_ms: int = PATIENCE_MS
) -> list[PermitAnswer]:
    async with lane.connect() as connection:
        return await open_permitted(connection, session, requests, patience_ms)


async def end(lane: AsyncEngine, session: OwnerSession, run: NewRun, change: PermitChange | None = None) -> None:
    fold = RunFold(
        run_id=run.run_id,
        change=3,
        position=1,
        state=4,
        leg_closed=True,
        losses=0,
        output=b"1",
        ended=True,
        permits=change or PermitChange(run.run_id),
    )
    async with lane.connect() as connection:
        await fold_runs(connection, session, [fold], [EntryRow(run.run_id, 1, 1, "w1", b"", b"[]", 1)])


async def count(engine: AsyncEngine, table: str) -> int:
    async with engine.connect() as connection:
        return int((await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one())


def most_at_once(spans: Iterable[tuple[datetime, datetime]]) -> int:
    moments = sorted(itertools.chain.from_iterable(((begun, 1), (ended, -1)) for begun, ended in spans))
    return max(itertools.accumulate(change for _, change in moments))


async def test_takers_of_several_sessions_never_hold_more_than_the_limit(
    engine: AsyncEngine, lane: AsyncEngine, definition: int
) -> None:
    seen: list[int] = []
    done = asyncio.Event()

    async def watch() -> None:
        async with engine.connect() as connection:
            while not done.is_set():
                seen.append((await connection.execute(text("SELECT count(*) FROM permit"))).scalar_one())

    async def work(number: int) -> None:
        session = await owner(lane, f"s{number}", [number])
        waiting = await stored(lane, session, definition, 25, group=number)
        while waiting:
            batch = random.sample(waiting, min(len(waiting), random.randint(1, 5)))
            answers = await ask(lane, session, *(request(r, THREE) for r in batch), patience_ms=0)
            for run, answer in zip(batch, answers, strict=True):
                if answer.granted:
                    waiting.remove(run)
                    await end(lane, session, run)

    watcher = asyncio.create_task(watch())
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(work(number))
    done.set()
    await watcher
    assert max(seen) <= 3
    async with engine.connect() as connection:
        spans = (
            await connection.execute(text("SELECT started_at, ended_at FROM run WHERE ended_at IS NOT NULL"))
        ).all()
    assert len(spans) == 100
    assert most_at_once((s.started_at, s.ended_at) for s in spans) == 3
    assert await count(engine, "permit") == await count(engine, "permit_wait") == 0


async def test_a_fenced_owner_takes_nothing_and_frees_nothing(
    engine: AsyncEngine, lane: AsyncEngine, definition: int
) -> None:
    former = await owner(lane, "s1")
    holder, waiter = await stored(lane, former, definition, 2)
    opened = request(holder, ONE)
    [answer] = await ask(lane, former, opened)
    assert answer.granted
    await end(lane, former, holder, PermitChange(holder.run_id, "w1", opened.opening.nonce))
    async with lane.connect() as connection:
        [left] = await load_after(connection, [holder.group], 10)
    present = await owner(lane, "s2")
    with pytest.raises(Fenced):
        await ask(lane, former, request(waiter, (PermitDemand(PLACE, "other", 1), PermitDemand(TOKEN, "r", 1, 1000))))
    async with lane.connect() as connection:
        with pytest.raises(Fenced):
            await free_after(connection, former, [left])
    assert await count(engine, "permit") == 1
    assert await count(engine, "permit_bucket") == await count(engine, "permit_wait") == 0
    async with lane.connect() as connection:
        await free_after(connection, present, [left])
    assert await count(engine, "permit") == 0


async def test_a_permit_outlives_an_end_that_its_leg_does_not_know_of(
    engine: AsyncEngine, lane: AsyncEngine, definition: int
) -> None:
    session = await owner(lane, "s1")
    holder, waiter = await stored(lane, session, definition, 2)
    opened = request(holder, ONE)
    assert (await ask(lane, session, opened))[0].granted
    await end(lane, session, holder, PermitChange(holder.run_id, "w1", opened.opening.nonce))
    [refused] = await ask(lane, session, request(waiter, ONE))
    assert not refused.granted
    assert (refused.kind, refused.key) == (PLACE, "k")
    async with lane.connect() as connection:
        found = await sweep(connection, session, list(range(GROUPS)), 1.0, 100)
        assert found.after == [holder.run_id]
        [left] = await load_after(connection, list(range(GROUPS)), 100)
        assert (left.run_id, left.claimant, left.leg_nonce) == (holder.run_id, "w1", opened.opening.nonce)
        assert left.keys == (("default", PLACE, "k"),)
        await free_after(connection, session, [left])
    assert (await ask(lane, session, request(waiter, ONE)))[0].granted


async def test_a_run_that_holds_its_permits_needs_no_others(lane: AsyncEngine, definition: int) -> None:
    session = await owner(lane, "s1")
    [run] = await stored(lane, session, definition, 1)
    both = (PermitDemand(TOKEN, "r", 1, 3_600_000), PermitDemand(PLACE, "k", 1))
    assert (await ask(lane, session, request(run, both)))[0].granted
    again = PermitRequest(LegOpening(run.run_id, 3, 2, os.urandom(16), "w2", 1), "default", run.group, 5, NOW_MS, both)
    assert (await ask(lane, session, again))[0].granted


async def test_all_permits_of_a_run_or_none(engine: AsyncEngine, lane: AsyncEngine, definition: int) -> None:
    session = await owner(lane, "s1")
    holder, waiter = await stored(lane, session, definition, 2)
    assert (await ask(lane, session, request(holder, (PermitDemand(PLACE, "b", 1),))))[0].granted
    demands = (PermitDemand(PLACE, "a", 1), PermitDemand(TOKEN, "r", 1, 1000), PermitDemand(PLACE, "b", 1))
    [refused] = await ask(lane, session, request(waiter, demands))
    assert (refused.granted, refused.key) == (False, "b")
    assert await count(engine, "permit") == 1
    assert await count(engine, "permit_bucket") == 0
    async with lane.connect() as connection:
        [row] = await load_runs(connection, [waiter.run_id])
    assert (row.state, row.leg, row.change) == (1, 0, 1)


async def test_who_was_refused_first_is_let_in_first_while_its_owner_asks(lane: AsyncEngine, definition: int) -> None:
    mine, theirs = await owner(lane, "s1", [3]), await owner(lane, "s2", [4])
    holder, younger = await stored(lane, mine, definition, 2, group=3)
    [older] = await stored(lane, theirs, definition, 1, group=4)
    assert (await ask(lane, mine, request(holder, ONE)))[0].granted
    assert not (await ask(lane, theirs, request(older, ONE, number=1)))[0].granted
    await end(lane, mine, holder)
    assert not (await ask(lane, mine, request(younger, ONE, number=2)))[0].granted
    assert (await ask(lane, mine, request(younger, ONE, number=2, level=1)))[0].granted, "a more urgent one is let past"
    await end(lane, mine, younger)
    assert (await ask(lane, theirs, request(older, ONE, number=1)))[0].granted


async def test_an_owner_that_does_not_ask_again_keeps_nobody_waiting(lane: AsyncEngine, definition: int) -> None:
    mine, theirs = await owner(lane, "s1", [3]), await owner(lane, "s2", [4])
    holder, younger = await stored(lane, mine, definition, 2, group=3)
    [older] = await stored(lane, theirs, definition, 1, group=4)
    assert (await ask(lane, mine, request(holder, ONE)))[0].granted
    assert not (await ask(lane, theirs, request(older, ONE, number=1)))[0].granted
    await end(lane, mine, holder)
    assert (await ask(lane, mine, request(younger, ONE, number=2), patience_ms=0))[0].granted


async def test_a_rate_is_kept_in_every_window(engine: AsyncEngine, lane: AsyncEngine, definition: int) -> None:
    rate = (PermitDemand(TOKEN, "r", 200, 1000, 4),)
    at: list[datetime] = []

    async def work(number: int) -> None:
        session = await owner(lane, f"s{number}", [number])
        waiting = await stored(lane, session, definition, 40, group=number)
        while waiting:
            answers = await ask(lane, session, *(request(r, rate) for r in waiting[:8]), patience_ms=0)
            granted = [r for r, a in zip(waiting, answers, strict=False) if a.granted]
            assert all(a.due_in_ms is not None for a in answers if not a.granted)
            waiting = [r for r in waiting if r not in granted]

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(work(number))
    async with engine.connect() as connection:
        at = sorted((await connection.execute(text("SELECT started_at FROM run"))).scalars())
    assert len(at) == 120
    for first, last in itertools.combinations(range(120), 2):
        seconds = (at[last] - at[first]).total_seconds()
        assert last - first + 1 <= 4 + 200 * seconds + 1e-6
    await drop_buckets_when_idle(engine)


async def drop_buckets_when_idle(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        assert await drop_idle_buckets(connection) == 0
        await connection.execute(text("UPDATE permit_bucket SET full_at = full_at - interval '2 minutes'"))
        assert await drop_idle_buckets(connection) == 1


async def test_a_clock_that_went_back_empties_a_bucket_and_no_more(
    engine: AsyncEngine, lane: AsyncEngine, definition: int
) -> None:
    session = await owner(lane, "s1")
    first, second = await stored(lane, session, definition, 2)
    rate = (PermitDemand(TOKEN, "r", 10, 1000, 3),)
    assert (await ask(lane, session, request(first, rate)))[0].granted
    async with engine.connect() as connection:
        await connection.execute(text("UPDATE permit_bucket SET full_at = full_at + interval '3 hours'"))
    [refused] = await ask(lane, session, request(second, rate))
    assert not refused.granted
    assert refused.due_in_ms is not None
    assert refused.due_in_ms <= 101


async def test_a_named_limit_counts_as_it_stands(engine: AsyncEngine, lane: AsyncEngine, definition: int) -> None:
    session = await owner(lane, "s1")
    runs = await stored(lane, session, definition, 4)
    named = (PermitDemand(PLACE, "n", 0, named="n"),)

    async def asked() -> list[bool]:
        return [a.granted for a in await ask(lane, session, *(request(r, named) for r in runs[1:]), patience_ms=0)]

    async def limit(value: str) -> None:
        async with engine.connect() as connection:
            await connection.execute(text("DELETE FROM permit_limit"))
            await connection.execute(
                text(
                    "INSERT INTO permit_limit (namespace_id, name, concurrency, updated_at)"
                    f" VALUES ('default', 'n', {value}, now())"
                )
            )

    assert not (await ask(lane, session, request(runs[0], named), patience_ms=0))[0].granted, "nobody has set it"
    await limit("1")
    assert (await ask(lane, session, request(runs[0], named), patience_ms=0))[0].granted
    assert await asked() == [False, False, False]
    await limit("NULL")
    assert await asked() == [True, True, True]
    assert await count(engine, "permit") == 4


async def test_the_newest_replaces_the_oldest_holder_once(
    engine: AsyncEngine, lane: AsyncEngine, definition: int
) -> None:
    session = await owner(lane, "s1")
    two = (PermitDemand(PLACE, "k", 2, overflow="replace"),)
    first, second, third, fourth = await stored(lane, session, definition, 4)
    for run in (first, second):
        assert (await ask(lane, session, request(run, two)))[0].granted
    [answer] = await ask(lane, session, request(third, two))
    assert answer.replaced is not None
    assert answer.replaced.run_id == first.run_id
    [again] = await ask(lane, session, request(third, two))
    assert again.replaced is None
    [answer] = await ask(lane, session, request(fourth, two, number=1))
    assert answer.replaced is not None
    assert answer.replaced.run_id == second.run_id
    assert await count(engine, "inbox") == 2
    await end(lane, session, first)
    assert (await ask(lane, session, request(third, two)))[0].granted


async def test_a_refused_run_leaves_nothing_behind(engine: AsyncEngine, lane: AsyncEngine, definition: int) -> None:
    session = await owner(lane, "s1")
    holder, late = await stored(lane, session, definition, 2)
    assert (await ask(lane, session, request(holder, ONE)))[0].granted
    [answer] = await ask(lane, session, request(late, (PermitDemand(PLACE, "k", 1, overflow="refuse"),)))
    assert (answer.granted, answer.overflow) == (False, "refuse")
    assert await count(engine, "permit_wait") == 0
