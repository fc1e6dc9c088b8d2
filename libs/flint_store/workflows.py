"""Workflow versions: put, read, delete.

A version never changes. Deleting one hides it (soft): its row stays, because finished runs name it, and because a start
that another replica is accepting at that moment keeps the definition that it resolved. Every put that stores something
and every delete raises `namespace.definition_epoch` in the same statement: `flint_store.definitions` relies on it. The
schedule in force changes in the same transaction (`flint_store.schedules`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import TextClause, text

from flint_contracts.gen.flint.workflows.v1 import workflows_pb2
from flint_store.engine import fetch, transaction
from flint_store.errors import NamespaceNotFound, StoreUnavailable, VersionExists, WorkflowInUse, WorkflowNotFound
from flint_store.schedules import sync_schedule
from flint_store.timestamps import set_timestamp
from flint_store.version_order import version_sort
from flint_store.workflow_control import sync_policy

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = [
    "NewVersion",
    "delete_version",
    "list_versions",
    "list_workflows",
    "program_by_hash",
    "put_version",
    "read_version",
]

PUT_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A compiled definition to store. `definition_hash`: SHA-256 of `program`. `schedule`, `level`: see `spec_of`."""

    namespace: str
    workflow_id: str
    version: str
    title: str
    summary: str
    source: str
    program: bytes
    definition_hash: bytes
    schedule: bytes | None = None
    level: int | None = None
    queue: bytes | None = None  # what it says of how its runs queue, JSON
    retention_s: int | None = None  # how long its ended runs are kept; 0: for ever


# Inserts unless the name is taken, and raises the epoch only then. Unique index workflow_version_name (the conflict),
# primary key of namespace (the source of the one row, and the epoch).
INSERT_VERSION = text("""
WITH inserted AS (
    INSERT INTO workflow_version (namespace_id, workflow_id, version, version_sort, title, summary, source, program,
                                  definition_hash, schedule, level, queue, retention_s)
    SELECT namespace_id, :workflow_id, :version, :version_sort, :title, :summary, :source, :program, :definition_hash,
           :schedule, CAST(:level AS smallint), CAST(:queue AS bytea), CAST(:retention_s AS bigint)
    FROM namespace WHERE namespace_id = :namespace
    ON CONFLICT (namespace_id, workflow_id, version) WHERE deleted_at IS NULL DO NOTHING
    RETURNING definition_id),
raised AS (
    UPDATE namespace SET definition_epoch = definition_epoch + 1
    WHERE namespace_id = :namespace AND EXISTS (SELECT FROM inserted))
SELECT definition_id FROM inserted
""")

# Primary key.
NAMESPACE_EXISTS = text("SELECT 1 FROM namespace WHERE namespace_id = :namespace")

_COLUMNS = """
SELECT d.namespace_id, d.workflow_id, d.version, d.title, d.summary, {source}, d.definition_hash, d.created_at,
       NOT EXISTS (SELECT FROM workflow_version h
                   WHERE h.namespace_id = d.namespace_id AND h.workflow_id = d.workflow_id AND h.deleted_at IS NULL
                     AND (h.version_sort, h.version) > (d.version_sort, d.version)) AS latest,
       s.schedule_id IS NOT NULL AS scheduled, s.next_fire_at
FROM workflow_version d
LEFT JOIN schedule s ON s.namespace_id = d.namespace_id AND s.workflow_id = d.workflow_id
    AND s.definition_id = d.definition_id
"""
_WITH_SOURCE = _COLUMNS.format(source="d.source")
_WITHOUT_SOURCE = _COLUMNS.format(source="''")

# One probe of workflow_version_name; the anti-join is one probe of workflow_version_latest.
READ_VERSION = text(
    f"{_WITH_SOURCE} WHERE d.namespace_id = :namespace AND d.workflow_id = :workflow_id AND d.version = :version"
    " AND d.deleted_at IS NULL"
)

