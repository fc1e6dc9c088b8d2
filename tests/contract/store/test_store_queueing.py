"""Starts with hints, quotas of namespaces, moves of runs, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_core.ids import group_of_run, make_run_id
from flint_core.queueing import ConcurrencyKey, Placement, QueueHints
from flint_ops.config import PostgresSettings
from flint_store.accept import Accepted, NewRun, Parent, Quota, accept_runs
from flint_store.engine import create_engine
from flint_store.errors import NamespaceNotFound
from flint_store.fence import OwnerSession
from flint_store.fold import RunFold, fold_runs
from flint_store.legs import load_runs
from flint_store.namespaces import change_settings, read_all_settings, read_settings
from flint_store.ownership import begin_session, take_groups
from support.record import GROUPS, add_version

NOW_MS = 1_795_000_000_000
HINTS = QueueHints(pool="gpu", deadline_ms=5, fairness_key="ü", concurrency=(ConcurrencyKey("k", 2),))


@pytest.fixture
async def lane(dsn: str) -> AsyncIterator[AsyncEngine]:
    created = create_engine(PostgresSettings(dsn=SecretStr(dsn)), "lane", pool_size=8)
    yield created
    await created.dispose()


@pytest.fixture
async def definition(engine: AsyncEngine) -> int:
    return await add_version(engine)


@pytest.fixture
async def session(engine: AsyncEngine) -> OwnerSession:
    started = await begin_session(engine, "s1", "127.0.0.1:1")
    await take_groups(engine, started, range(GROUPS))
    return started


def new_run(definition: int, request_id: str = "", hints: QueueHints | None = None, counted: bool = False) -> NewRun:
    run_id = make_run_id(3, NOW_MS, os.urandom(9))
    request_id = request_id or f"r-{run_id.hex()}"
    group = group_of_run(run_id, GROUPS)
    made = NewRun(run_id, "default", definition, group, 5, request_id, b"h" * 16, b"t" * 16, b"{}", hints=hints)
    made.counted = counted
    return made


async def accept(
    lane: AsyncEngine, runs: list[NewRun], session: OwnerSession | None, quota: Quota | None = None
) -> list[Accepted]:
    async with lane.connect() as connection:
        answers = await accept_runs(connection, runs, session, {"default": quota} if quota is not None else None)
    assert answers is not None
    return answers


@pytest.mark.parametrize("owned", [True, False])
async def test_hints_are_stored_with_those_runs_that_have_any(
    lane: AsyncEngine, session: OwnerSession, definition: int, owned: bool
) -> None:
    runs = [new_run(definition), new_run(definition, hints=HINTS), new_run(definition)]
    await accept(lane, runs, session if owned else None)
    async with lane.connect() as connection:
        rows = {row.run_id: row for row in await load_runs(connection, [r.run_id for r in runs])}
    assert [rows[r.run_id].hints for r in runs] == [None, HINTS, None]
    assert all(row.placement is None for row in rows.values())


async def test_children_have_hints_too(lane: AsyncEngine, session: OwnerSession, definition: int) -> None:
    child = new_run(definition, hints=HINTS)
    child.parent = Parent(os.urandom(16), "1", True, 1, os.urandom(16), 10)
    beside = new_run(definition, hints=HINTS)
    answers = await accept(lane, [child, beside], session)
    assert [a.created for a in answers] == [False, True]  # nobody waits for the child
    async with lane.connect() as connection:
        (row,) = await load_runs(connection, [child.run_id, beside.run_id])
    assert row.hints == HINTS


async def test_a_queue_has_its_bound_however_many_ask_at_once(
    engine: AsyncEngine, lane: AsyncEngine, session: OwnerSession, definition: int
) -> None:
    await change_settings(engine, "default", lambda settings: setattr(settings, "max_queued", 10))
    quota = Quota(10, None, 1.0)
    batches = [[new_run(definition, counted=True) for _ in range(4)] for _ in range(6)]
    answers = await asyncio.gather(*(accept(lane, batch, session, quota) for batch in batches))
    flat = [answer for found in answers for answer in found]
    assert Counter(a.refused for a in flat) == {"": 10, "queued": 14}
    assert sum(a.created for a in flat) == 10
    made = [(r, a) for b, found in zip(batches, answers, strict=True) for r, a in zip(b, found, strict=True)]
    first = next(run for run, answer in made if answer.created)
    # What was accepted is answered again, also now that the queue is full; what counts not is accepted.
    (again,) = await accept(lane, [new_run(definition, first.request_id, counted=True)], session, quota)
    assert (again.run_id, again.created, again.refused) == (first.run_id, False, "")
    (free,) = await accept(lane, [new_run(definition)], session, quota)
    assert free.created


async def test_starts_per_second_are_exact_over_all_who_accept(
    engine: AsyncEngine, lane: AsyncEngine, session: OwnerSession, definition: int
) -> None:
    await change_settings(engine, "default", lambda settings: setattr(settings, "starts_per_second", 0.001))
    quota = Quota(None, 0.001, 7.0)
    batches = [[new_run(definition, counted=True) for _ in range(3)] for _ in range(5)]
    answers = await asyncio.gather(*(accept(lane, batch, None, quota) for batch in batches))
    assert Counter(a.refused for found in answers for a in found) == {"": 7, "rate": 8}
    async with engine.begin() as connection:  # as if an hour had passed: the bucket is full again, and no fuller
        await connection.execute(text("UPDATE namespace_settings SET tokens_at = tokens_at - interval '3 hours'"))
    late = await accept(lane, [new_run(definition, counted=True) for _ in range(9)], session, quota)
    assert [a.refused for a in late] == [""] * 7 + ["rate"] * 2


async def test_a_run_moves_and_comes_home(lane: AsyncEngine, session: OwnerSession, definition: int) -> None:
    moving, other = new_run(definition), new_run(definition)
    await accept(lane, [moving, other], session)
    there = Placement("gpu", "eu", 2, "gold")

    async def fold(change: int, placement: bytes | None) -> Placement | None:
        folds = [
            RunFold(moving.run_id, change, 0, 1, leg_closed=False, losses=0, placement=placement),
            RunFold(other.run_id, change, 0, 1, leg_closed=False, losses=0),
        ]
        async with lane.connect() as connection:
            await fold_runs(connection, session, folds, [])
            rows = {row.run_id: row for row in await load_runs(connection, [moving.run_id, other.run_id])}
        assert rows[other.run_id].placement is None
        return rows[moving.run_id].placement

    assert await fold(2, there.to_json()) == there
    assert await fold(3, None) == there
    assert await fold(4, b"") is None


async def test_settings_are_changed_as_a_whole_or_not_at_all(engine: AsyncEngine) -> None:
    assert (await read_settings(engine, "default")).weight == 0
    stored = await change_settings(engine, "default", lambda settings: setattr(settings, "weight", 30))
    assert stored.HasField("update_time")
    with pytest.raises(RuntimeError):
        await change_settings(engine, "default", _refuse)
    assert (await read_all_settings(engine))["default"].weight == 30
    for missing in (read_settings(engine, "nobody"), change_settings(engine, "nobody", lambda settings: None)):
        with pytest.raises(NamespaceNotFound):
            await missing


def _refuse(settings: object) -> None:
    raise RuntimeError
