"""Retention on a real PostgreSQL: what is old goes with all that is its own, what anything needs stays."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_core.ids import run_id_text
from flint_ops.config import PostgresSettings, RetentionSettings
from flint_scheduler.clock import RecordClock
from flint_scheduler.holdings import GroupHolding, Holdings
from flint_scheduler.record import Record, RecordUnavailable
from flint_scheduler.retention import Retention
from flint_store import payloads, retention
from flint_store.commands import Verb, lock_runs, put_commands
from flint_store.engine import create_engine, transaction
from flint_store.fence import Fenced, OwnerSession
from flint_store.ownership import begin_session, take_groups
from support.record import FAILED, GROUPS, RUNNING, SUCCEEDED, WAITING, add_entries, add_runs, add_version, moment

KEEP_S = 30 * 86_400
ENDED = (4, 5, 6)


def ago(days: float) -> int:
    return int((time.time() - days * 86_400) * 1000)


def ended(days: float, **more: Any) -> dict[str, Any]:
    """A run that was created and ended so many days ago."""
    return {"at_ms": ago(days), "state": SUCCEEDED, "ended_at": moment(ago(days)), **more}


@dataclass
class Owner:
    """A scheduler's part that deletes, owning all groups."""

    engine: AsyncEngine
    record: Record
    holdings: Holdings
    session: OwnerSession
    days: dict[str, int] = field(default_factory=dict)

    def retention(self, **settings: Any) -> Retention:
        values = {"keep_s": KEEP_S, "runs_per_s": 100_000.0} | settings
        clock = RecordClock()
        days = self.days
        return Retention(
            self.record, self.holdings, clock, RetentionSettings(**values), lambda namespace: days.get(namespace, 0)
        )

    async def sweep(self, **settings: Any) -> int:
        return await self.retention(**settings).sweep()


@pytest.fixture
async def owner(dsn: str, engine: AsyncEngine) -> AsyncIterator[Owner]:
    settings = PostgresSettings(dsn=SecretStr(dsn))
    record = Record(create_engine(settings, "lane", pool_size=2), create_engine(settings, "reading", pool_size=3), 20.0)
    session = await begin_session(engine, "s1", "127.0.0.1:1")
    holdings = Holdings(GROUPS)
    holdings.session = session
    for term in await take_groups(engine, session, range(GROUPS)):
        holdings.groups[term.group] = GroupHolding(term.group, term.term, 0, 0, settled=True)
    yield Owner(engine, record, holdings, session)
    await record.close()


async def execute(engine: AsyncEngine, statement: str, **parameters: Any) -> None:
    async with engine.connect() as connection:
        await connection.execute(text(statement), parameters)


async def column(engine: AsyncEngine, statement: str, **parameters: Any) -> list[Any]:
    async with engine.connect() as connection:
        return list((await connection.execute(text(statement), parameters)).scalars())


async def there(engine: AsyncEngine) -> set[bytes]:
    return {run_id.bytes for run_id in await column(engine, "SELECT run_id FROM run")}


async def store_payload(engine: AsyncEngine, data: bytes, *run_ids: bytes) -> bytes:
    """A payload in one chunk that these runs use, stored 40 days ago."""
    digest = sha256(data).digest()
    await payloads.put_chunk(engine, "default", digest, 0, data)
    for run_id in run_ids:
        await payloads.finish(
            engine, "default", digest, size=len(data), chunks=1, location="postgres", run_id=run_id, parts=()
        )
    await execute(engine, "UPDATE payload SET touched_at = now() - interval '40 days' WHERE sha256 = :s", s=digest)
    return digest


