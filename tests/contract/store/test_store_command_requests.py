"""Request ids of commands on a real PostgreSQL: who claims one, who waits for whom, what is remembered for how long."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_store.command_requests import (
    DoneBefore,
    claim_requests,
    delete_old_requests,
    drop_requests,
    note_kept,
)
from flint_store.engine import transaction
from flint_store.fence import Fenced
from flint_store.ownership import begin_session
from support.stack import eventually

RUNS = [UUID(int=number).bytes for number in (3, 1, 2)]


async def claim(engine: AsyncEngine, request_id: str, digest: bytes = b"d") -> dict[bytes, DoneBefore]:
    async with transaction(engine) as connection:
        return await claim_requests(connection, RUNS, request_id, digest)


async def somebody_waits(engine: AsyncEngine) -> bool:
    async with engine.connect() as connection:
        waiting = await connection.execute(
            text(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
        )
        return bool(waiting.scalar_one())


@pytest.mark.parametrize("commits", [True, False])
async def test_a_second_call_waits_for_the_first(engine: AsyncEngine, commits: bool) -> None:
    async with engine.connect() as first:
        await first.execution_options(isolation_level="READ COMMITTED")
        begun = await first.begin()
        await first.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))  # the test may be slow
        await first.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        assert await claim_requests(first, RUNS, "r", b"d") == {}
        await note_kept(first, "r", {RUNS[0]: 7})
        await drop_requests(first, [RUNS[2]], "r")  # this run refused it
        async with asyncio.TaskGroup() as group:
            second = group.create_task(claim(engine, "r"))
            await eventually(lambda: somebody_waits(engine))
            await (begun.commit() if commits else begun.rollback())
    if commits:
        assert second.result() == {RUNS[0]: DoneBefore(True, 7), RUNS[1]: DoneBefore(True, 0)}
    else:
        assert second.result() == {}
    # By now all three have it, whoever claimed them; another content is told apart.
    assert await claim(engine, "r") == {run: DoneBefore(True, 7 * (commits and run == RUNS[0])) for run in RUNS}
    assert not any(done.same for done in (await claim(engine, "r", b"other")).values())
    assert await claim(engine, "another") == {}


async def test_what_is_old_goes_and_only_by_an_owner(engine: AsyncEngine) -> None:
    for number in range(4):
        await claim(engine, f"r{number}")
    async with transaction(engine) as connection:
        await connection.execute(
            text("UPDATE command_request SET created_at = now() - interval '8 days' WHERE request_id IN ('r0', 'r1')")
        )
    session = await begin_session(engine, "s1", "127.0.0.1:1")
    week_s = 7 * 86_400.0
    assert [await delete_old_requests(engine, session, week_s, 4) for _ in range(3)] == [4, 2, 0]
    assert await claim(engine, "r0") == {} and len(await claim(engine, "r2")) == 3
    async with transaction(engine) as connection:
        await connection.execute(text("UPDATE owner_session SET ended_at = now()"))
    with pytest.raises(Fenced):
        await delete_old_requests(engine, session, 0.0, 100)
    assert len(await claim(engine, "r3")) == 3


async def test_the_old_ones_are_found_by_an_index(engine: AsyncEngine) -> None:
    async with transaction(engine) as connection:
        await connection.execute(
            text(
                "INSERT INTO command_request (run_id, request_id, digest)"
                " SELECT gen_random_uuid(), 'r', 'd' FROM generate_series(1, 20000)"
            )
        )
        await connection.execute(
            text("INSERT INTO command_request (run_id, request_id, digest) VALUES (:r, 'r', 'd')"), {"r": uuid4()}
        )
    async with engine.connect() as connection:
        await connection.execute(text("ANALYZE command_request"))
        plan = await connection.execute(
            text(
                "EXPLAIN SELECT run_id FROM command_request"
                " WHERE created_at < clock_timestamp() - make_interval(secs => 604800) ORDER BY created_at LIMIT 500"
            )
        )
        assert "command_request_old" in "\n".join(plan.scalars())
