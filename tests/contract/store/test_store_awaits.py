"""Awaits in the record: opened and closed by folds, served by agents, answered by messages, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from flint_core.ids import group_of_run, make_run_id
from flint_ops.config import PostgresSettings
from flint_store.accept import NewRun, Parent, accept_runs
from flint_store.await_changes import AwaitChanges, AwaitOpening, ParentMessage
from flint_store.awaits import NewMessage, Target, put_messages, read_unserved, settle_closed, settle_opened
from flint_store.children import find_children, read_parents
from flint_store.engine import create_engine
from flint_store.fence import Fenced, OwnerSession
from flint_store.fold import RunFold, fold_runs
from flint_store.legs import LegOpening, load_leg_starts, load_runs, open_legs
from flint_store.mail import MOST_LETTERS, load_mail
from flint_store.ownership import begin_session, end_session, take_groups
from flint_store.sweep import put_inbox, read_inbox, sweep
from support.record import CANCELLED, GROUPS, RUNNING, SUCCEEDED, WAITING, add_version

NONCE = bytes(range(16))
NOW_MS = 1_795_000_000_000


@pytest.fixture
async def lane(dsn: str) -> AsyncIterator[AsyncEngine]:
    created = create_engine(PostgresSettings(dsn=SecretStr(dsn)), "lane", pool_size=4)
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


def new_run(definition: int, request_id: str = "") -> NewRun:
    run_id = make_run_id(3, NOW_MS, os.urandom(9))
    return NewRun(
        run_id=run_id,
        namespace="default",
        definition_id=definition,
        group=group_of_run(run_id, GROUPS),
        level=5,
        request_id=request_id or f"r-{run_id.hex()}",
        request_hash=b"h" * 16,
        trace_id=b"t" * 16,
        input=b"{}",
    )


@pytest.fixture
async def run(engine: AsyncEngine, session: OwnerSession, definition: int) -> NewRun:
    """A run with an open leg."""
    run = new_run(definition)
    run.leg_nonce, run.claimant, run.generation = NONCE, "w", 1
    async with engine.connect() as connection:
        await accept_runs(connection, [run], session)
    return run


def changes(run: NewRun, **parts: object) -> AwaitChanges:
    return AwaitChanges(run.run_id, run.group, run.namespace, **parts)  # type: ignore[arg-type]


def opening(key: str, kind: int = 3, request: bytes = b"{}") -> AwaitOpening:
    return AwaitOpening(key, kind, "/do/0/wait", "", request, 1_700_000_000_000)


def fold(run: NewRun, change: int, parts: AwaitChanges | None, state: int = RUNNING, **more: object) -> RunFold:
    return RunFold(run.run_id, change, change - 1, state, False, 0, awaits=parts, **more)  # type: ignore[arg-type]


async def keys(connection: AsyncConnection, run: NewRun) -> dict[str, tuple[bool, bool]]:
    rows = await connection.execute(
        text("SELECT key, closed, served FROM run_await WHERE run_id = :r"), {"r": UUID(bytes=run.run_id)}
    )
    return {r.key: (r.closed, r.served) for r in rows}


async def inbox(connection: AsyncConnection, run: NewRun) -> list[str]:
    rows = await connection.execute(
        text("SELECT key FROM inbox WHERE run_id = :r ORDER BY seq"), {"r": UUID(bytes=run.run_id)}
    )
    return [r.key for r in rows]


async def test_from_open_to_gone(lane: AsyncEngine, session: OwnerSession, run: NewRun) -> None:
    async with lane.connect() as connection:
        for change in (2, 3):  # told of twice: recorded once
            await fold_runs(
                connection, session, [fold(run, change, changes(run, opened=[opening("1"), opening("2")]))], []
            )
        assert await keys(connection, run) == {"1": (False, False), "2": (False, False)}
        found = await sweep(connection, session, range(GROUPS), 10, 100)
        assert found.awaits == [run.run_id]
        rows = await read_unserved(connection, [run.run_id], 10)
        assert [(r.key, r.kind, r.step, r.closed, r.namespace) for r in rows] == [
            ("1", 3, "/do/0/wait", False, "default"),
            ("2", 3, "/do/0/wait", False, "default"),
        ]
        await settle_opened(connection, rows)
        assert (await sweep(connection, session, range(GROUPS), 10, 100)).awaits == []
        assert (await load_leg_starts(connection, [run.run_id]))[run.run_id].awaits == ["1", "2"]
        await fold_runs(connection, session, [fold(run, 4, changes(run, closed=["1"]))], [])
        assert await keys(connection, run) == {"1": (True, False), "2": (False, True)}
        await settle_opened(connection, rows)  # a handler that ends late does not hide the closing
        assert (await keys(connection, run))["1"] == (True, False)
        await settle_closed(connection, rows)
        assert await keys(connection, run) == {"2": (False, True)}
        await fold_runs(connection, session, [fold(run, 5, changes(run, ended=True), SUCCEEDED, ended=True)], [])
        assert await keys(connection, run) == {"2": (True, False)}


async def test_messages_in_order_once_and_only_for_open_awaits(
    lane: AsyncEngine, session: OwnerSession, run: NewRun
) -> None:
    def message(key: str, await_key: str = "1") -> NewMessage:
        return NewMessage(run.run_id, key, await_key, b'"' + key.encode() + b'"')

    target = [Target(run.run_id, run.group)]
    async with lane.connect() as connection:
        assert await put_messages(connection, [message("a")]) == []
        await fold_runs(connection, session, [fold(run, 2, changes(run, opened=[opening("1")]))], [])
        assert await put_messages(connection, [message("z"), message("a"), message("x", "9")]) == target
        assert await put_messages(connection, [message("m"), message("a")]) == target
        assert await inbox(connection, run) == ["z", "a", "m"]
        assert await read_inbox(connection, [run.run_id]) == {run.run_id: [("message", b"")]}
        mail = (await load_leg_starts(connection, [run.run_id]))[run.run_id].mail
        assert ([(m.key, m.await_key, m.content) for m in mail.letters], mail.more) == (
            [("z", "1", b'"z"'), ("a", "1", b'"a"'), ("m", "1", b'"m"')],
            False,
        )
        await put_inbox(connection, "default", [run.run_id], "cancel", "cancel", b"why")
        await fold_runs(connection, session, [fold(run, 3, changes(run, consumed=["z", "a"]))], [])
        assert await inbox(connection, run) == ["m", "cancel"]
        await fold_runs(connection, session, [fold(run, 4, changes(run, cancel_served=True))], [])
        assert await inbox(connection, run) == ["m"], "a cancel takes no messages with it"
        await fold_runs(connection, session, [fold(run, 5, changes(run, ended=True), SUCCEEDED, ended=True)], [])
        assert await inbox(connection, run) == []
        assert await put_messages(connection, [message("late")]) == []


async def test_mail_comes_in_parts(lane: AsyncEngine, session: OwnerSession, run: NewRun) -> None:
    async with lane.connect() as connection:
        await fold_runs(connection, session, [fold(run, 2, changes(run, opened=[opening("1")]))], [])
        many = [NewMessage(run.run_id, f"k{n:03}", "1", b"1") for n in range(MOST_LETTERS + 1)]
        await put_messages(connection, many)
        mail = (await load_mail(connection, [run.run_id]))[run.run_id]
        assert ([m.key for m in mail.letters], mail.more) == ([m.key for m in many[:-1]], True)
        consumed = changes(run, consumed=[m.key for m in mail.letters])
        await fold_runs(connection, session, [fold(run, 3, consumed)], [])
        mail = (await load_mail(connection, [run.run_id]))[run.run_id]
        assert ([m.key for m in mail.letters], mail.more) == ([many[-1].key], False)
        large = b'"' + b"x" * 600_000 + b'"'
        await put_messages(connection, [NewMessage(run.run_id, f"large{n}", "1", large) for n in range(2)])
        mail = (await load_mail(connection, [run.run_id]))[run.run_id]
        assert ([m.key for m in mail.letters], mail.more) == ([many[-1].key, "large0"], True)


async def test_nothing_is_written_when_fenced_or_when_the_row_differs(
    engine: AsyncEngine, lane: AsyncEngine, session: OwnerSession, run: NewRun
) -> None:
    async with lane.connect() as connection:
        await fold_runs(connection, session, [fold(run, 2, changes(run, opened=[opening("1")]))], [])
        await put_messages(connection, [NewMessage(run.run_id, "a", "1", b"1")])
        parts = changes(run, opened=[opening("2")], closed=["1"], consumed=["a"])
        with pytest.raises(DBAPIError):
            await fold_runs(connection, session, [fold(run, 9, parts)], [])
        await end_session(engine, session)
        with pytest.raises(Fenced):
            await fold_runs(connection, session, [fold(run, 3, parts)], [])
        assert await keys(connection, run) == {"1": (False, False)}
        assert await inbox(connection, run) == ["a"]


async def test_a_child_answers_its_parent_in_the_commit_that_ends_it(
    lane: AsyncEngine, session: OwnerSession, run: NewRun, definition: int
) -> None:
    def child(name: str, await_key: str, *, waits: bool = True, tree_runs: int = 100) -> NewRun:
        made = new_run(definition, request_id=name)
        made.parent = Parent(run.run_id, await_key, waits, 1, run.run_id, tree_runs)
        return made

    async with lane.connect() as connection:
        await fold_runs(connection, session, [fold(run, 2, changes(run, opened=[opening("1"), opening("2")]))], [])
        first, second, stray = child("c1", "1"), child("c2", "2", waits=False), child("c3", "9")
        answers = await accept_runs(connection, [first, second, stray, new_run(definition)], session)
        assert answers is not None
        assert [a.created for a in answers] == [True, True, False, True]
        assert answers[2].state == CANCELLED
        again = await accept_runs(connection, [child("c1", "1")], session)
        assert again is not None
        assert (again[0].created, again[0].run_id) == (False, first.run_id)
        foreign = await accept_runs(connection, [child("c1", "1"), child("c9", "9")], None)
        assert foreign is not None
        assert [a.created for a in foreign] == [False, False]
        rows = {r.run_id: r for r in await load_runs(connection, [first.run_id, second.run_id, run.run_id])}
        assert (rows[first.run_id].parent_run_id, rows[first.run_id].parent_key) == (run.run_id, "1")
        assert (rows[second.run_id].parent_run_id, rows[second.run_id].parent_key) == (run.run_id, None)
        assert (rows[run.run_id].has_awaits, rows[first.run_id].has_awaits) == (True, False)
        assert (await read_parents(connection, [run.run_id], 10))[run.run_id].children == 2
        found = await find_children(connection, [("default", "c1"), ("default", "c3")])
        assert {k: c.run_id for k, c in found.items()} == {("default", "c1"): first.run_id}
        answer = ParentMessage(run.run_id, "1", run.group, b'{"state":"succeeded"}')
        ended = fold(first, 2, changes(first, ended=True, parent=answer), SUCCEEDED, ended=True, output=b"1")
        await fold_runs(connection, session, [ended], [])
        assert await inbox(connection, run) == ["run/1"]
        # One whose parent waits no longer tells nobody.
        await fold_runs(connection, session, [fold(run, 3, changes(run, closed=["2"], consumed=["run/1"]))], [])
        late = ParentMessage(run.run_id, "2", run.group, b"{}")
        ended = fold(second, 2, changes(second, parent=late), SUCCEEDED, ended=True, output=b"1")
        await fold_runs(connection, session, [ended], [])
        assert await inbox(connection, run) == []


async def test_a_closing_waits_for_a_start_under_way(
    engine: AsyncEngine, lane: AsyncEngine, session: OwnerSession, run: NewRun, definition: int
) -> None:
    """The child's insert holds its await open: whoever closes it finds the child."""
    async with lane.connect() as connection:
        await fold_runs(connection, session, [fold(run, 2, changes(run, opened=[opening("1")]))], [])
    async with engine.connect() as starting, lane.connect() as closing:
        await starting.execution_options(isolation_level="READ COMMITTED")
        await starting.execute(text("SET idle_in_transaction_session_timeout = 0"))
        made = new_run(definition, request_id="c1")
        made.parent = Parent(run.run_id, "1", True, 1, run.run_id, 100)
        await accept_runs(starting, [made], session)
        await closing.execute(text("SET lock_timeout = '100ms'"))
        with pytest.raises(DBAPIError, match="lock timeout"):
            await fold_runs(closing, session, [fold(run, 3, changes(run, closed=["1"]))], [])
        await starting.commit()
        await fold_runs(closing, session, [fold(run, 3, changes(run, closed=["1"]))], [])
        assert ("default", "c1") in await find_children(closing, [("default", "c1")])