async def test_all_that_is_a_runs_own_goes_and_the_rest_stays(owner: Owner, engine: AsyncEngine) -> None:
    definition = await add_version(engine)
    old, young, sleeping = await add_runs(
        engine,
        [
            ended(31, definition_id=definition, request_id="once"),
            ended(29, definition_id=definition),
            {"at_ms": ago(400), "state": WAITING, "definition_id": definition},
        ],
    )
    for run_id in (old, young, sleeping):
        await add_entries(engine, run_id, [{}, {}, {}])
        await execute(
            engine,
            "INSERT INTO run_signal (run_id, signal_id, group_id, name, event) VALUES (:r, 's', 1, 'n', '')",
            r=UUID(bytes=run_id),
        )
        await execute(
            engine,
            "INSERT INTO command_request (run_id, request_id, digest) VALUES (:r, 'c', '')",
            r=UUID(bytes=run_id),
        )
        await execute(
            engine,
            "INSERT INTO approval (run_id, key, namespace_id, workflow_id, version, step, iteration, state)"
            " VALUES (:r, 'k', 'default', 'orders', '1.0.0', '/do/0/a', '', 2)",
            r=UUID(bytes=run_id),
        )
    own = await store_payload(engine, b"its own", old)
    shared = await store_payload(engine, b"shared", old, young)
    for number in range(3):  # what belongs to no run
        session = await begin_session(engine, "s2", "127.0.0.1:2")
        if number:
            await execute(
                engine,
                "UPDATE owner_session SET ended_at = now() - interval '80 days' WHERE session_id = :s",
                s=session.session_id,
            )
    await execute(
        engine,
        "INSERT INTO worker (incarnation, worker_id, pool, region, card, state, registered_at, ended_at) VALUES"
        " ('w1', 'w', 'default', 'local', '', 4, now() - interval '50 days', now() - interval '40 days'),"
        " ('w2', 'w', 'default', 'local', '', 4, now() - interval '50 days', now() - interval '2 days'),"
        " ('w3', 'w', 'default', 'local', '', 1, now() - interval '50 days', NULL)",
    )
    await execute(
        engine,
        "INSERT INTO batch_job (batch_id, namespace_id, group_id, action, filter, state, bound, ended_at)"
        " SELECT gen_random_uuid(), 'default', 3, '', '', s, gen_random_uuid(), e FROM (VALUES"
        " (2, now() - interval '40 days'), (2, now() - interval '1 day'), (1, NULL)) AS j(s, e)",
    )

    assert await owner.sweep() == 1
    assert await there(engine) == {young, sleeping}
    for table in ("run_entry", "run_signal", "command_request", "approval", "payload_use"):
        assert set(await column(engine, f"SELECT run_id FROM {table}")) <= {UUID(bytes=young), UUID(bytes=sleeping)}, (
            table
        )
    assert len(await column(engine, "SELECT 1 FROM run_entry")) == 6
    assert await column(engine, "SELECT incarnation FROM worker ORDER BY 1") == ["w2", "w3"]
    assert len(await column(engine, "SELECT 1 FROM batch_job")) == 2
    assert len(await column(engine, "SELECT 1 FROM owner_session WHERE scheduler_id = 's2'")) == 1
    assert await column(engine, "SELECT runs FROM retention_tally WHERE namespace_id = 'default'") == [1]
    assert len(await column(engine, "SELECT 1 FROM retention_pass")) == GROUPS

    # What nobody uses has its day of grace from now on; then it goes, and what is shared stays.
    assert await payloads.drop_unused(engine, 86_400, 10) == []
    await execute(engine, "UPDATE payload SET touched_at = touched_at - interval '2 days'")
    assert [row[1] for row in await payloads.drop_unused(engine, 86_400, 10)] == [own]
    assert await payloads.find(engine, "default", shared) is not None
    assert await payloads.get_chunk(engine, "default", own, 0) is None

    found = await retention.read_summary(engine, "default", 10)
    assert found is not None and found.runs == 1 and found.records == 9
    assert found.passed_at is not None and found.deleted_at is not None
    # The request id is free again: its run is gone.
    await add_runs(engine, [{"definition_id": definition, "request_id": "once"}])
    assert await owner.sweep() == 0