# First entry of workflow_version_latest below (namespace, workflow).
READ_LATEST = text(
    f"{_WITH_SOURCE} WHERE d.namespace_id = :namespace AND d.workflow_id = :workflow_id AND d.deleted_at IS NULL"
    " ORDER BY d.version_sort DESC, d.version DESC LIMIT 1"
)

# Range of workflow_version_latest, in its order, from behind the key.
LIST_VERSIONS = text(
    f"{_WITHOUT_SOURCE} WHERE d.namespace_id = :namespace AND d.workflow_id = :workflow_id AND d.deleted_at IS NULL"
    " AND (CAST(:after_sort AS text) IS NULL OR (d.version_sort, d.version) < (:after_sort, :after_version))"
    " ORDER BY d.version_sort DESC, d.version DESC LIMIT :limit"
)

# workflow_version_latest in its order: the first row of each workflow.
LIST_WORKFLOWS = text("""
SELECT d.*, s.schedule_id IS NOT NULL AS scheduled, s.next_fire_at
FROM (SELECT DISTINCT ON (d.workflow_id) d.namespace_id, d.workflow_id, d.version, d.title, d.summary, '' AS source,
             d.definition_hash, d.created_at, true AS latest
      FROM workflow_version d
      WHERE d.namespace_id = :namespace AND d.workflow_id > :after AND d.deleted_at IS NULL
      ORDER BY d.workflow_id, d.version_sort DESC, d.version DESC
      LIMIT :limit) d
LEFT JOIN schedule s ON s.namespace_id = d.namespace_id AND s.workflow_id = d.workflow_id
ORDER BY d.workflow_id
""")

# Index workflow_version_hash; deleted versions too: their runs still need them.
PROGRAM_BY_HASH = text("SELECT program FROM workflow_version WHERE definition_hash = :definition_hash LIMIT 1")

# workflow_version_name finds the version; its unfinished runs are looked for among the namespace's (run_unfinished),
# which costs a moment where a million runs sleep: deletes are rare, another index on every start is not.
DELETE_VERSION = text("""
WITH target AS (
    SELECT definition_id FROM workflow_version
    WHERE namespace_id = :namespace AND workflow_id = :workflow_id AND version = :version AND deleted_at IS NULL
    FOR UPDATE),
in_use AS (
    SELECT EXISTS (SELECT FROM run r JOIN target USING (definition_id)
                   WHERE r.namespace_id = :namespace AND r.state IN (1, 2, 3, 7)) AS yes),
deleted AS (
    UPDATE workflow_version d SET deleted_at = clock_timestamp()
    FROM target, in_use WHERE d.definition_id = target.definition_id AND NOT in_use.yes
    RETURNING d.definition_id),
raised AS (
    UPDATE namespace SET definition_epoch = definition_epoch + 1
    WHERE namespace_id = :namespace AND EXISTS (SELECT FROM deleted))
SELECT in_use.yes FROM target, in_use
""")


async def put_version(engine: AsyncEngine, new: NewVersion) -> tuple[workflows_pb2.Workflow, bool]:
    """Store a version; answers it (with source) and whether it was stored now.

    The same content (by hash) again answers the stored one: safe to repeat. Raises `VersionExists` when the version
    has other content, `VersionInvalid`, `NamespaceNotFound`, `StoreUnavailable`.
    """
    key = {"namespace": new.namespace, "workflow_id": new.workflow_id, "version": new.version}
    parameters = key | {
        "version_sort": version_sort(new.version),
        "title": new.title,
        "summary": new.summary,
        "source": new.source,
        "program": new.program,
        "definition_hash": new.definition_hash,
        "schedule": new.schedule,
        "level": new.level,
        "queue": new.queue,
        "retention_s": new.retention_s,
    }
    # A version that is deleted between the refused insert and the read is neither inserted nor found: begin again.
    for _ in range(PUT_ATTEMPTS):
        async with transaction(engine) as connection:
            created = (await connection.execute(INSERT_VERSION, parameters)).first() is not None
            if created:
                await sync_schedule(connection, new.namespace, new.workflow_id)
                await sync_policy(connection, new.namespace, new.workflow_id)
        rows = await fetch(engine, READ_VERSION, key)
        if rows:
            stored = _message(rows[0])
            if not created and bytes(rows[0].definition_hash) != new.definition_hash:
                raise VersionExists(
                    f"version {new.version} of workflow {new.workflow_id} was applied before with other content:"
                    " a version never changes; give this one a new version"
                )
            return stored, created
        if not await fetch(engine, NAMESPACE_EXISTS, {"namespace": new.namespace}):
            raise NamespaceNotFound(f"there is no namespace {new.namespace!r}")
    raise StoreUnavailable(f"version {new.version} of workflow {new.workflow_id} is being deleted again and again")


