"""Approvals in a real PostgreSQL: shown while the await is open, decided once, escalated once, closed with the run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_contracts.gen.flint.approvals.v1 import approvals_pb2
from flint_ops.config import PostgresSettings
from flint_scheduler.record import Record
from flint_store import approvals as store
from flint_store.awaits import AwaitRow, read_unserved
from flint_store.engine import create_engine
from support.record import WAITING, add_runs, add_version

STATE = approvals_pb2.Approval
ESCALATED = "dev.flint.approval.escalated"


@pytest.fixture
async def record(dsn: str) -> AsyncIterator[Record]:
    postgres = PostgresSettings(dsn=dsn)  # type: ignore[arg-type]
    made = Record(create_engine(postgres, "lane", pool_size=4), create_engine(postgres, "reading"), 10.0)
    yield made
    await made.close()


async def await_row(engine: AsyncEngine, key: str = "4") -> AwaitRow:
    """A waiting run with an open await of kind APPROVAL, as the fold writes it."""
    definition = await add_version(engine)
    (run_id,) = await add_runs(engine, [{"definition_id": definition, "state": WAITING}])
    async with engine.connect() as connection:
        await connection.execute(
            text(
                "INSERT INTO run_await (run_id, key, kind, group_id, namespace_id, step, iteration, request, opened_at)"
                " SELECT run_id, :key, 2, group_id, namespace_id, '/do/0/ask', '', '{}', now() FROM run"
                " WHERE run_id = :run_id"
            ),
            {"key": key, "run_id": UUID(bytes=run_id)},
        )
        (row,) = await read_unserved(connection, [run_id], 10)
        return row


def new(row: AwaitRow, **more: Any) -> store.NewApproval:
    fields: dict[str, Any] = {
        "title": "Pay?",
        "description": 'quotes " and \\ and {braces}, ünïcode',
        "assignees": ["ann", 'b"ob, jr'],
        "form": b'{"type":"object"}',
        "deadline": None,
        "escalate_at": None,
        "escalate_to": [],
    }
    return store.NewApproval(row=row, **(fields | more))


def decision(row: AwaitRow, approved: bool = True, by: str = "ann") -> store.NewDecision:
    return store.NewDecision(
        namespace="default",
        run_id=row.run_id,
        key=row.key,
        approved=approved,
        decided_by=by,
        decided_key="namespaces/default/keys/abcd",
        comment="",
        fields=b'{"a":1}',
        payload=b'{"decision":"approved"}',
    )


async def inbox(engine: AsyncEngine) -> list[tuple[str, str]]:
    async with engine.connect() as connection:
        return [(r.key, r.await_key) for r in await connection.execute(text("SELECT key, await_key FROM inbox"))]


async def test_shown_once_decided_once(record: Record, engine: AsyncEngine) -> None:
    row = await await_row(engine)
    for _ in range(2):
        await record.lane("x", lambda c: store.open_approvals(c, [new(row)]))
    shown = await store.read_approval(engine, "default", row.run_id, row.key)
    assert shown is not None
    assert (shown.state, shown.title, list(shown.assignees)) == (STATE.STATE_OPEN, "Pay?", ["ann", 'b"ob, jr'])
    assert shown.description == 'quotes " and \\ and {braces}, ünïcode'
    assert (shown.form, shown.step) == (b'{"type":"object"}', "/do/0/ask")
    assert shown.workflow == "namespaces/default/workflows/orders/versions/1.0.0"
    assert await store.read_approval(engine, "other", row.run_id, row.key) is None
    first = await record.lane("x", lambda c: store.decide(c, decision(row)))
    assert (first.stored, first.open) == (True, True)
    assert first.target is not None and first.target.run_id == row.run_id
    second = await record.lane("x", lambda c: store.decide(c, decision(row, approved=False, by="bob")))
    assert not second.stored
    decided = await store.read_approval(engine, "default", row.run_id, row.key)
    assert decided is not None and decided.state == STATE.STATE_APPROVED
    assert (decided.decision.approved, decided.decision.decided_by, decided.decision.fields) == (
        True,
        "ann",
        b'{"a":1}',
    )
    assert await inbox(engine) == [("approval/4", "4")]
    await record.lane("x", lambda c: store.close_approvals(c, [row]))
    kept = await store.read_approval(engine, "default", row.run_id, row.key)
    assert kept is not None and kept.state == STATE.STATE_APPROVED


async def test_a_run_that_waits_no_more_takes_no_decision(record: Record, engine: AsyncEngine) -> None:
    row = await await_row(engine)
    await record.lane("x", lambda c: store.open_approvals(c, [new(row)]))
    async with engine.connect() as connection:
        await connection.execute(text("UPDATE run_await SET closed = true"))
    late = await record.lane("x", lambda c: store.decide(c, decision(row)))
    assert (late.stored, late.open) == (False, False)
    assert await inbox(engine) == []
    await record.lane("x", lambda c: store.close_approvals(c, [row]))
    closed = await store.read_approval(engine, "default", row.run_id, row.key)
    assert closed is not None and closed.state == STATE.STATE_CLOSED
    await record.lane("x", lambda c: store.open_approvals(c, [new(row)]))  # served late, by another scheduler
    assert len(await store.list_approvals(engine, "default", limit=10)) == 1


async def test_escalated_once_with_its_event(record: Record, engine: AsyncEngine) -> None:
    due = datetime.now(UTC) - timedelta(seconds=1)
    row, later = await await_row(engine), await await_row(engine, "5")
    await record.lane(
        "x",
        lambda c: store.open_approvals(
            c,
            [
                new(row, escalate_at=due, escalate_to=["boss", "ann"]),
                new(later, escalate_at=due + timedelta(hours=1), escalate_to=["boss"]),
            ],
        ),
    )
    (told,) = await record.lane("x", lambda c: store.escalate(c, ESCALATED, 100))
    event = orjson.loads(told.content)
    assert (event["type"], event["source"]) == (ESCALATED, "/namespaces/default/workflows/orders")
    assert event["data"]["assignees"] == ["ann", 'b"ob, jr', "boss"]
    assert event["data"]["escalatedTo"] == ["boss", "ann"]
    assert event["time"].endswith("Z")
    assert await record.lane("x", lambda c: store.escalate(c, ESCALATED, 100)) == []
    found = await store.read_approval(engine, "default", row.run_id, row.key)
    assert found is not None and found.HasField("escalated_time")
    assert list(found.assignees) == ["ann", 'b"ob, jr', "boss"]


async def test_lists_filter_and_page(record: Record, engine: AsyncEngine) -> None:
    rows = [await await_row(engine, str(n)) for n in range(6)]
    for number, row in enumerate(rows):
        people = ["ann"] if number % 2 else ["bob"]
        await record.lane("x", lambda c, r=row, p=people: store.open_approvals(c, [new(r, assignees=p)]))  # type: ignore[misc]
    await record.lane("x", lambda c: store.decide(c, decision(rows[5])))

    async def keys(**filters: Any) -> list[str]:
        page = await store.list_approvals(engine, "default", limit=10, **filters)
        return [a.name.rpartition("/")[2] for _, a in page]

    assert await keys() == ["5", "4", "3", "2", "1", "0"]
    assert await keys(states=[STATE.STATE_OPEN], assignee="ann") == ["3", "1"]
    assert await keys(states=[STATE.STATE_APPROVED, STATE.STATE_REJECTED]) == ["5"]
    assert await keys(workflow_id="none") == []
    first = await store.list_approvals(engine, "default", limit=4)
    rest = await store.list_approvals(engine, "default", limit=4, before=first[-1][0])
    assert [a.name.rpartition("/")[2] for _, a in rest] == ["1", "0"]