async def test_the_word_of_the_workflow_counts_first(owner: Owner, engine: AsyncEngine) -> None:
    plain = await add_version(engine, "plain")
    brief = await add_version(engine, "brief")
    kept = await add_version(engine, "kept")
    await execute(engine, "UPDATE workflow_version SET retention_s = 3600 WHERE definition_id = :d", d=brief)
    await execute(engine, "UPDATE workflow_version SET retention_s = 0 WHERE definition_id = :d", d=kept)
    runs = await add_runs(
        engine,
        [
            ended(50, definition_id=plain),
            ended(10, definition_id=plain),
            ended(1, definition_id=brief),
            ended(900, definition_id=kept),
        ],
    )
    owner.days["default"] = -1
    assert await owner.sweep() == 1 and await there(engine) == {runs[0], runs[1], runs[3]}
    owner.days["default"] = 0
    assert await owner.sweep(keep_s=0) == 0
    assert await owner.sweep() == 1 and await there(engine) == {runs[1], runs[3]}
    owner.days["default"] = 5
    assert await owner.sweep() == 1 and await there(engine) == {runs[3]}
    found = await retention.read_summary(engine, "default", 10)
    assert found is not None
    assert {w.workflow_id: w.retention_s for w in found.workflows} == {"brief": 3600, "kept": 0}


async def test_a_deposed_owner_deletes_nothing(owner: Owner, engine: AsyncEngine) -> None:
    definition = await add_version(engine)
    runs = await add_runs(engine, [ended(40, definition_id=definition) for _ in range(3)])
    heir = await begin_session(engine, "s2", "127.0.0.1:2")
    await take_groups(engine, heir, range(GROUPS))
    with pytest.raises(Fenced):
        await owner.sweep()
    with pytest.raises(Fenced):
        await retention.delete_unowned(engine, owner.session, [0], 1, 10)
    assert await there(engine) == set(runs)
    owner.holdings.session = heir
    assert await owner.sweep() == 3


async def test_who_gives_a_command_comes_first_or_finds_nothing(owner: Owner, engine: AsyncEngine) -> None:
    definition = await add_version(engine)
    run_id, other = await add_runs(engine, [ended(40, definition_id=definition, state=FAILED) for _ in range(2)])
    async with transaction(engine) as connection:
        await connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        facts = await lock_runs(connection, "default", [run_id])
        assert run_id in facts
        assert await owner.sweep() == 1, "the run that somebody holds is passed over"
        await put_commands(connection, facts, Verb.RESET, {run_id: b'{"kept": 0}'})
    assert await there(engine) == {run_id}
    assert await owner.sweep() == 0, "a run that is to be taken back was deleted"
    await execute(engine, "DELETE FROM inbox")
    assert await owner.sweep() == 1
    async with transaction(engine) as connection:
        assert await lock_runs(connection, "default", [run_id, other]) == {}


