"""Calendars: named lists of rules whose times do not count. A schedule reads them when a time has come.

A calendar cannot go while a schedule in force names it: whoever deletes one, and whoever stores a schedule, holds the
namespace's row.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from flint_contracts.gen.flint.schedules.v1 import schedules_pb2
from flint_contracts.schedules import rule_message
from flint_core.calendars import Calendar
from flint_store.arrays import texts
from flint_store.engine import fetch, transaction, write
from flint_store.errors import CalendarInUse, NamespaceNotFound, ScheduleNotFound
from flint_store.timestamps import set_timestamp

__all__ = ["HOLD_NAMESPACE", "calendar_rules", "delete_calendar", "list_calendars", "put_calendar", "read_calendars"]

# Primary key. What changes schedules of a namespace takes turns on it.
HOLD_NAMESPACE = text("SELECT 1 FROM namespace WHERE namespace_id = :namespace FOR UPDATE")

PUT = text("""
INSERT INTO schedule_calendar (namespace_id, calendar_id, description, rules, updated_at)
SELECT n.namespace_id, :calendar, :description, :rules, clock_timestamp()
FROM namespace n WHERE n.namespace_id = :namespace
ON CONFLICT (namespace_id, calendar_id)
DO UPDATE SET description = excluded.description, rules = excluded.rules, updated_at = excluded.updated_at
RETURNING updated_at
""")

# Primary key.
LIST = text("""
SELECT calendar_id, description, ''::bytea AS rules, updated_at FROM schedule_calendar
WHERE namespace_id = :namespace AND calendar_id > :after ORDER BY calendar_id LIMIT :limit
""")
READ = text("""
SELECT c.namespace_id, c.calendar_id, c.description, c.rules, c.updated_at
FROM unnest(CAST(:namespaces AS text[]), CAST(:calendars AS text[])) AS u(namespace_id, calendar_id)
JOIN schedule_calendar c ON c.namespace_id = u.namespace_id AND c.calendar_id = u.calendar_id
""")

# The namespace's schedules, by the unique index; few name a calendar, and deletes are rare.
DELETE = text("""
WITH used AS (
    SELECT s.workflow_id FROM schedule s
    WHERE s.namespace_id = :namespace AND CAST(:calendar AS text) = ANY(s.calendars) LIMIT 1),
gone AS (
    DELETE FROM schedule_calendar
    WHERE namespace_id = :namespace AND calendar_id = :calendar AND NOT EXISTS (SELECT FROM used)
    RETURNING 1)
SELECT (SELECT workflow_id FROM used) AS used, (SELECT count(*) FROM gone) AS gone
""")


async def put_calendar(engine: AsyncEngine, namespace: str, calendar: str, description: str, rules: bytes) -> None:
    """Store a calendar, also over another. Raises `NamespaceNotFound`, `StoreUnavailable`."""
    parameters = {"namespace": namespace, "calendar": calendar, "description": description, "rules": rules}
    if not await write(engine, PUT, parameters):
        raise NamespaceNotFound(f"there is no namespace {namespace!r}")


async def list_calendars(
    engine: AsyncEngine, namespace: str, *, after: str, limit: int
) -> list[schedules_pb2.Calendar]:
    """By id, without rules. Raises `StoreUnavailable`."""
    rows = await fetch(engine, LIST, {"namespace": namespace, "after": after, "limit": limit})
    return [_message(namespace, *row) for row in rows]


async def read_calendars(engine: AsyncEngine, namespace: str, names: Iterable[str]) -> list[schedules_pb2.Calendar]:
    """Those that are there, with rules. Raises `StoreUnavailable`."""
    wanted = list(names)
    rows = await fetch(engine, READ, {"namespaces": texts([namespace] * len(wanted)), "calendars": texts(wanted)})
    return [_message(*row) for row in rows]


async def calendar_rules(
    connection: AsyncConnection, names: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], Calendar]:
    """The calendars with these (namespace, name), as far as they are there."""
    wanted = list(names)
    asked = {"namespaces": texts([n for n, _ in wanted]), "calendars": texts([c for _, c in wanted])}
    rows = await connection.execute(READ, asked)
    return {(r.namespace_id, r.calendar_id): Calendar(orjson.loads(r.rules)) for r in rows}


async def delete_calendar(engine: AsyncEngine, namespace: str, calendar: str) -> None:
    """Raises `CalendarInUse`, `ScheduleNotFound` when it is not there, `StoreUnavailable`."""
    async with transaction(engine) as connection:
        await connection.execute(HOLD_NAMESPACE, {"namespace": namespace})
        row = (await connection.execute(DELETE, {"namespace": namespace, "calendar": calendar})).one()
    if row.used is not None:
        who = row.used.removeprefix("@") if row.used.startswith("@") else f"workflow.{row.used}"
        raise CalendarInUse(f"the schedule {who} excludes the times of calendar {calendar}")
    if not row.gone:
        raise ScheduleNotFound(f"there is no calendar {calendar}")


def _message(
    namespace: str, calendar: str, description: str, rules: bytes, updated_at: datetime
) -> schedules_pb2.Calendar:
    message = schedules_pb2.Calendar(
        name=f"namespaces/{namespace}/calendars/{calendar}",
        description=description,
        rules=map(rule_message, orjson.loads(rules) if rules else ()),
    )
    set_timestamp(message.update_time, updated_at)
    return message