async def read_version(
    engine: AsyncEngine, namespace: str, workflow_id: str, version: str = ""
) -> workflows_pb2.Workflow | None:
    """One version with its source (the latest when `version` is empty), or None. Raises `StoreUnavailable`."""
    statement = READ_VERSION if version else READ_LATEST
    parameters = {"namespace": namespace, "workflow_id": workflow_id} | ({"version": version} if version else {})
    rows = await fetch(engine, statement, parameters)
    return _message(rows[0]) if rows else None


async def list_versions(
    engine: AsyncEngine, namespace: str, workflow_id: str, *, after: str = "", limit: int
) -> list[workflows_pb2.Workflow]:
    """Versions of one workflow without source, highest first, those below `after`. Raises `VersionInvalid` for it."""
    parameters = {
        "namespace": namespace,
        "workflow_id": workflow_id,
        "after_sort": version_sort(after) if after else None,
        "after_version": after,
        "limit": limit,
    }
    return await _list(engine, LIST_VERSIONS, parameters)


async def list_workflows(
    engine: AsyncEngine, namespace: str, *, after: str = "", limit: int
) -> list[workflows_pb2.Workflow]:
    """The latest version of each workflow without source, by workflow id, those above `after`."""
    return await _list(engine, LIST_WORKFLOWS, {"namespace": namespace, "after": after, "limit": limit})


async def program_by_hash(engine: AsyncEngine, definition_hash: bytes) -> bytes | None:
    """The compiled form with this SHA-256, also of deleted versions; None when there is none."""
    rows = await fetch(engine, PROGRAM_BY_HASH, {"definition_hash": definition_hash})
    return bytes(rows[0][0]) if rows else None


async def delete_version(engine: AsyncEngine, namespace: str, workflow_id: str, version: str) -> None:
    """Hide a version. Raises `WorkflowNotFound`, `WorkflowInUse` when unfinished runs use it, `StoreUnavailable`.

    A start that is being accepted at this very moment may still use it; it runs to its end.
    """
    key = {"namespace": namespace, "workflow_id": workflow_id, "version": version}
    async with transaction(engine) as connection:
        row = (await connection.execute(DELETE_VERSION, key)).first()
        if row is not None and not row.yes:
            await sync_schedule(connection, namespace, workflow_id)
            await sync_policy(connection, namespace, workflow_id)
    if row is None:
        raise WorkflowNotFound(f"there is no version {version} of workflow {workflow_id}")
    if row.yes:
        raise WorkflowInUse(f"runs of version {version} of workflow {workflow_id} have not ended yet")


async def _list(engine: AsyncEngine, statement: TextClause, parameters: dict[str, Any]) -> list[workflows_pb2.Workflow]:
    return [_message(row) for row in await fetch(engine, statement, parameters)]


def _message(row: Sequence[Any]) -> workflows_pb2.Workflow:
    namespace, workflow_id, version, title, summary, source, definition_hash, created_at, latest, scheduled, next_at = (
        row
    )
    message = workflows_pb2.Workflow(
        name=f"namespaces/{namespace}/workflows/{workflow_id}/versions/{version}",
        workflow_id=workflow_id,
        version=version,
        title=title,
        summary=summary,
        source=source,
        definition_hash=definition_hash.hex(),
        latest=latest,
        scheduled=scheduled,
    )
    set_timestamp(message.create_time, created_at)
    set_timestamp(message.next_start_time, next_at)
    return message