async def test_whoever_dies_amid_it_leaves_whole_runs(owner: Owner, engine: AsyncEngine) -> None:
    """Connections are cut and sweeps cancelled at any moment: no run is ever there in part, and all go in the end."""
    definition = await add_version(engine)
    runs = await add_runs(engine, [ended(40, definition_id=definition) for _ in range(150)])
    for run_id in runs:
        await add_entries(engine, run_id, [{}, {}, {}])
        await execute(
            engine,
            "INSERT INTO payload_use (run_id, namespace_id, sha256) VALUES (:r, 'default', :s)",
            r=UUID(bytes=run_id),
            s=run_id,
        )
    cut = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xid IS NOT NULL
    """
    seed = int.from_bytes(os.urandom(4), "big")
    chance = random.Random(seed)
    for attempt in range(60):
        task = asyncio.create_task(owner.sweep(batch_runs=7))
        for _ in range(chance.randrange(80)):
            await asyncio.sleep(0)
        if attempt % 2:
            await execute(engine, cut)
        task.cancel()
        outcome = (await asyncio.gather(task, return_exceptions=True))[0]
        assert isinstance(outcome, int | asyncio.CancelledError | RecordUnavailable), (seed, outcome)
        parts = await column(
            engine,
            "SELECT count(*) FROM run_entry GROUP BY run_id HAVING count(*) <> 3"
            " UNION ALL SELECT 1 FROM run_entry e WHERE NOT EXISTS (SELECT FROM run r WHERE r.run_id = e.run_id)"
            " UNION ALL SELECT 1 FROM run r WHERE NOT EXISTS (SELECT FROM run_entry e WHERE e.run_id = r.run_id)"
            " UNION ALL SELECT 1 FROM run r WHERE NOT EXISTS (SELECT FROM payload_use u WHERE u.run_id = r.run_id)",
        )
        assert parts == [], f"seed {seed}"
    async with asyncio.timeout(60):
        while await there(engine):
            with suppress(RecordUnavailable):  # a connection that was cut is found dead when it is used next
                await owner.sweep()
    # The tally is changed by the commits that delete: exact, whatever was cut off.
    assert await column(engine, "SELECT runs FROM retention_tally WHERE namespace_id = 'default'") == [150]
    assert await column(engine, "SELECT records FROM retention_tally WHERE namespace_id = 'default'") == [750]


async def test_a_payload_that_is_named_again_meanwhile_is_not_lost(owner: Owner, engine: AsyncEngine) -> None:
    """Deleting the last run that used it, dropping it, and a start that names it again, all at the same time."""
    definition = await add_version(engine)
    for number in range(30):
        (old,) = await add_runs(engine, [ended(40, definition_id=definition)])
        digest = await store_payload(engine, b"value %d" % number, old)
        (fresh,) = await add_runs(engine, [{"definition_id": definition, "state": RUNNING}])

        async def name_it(digest: bytes = digest, fresh: bytes = fresh) -> bool:
            if await payloads.renew(engine, "default", digest) is None:
                return False
            await payloads.use(engine, "default", digest, fresh)
            return True

        async def drop() -> None:
            await payloads.drop_unused(engine, 3600, 10)

        _, named, _ = await asyncio.gather(owner.sweep(), name_it(), drop())
        await drop()
        row = await payloads.find(engine, "default", digest)
        chunk = await payloads.get_chunk(engine, "default", digest, 0)
        assert (row is not None) == (chunk is not None)
        assert named and row is not None, "a value that a run was told to be there is gone"


@dataclass
class World:
    """Random runs, and by an oracle of its own which of them something needs."""

    chance: random.Random
    rows: list[dict[str, Any]] = field(default_factory=list)
    needed: set[int] = field(default_factory=set)

    def tree(self) -> list[int]:
        """A tree of runs; each has ended or not, long ago or lately."""
        members: list[int] = []
        for _ in range(self.chance.choice([1, 1, 1, 2, 4, 7])):
            parent = self.chance.choice(members) if members else None
            days = self.chance.choice([1, 45, 60])
            state = self.chance.choice([SUCCEEDED, SUCCEEDED, SUCCEEDED, FAILED, FAILED, WAITING, 7])
            row: dict[str, Any] = {"at_ms": ago(70), "state": state, "parent": parent, "days": days}
            row["root"] = members[0] if members else None
            if state in ENDED:
                row["ended_at"] = moment(ago(days))
            members.append(len(self.rows))
            self.rows.append(row)
        return members

    def judge(self, members: list[int], asked: set[int], inboxes: set[int]) -> None:
        """A tree stays for a run that has not ended, a young root, a root that is asked for something; a run by itself
        while it is young, or while something names it.
        """
        rows = self.rows
        unfinished = any(rows[m]["state"] not in ENDED for m in members)
        busy = unfinished or rows[members[0]]["days"] < 30 or members[0] in inboxes
        for member in members:
            if busy or rows[member]["days"] < 30 or member in asked:
                self.needed.add(member)


@pytest.mark.parametrize("round_", range(4))
async def test_nothing_that_is_needed_is_ever_deleted(owner: Owner, engine: AsyncEngine, round_: int) -> None:
    seed = int.from_bytes(os.urandom(4), "big") * 4 + round_
    print(f"seed {seed}")
    world = World(random.Random(seed))
    definition = await add_version(engine)
    trees = [world.tree() for _ in range(40)]
    ids = await add_runs(
        engine,
        [
            {k: v for k, v in row.items() if k not in ("parent", "root", "days")} | {"definition_id": definition}
            for row in world.rows
        ],
    )
    schedule = uuid4()
    asked: set[int] = set()
    inboxes: set[int] = set()
    async with engine.connect() as connection:

        async def put(statement: str, member: int, **more: Any) -> None:
            await connection.execute(text(statement), {"r": UUID(bytes=ids[member])} | more)

        for member, row in enumerate(world.rows):
            if row["parent"] is not None:
                await put(
                    "UPDATE run SET parent_run_id = :p, root_run_id = :t WHERE run_id = :r",
                    member,
                    p=UUID(bytes=ids[row["parent"]]),
                    t=UUID(bytes=ids[row["root"]]),
                )
            if world.chance.random() < 0.3:
                kind = world.chance.choice(["inbox", "await", "permit", "schedule", "backfill", "failure", "time"])
                if kind in ("inbox", "await", "permit") or row["state"] in ENDED:
                    asked.add(member)
                if kind == "inbox":
                    inboxes.add(member)
                    await put(
                        "INSERT INTO inbox (run_id, key, group_id, kind) VALUES (:r, 'reset/1', 1, 'reset')", member
                    )
                elif kind == "await":
                    await put(
                        "INSERT INTO run_await (run_id, key, kind, group_id, namespace_id, step, iteration, request,"
                        " opened_at, closed) VALUES (:r, 'a', 1, 1, 'default', '', '', '', now(), true)",
                        member,
                    )
                elif kind == "permit":
                    await put(
                        "INSERT INTO permit VALUES ('default', 1, 'k', :r, 1, now(), 'w1', gen_random_uuid())", member
                    )
                elif kind == "schedule":
                    await put(
                        "INSERT INTO schedule (schedule_id, namespace_id, workflow_id, definition_id, group_id, kind,"
                        " since, last_run_id) VALUES (gen_random_uuid(), 'default', :w, 0, 1, 'after', now(), :r)",
                        member,
                        w=f"@s{member}",
                    )
                elif kind == "failure":
                    await put(
                        "INSERT INTO workflow_failure VALUES ('default', 'orders', :r, 2, now())",
                        member,
                    )
                elif kind == "backfill":
                    await put(
                        "INSERT INTO schedule_backfill (backfill_id, schedule_id, namespace_id, group_id, request_id,"
                        " from_at, until_at, concurrency, total, running, created_at, created_by) VALUES"
                        " (gen_random_uuid(), gen_random_uuid(), 'default', 1, '', now(), now(), 1, 1, ARRAY[:r],"
                        " now(), 'k')",
                        member,
                    )
                else:
                    await put(
                        "UPDATE run SET request_id = :q WHERE run_id = :r",
                        member,
                        q=f"~schedule/cron/{schedule}/{member}",
                    )
        await connection.execute(
            text(
                "INSERT INTO schedule_backfill (backfill_id, schedule_id, namespace_id, group_id, request_id, from_at,"
                " until_at, concurrency, total, created_at, created_by)"
                " VALUES (gen_random_uuid(), :s, 'default', 1, 'b', now(), now(), 1, 1, now(), 'k')"
            ),
            {"s": schedule},
        )
    for members in trees:
        world.judge(members, asked, inboxes)
    await owner.sweep(batch_runs=9)
    await owner.sweep()
    left = await there(engine)
    needed = {ids[m] for m in world.needed}
    assert needed <= left, f"seed {seed}: {[run_id_text(r) for r in needed - left]} were needed"
    assert left <= needed, f"seed {seed}: {[run_id_text(r) for r in left - needed]} are needed by nobody"


async def test_strays_in_the_inbox_go(owner: Owner, engine: AsyncEngine) -> None:
    """A message for a run that was deleted before it came; one for a schedule stays."""
    schedule = uuid4()
    await execute(
        engine,
        "INSERT INTO schedule (schedule_id, namespace_id, workflow_id, definition_id, group_id, kind, since)"
        " VALUES (:s, 'default', '@s', 0, 1, 'on', now())",
        s=schedule,
    )
    for run_id in (uuid4(), schedule):
        await execute(
            engine,
            "INSERT INTO inbox (run_id, key, group_id, kind, created_at) VALUES (:r, 'k', 1, 'message',"
            " now() - interval '2 hours')",
            r=run_id,
        )
    await owner.sweep()
    assert await column(engine, "SELECT run_id FROM inbox") == [schedule]
