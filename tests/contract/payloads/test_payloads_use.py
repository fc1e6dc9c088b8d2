"""What keeps a stored value: the runs and the values that name it, and whoever stored it again."""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import Any

import orjson
import pytest
from sqlalchemy import text

from flint_bus.payloads import PayloadMissing, PayloadTooLarge
from flint_core.ids import group_of_run, make_run_id
from flint_core.payloads import MOST_PARTS, Payload, Reference
from flint_store import payloads
from flint_store.accept import NewRun, Parent, accept_runs
from flint_store.await_changes import AwaitChanges, ParentMessage
from flint_store.awaits import NewMessage, put_messages
from flint_store.engine import fetch, write
from flint_store.fold import RunFold, fold_runs
from flint_store.ownership import begin_session, take_groups
from support.record import GROUPS, add_version


def payload_of(data: bytes) -> Payload:
    return Payload(Reference(hashlib.sha256(data).hexdigest(), len(data)), data)


def new_run(definition: int, content: bytes, **changes: Any) -> NewRun:
    run_id = make_run_id(3, 1_795_000_000_000, os.urandom(9))
    group = group_of_run(run_id, GROUPS)
    request_id = changes.pop("request_id", run_id.hex())
    return NewRun(run_id, "default", definition, group, 5, request_id, b"h" * 16, b"t" * 16, content, **changes)


def naming(*named: Payload) -> bytes:
    return orjson.dumps({"all": [payload.reference.to_json() for payload in named]})


async def age(shop: Any) -> None:
    await write(shop.engine, text("UPDATE payload SET touched_at = now() - interval '1 hour' RETURNING 1"), {})


async def uses(shop: Any) -> set[tuple[bytes, bytes]]:
    rows = await fetch(shop.engine, text("SELECT run_id, sha256 FROM payload_use"), {})
    return {(row.run_id.bytes, bytes(row.sha256)) for row in rows}


def digest(payload: Payload) -> bytes:
    return bytes.fromhex(payload.reference.sha256)


@pytest.mark.parametrize("owned", [True, False])
async def test_an_accepted_start_keeps_what_its_input_names(shop, owned):
    definition = await add_version(shop.engine)
    session = await begin_session(shop.engine, "s1", "127.0.0.1:1") if owned else None
    first, second, unused = payload_of(b"1"), payload_of(b"2"), payload_of(b"3")
    for payload in (first, second, unused):
        await shop.client.put("default", payload)
    run = new_run(definition, naming(first, second, first))
    escaped = new_run(definition, naming(second).replace(b"$payload", b"\\u0024p\\u0061yload"))
    repeated = new_run(definition, naming(unused), request_id=run.request_id)
    async with shop.engine.connect() as connection:
        await accept_runs(connection, [run, escaped, new_run(definition, b"{}")], session)
        await accept_runs(connection, [repeated], session)  # what was not stored names nothing
    named = {(run.run_id, digest(first)), (run.run_id, digest(second)), (escaped.run_id, digest(second))}
    assert await uses(shop) == named
    await age(shop)
    assert await shop.desk.drop_unused() == 1
    assert await shop.client.get("default", first.reference) == b"1"


async def test_children_and_messages_keep_what_they_name(shop):
    definition = await add_version(shop.engine)
    session = await begin_session(shop.engine, "s1", "127.0.0.1:1")
    await take_groups(shop.engine, session, range(GROUPS))
    given, told, answered = payload_of(b"given"), payload_of(b"told"), payload_of(b"answered")
    parent = new_run(definition, b"{}")
    child = new_run(definition, naming(given), parent=Parent(parent.run_id, "1", True, 1, parent.run_id, 100))
    async with shop.engine.connect() as connection:
        await accept_runs(connection, [parent], session)
        await connection.execute(
            text(
                "INSERT INTO run_await (run_id, key, kind, group_id, namespace_id, step, iteration, request, opened_at)"
                " SELECT run_id, '1', 3, group_id, namespace_id, '', '', '', now() FROM run"
            )
        )
        await accept_runs(connection, [child], session)
        await put_messages(connection, [NewMessage(parent.run_id, "event", "1", naming(told))])
        told_of_end = AwaitChanges(
            child.run_id,
            child.group,
            "default",
            ended=True,
            parent=ParentMessage(parent.run_id, "1", parent.group, naming(answered)),
        )
        ended = RunFold(child.run_id, 2, 1, 4, leg_closed=False, losses=0, ended=True, awaits=told_of_end)
        await fold_runs(connection, session, [ended], [])
    assert await uses(shop) == {
        (child.run_id, digest(given)),
        (parent.run_id, digest(told)),
        (parent.run_id, digest(answered)),
    }


async def test_what_is_stored_again_is_fresh(shop):
    payload = payload_of(b"again")
    await shop.client.put("default", payload)
    await age(shop)
    await shop.client.put("default", payload)
    assert await shop.desk.drop_unused() == 0
    await age(shop)
    assert await shop.client.get("default", payload.reference) == b"again"  # a reader renews nothing
    assert await shop.desk.drop_unused() == 1
    await shop.client.put("default", payload)
    assert await shop.client.get("default", payload.reference) == b"again"


async def test_a_value_keeps_what_it_names(shop):
    inner = payload_of(b"inner")
    middle = payload_of(naming(inner))
    outer = payload_of(naming(middle, inner))
    for payload in (inner, middle, outer):
        await shop.client.put("default", payload)
    run = os.urandom(16)
    await shop.client.use("default", outer.reference, run)
    await age(shop)
    assert await shop.desk.drop_unused() == 0
    await write(shop.engine, text("DELETE FROM payload_use RETURNING 1"), {})
    for expected in (outer, middle, inner):  # one after another
        with pytest.raises(PayloadMissing):
            assert await shop.client.get("default", expected.reference) == expected.data
            assert await payloads.drop_unused(shop.engine, 60, 1)
            await shop.client.get("default", expected.reference)


async def test_a_value_with_too_many_references_is_refused(shop):
    many = [Reference(f"{number:064x}", 1).to_json() for number in range(MOST_PARTS + 1)]
    with pytest.raises(PayloadTooLarge):
        await shop.client.put("default", payload_of(orjson.dumps(many)))


async def test_a_drop_waits_for_whoever_renews(shop):
    payload = payload_of(b"raced")
    await shop.client.put("default", payload)
    await age(shop)
    async with shop.engine.connect() as raw:
        connection = await raw.execution_options(isolation_level="READ COMMITTED")
        await connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        await connection.execute(payloads.RENEW, {"namespace": "default", "sha256": digest(payload)})
        dropping = asyncio.create_task(shop.desk.drop_unused())
        waiting = text("SELECT count(*) AS n FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        while not (await fetch(shop.engine, waiting, {}))[0].n:
            assert not dropping.done()
        await connection.commit()
    assert await dropping == 0
    assert await shop.client.get("default", payload.reference) == b"raced"