async def test_a_blocked_run_without_a_timer_has_no_wake_time(
    lane: AsyncEngine, session: OwnerSession, run: NewRun
) -> None:
    async with lane.connect() as connection:
        parts = changes(run, opened=[opening("1")])
        await fold_runs(connection, session, [RunFold(run.run_id, 2, 1, WAITING, True, 0, awaits=parts)], [])
        (row,) = await load_runs(connection, [run.run_id])
        assert (row.state, row.wake_at, row.leg_nonce) == (WAITING, None, None)
        assert (await sweep(connection, session, range(GROUPS), 10_000_000, 100)).due == []
        await open_legs(connection, session, [LegOpening(run.run_id, 3, 2, bytes(16), "w", 1)])
        (row,) = await load_runs(connection, [run.run_id])
        assert row.state == RUNNING


async def test_a_tree_takes_no_more_runs_than_it_may(
    engine: AsyncEngine, lane: AsyncEngine, session: OwnerSession, run: NewRun, definition: int
) -> None:
    """Exactly, also when children of one tree are started by several statements at the same moment."""
    opened = [opening(str(n)) for n in range(1, 30)]

    def children(numbers: range, above: bytes, most: int) -> list[NewRun]:
        made = [new_run(definition, request_id=f"{above.hex()}-{n}") for n in numbers]
        for n, child in zip(numbers, made, strict=True):
            child.parent = Parent(above, str(n), True, 1, run.run_id, most)
        return made

    async with lane.connect() as connection:
        await fold_runs(connection, session, [fold(run, 2, changes(run, opened=opened))], [])
        three = children(range(1, 4), run.run_id, 3)
        answers = await accept_runs(connection, [new_run(definition), *three], session)
        assert answers is not None
        assert [(a.created, a.tree_full) for a in answers] == [(True, False)] * 3 + [(False, True)]
        again = await accept_runs(connection, three, session)
        assert again is not None
        assert [(a.created, a.tree_full, a.run_id) for a in again[:2]] == [(True, False, r.run_id) for r in three[:2]]
        assert again[2].tree_full
        # A grandchild belongs to the same tree.
        facts = (await read_parents(connection, [three[0].run_id], 10))[three[0].run_id]
        assert facts.root == run.run_id
        await fold_runs(connection, session, [fold(three[0], 2, changes(three[0], opened=opened))], [])
        below = await accept_runs(connection, children(range(1, 3), three[0].run_id, 4), session)
        assert below is not None
        assert [(a.created, a.tree_full) for a in below] == [(True, False), (False, True)]

    async def at_once(n: int) -> int:
        async with engine.connect() as mine:
            await mine.execution_options(isolation_level="AUTOCOMMIT")
            found = await accept_runs(mine, children(range(n, n + 5), run.run_id, 12), session)
            assert found is not None
            return sum(a.created for a in found)

    assert sum(await asyncio.gather(*(at_once(n) for n in (4, 9, 14, 19)))) == 8  # 4 runs were there
