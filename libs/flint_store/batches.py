"""Jobs over many runs: rows that say how far they are.

A job goes through the runs of its namespace in the order of their ids, a page in a transaction that also moves its
cursor: so each run is come to exactly once, whatever is killed. Runs accepted after the job are above its bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from flint_contracts.gen.flint.runs.v1 import control_pb2
from flint_store.arrays import integers, uuids
from flint_store.fence import FENCE, Fenced, OwnerSession
from flint_store.runs_read import RunFilter, id_range
from flint_store.timestamps import from_timestamp, set_timestamp

__all__ = ["BatchRow", "Page", "advance", "end_batch", "lock_batch", "put_batch", "read_batches", "read_page"]

_RUNNING, _COMPLETED, _CANCELLED = 1, 2, 3

PUT = text("""
INSERT INTO batch_job (batch_id, namespace_id, group_id, request_id, action, filter, bound)
VALUES (:batch_id, :namespace, :group, :request_id, :action, :filter, :bound)
ON CONFLICT DO NOTHING
""")
_COLUMNS = """batch_id, namespace_id, group_id, action, filter, state, cursor, bound, matched, done, refused, refusals,
created_at, ended_at"""
BY_REQUEST = text(f"SELECT {_COLUMNS} FROM batch_job WHERE namespace_id = :namespace AND request_id = :request_id")
BY_ID = text(f"SELECT {_COLUMNS} FROM batch_job WHERE namespace_id = :namespace AND batch_id = :batch_id")
LIST = text(f"""
SELECT {_COLUMNS} FROM batch_job WHERE (namespace_id, batch_id) < (:namespace, CAST(:before AS uuid))
  AND namespace_id = :namespace
ORDER BY namespace_id DESC, batch_id DESC LIMIT :limit
""")
END = text("""
UPDATE batch_job SET state = 3, ended_at = clock_timestamp()
WHERE namespace_id = :namespace AND batch_id = :batch_id AND state = 1
""")
HOLD_FENCE = text(FENCE)
LOCK = text(f"SELECT {_COLUMNS} FROM batch_job WHERE batch_id = :batch_id AND state = 1 FOR UPDATE")

# A page is cut before it is filtered, so that a rare match costs many small statements instead of one long one. Ranges
# are comparisons of rows: only run_namespace gives that order.
PAGE = text("""
SELECT p.run_id, (:any_state OR p.state = ANY(CAST(:states AS int[])))
       AND (:workflow = '' OR p.definition_id IN (
            SELECT d.definition_id FROM workflow_version d
            WHERE d.namespace_id = :namespace AND d.workflow_id = :workflow)) AS matches
FROM (SELECT run_id, state, definition_id FROM run
      WHERE (namespace_id, run_id) > (:namespace, CAST(:after AS uuid))
        AND (namespace_id, run_id) <= (:namespace, CAST(:upto AS uuid))
      ORDER BY namespace_id, run_id LIMIT :limit) p
ORDER BY p.run_id
""")
PAGE_OF_IDS = text("""
SELECT p.run_id, (:any_state OR p.state = ANY(CAST(:states AS int[])))
       AND (:workflow = '' OR p.definition_id IN (
            SELECT d.definition_id FROM workflow_version d
            WHERE d.namespace_id = :namespace AND d.workflow_id = :workflow)) AS matches
FROM run p
WHERE p.run_id = ANY(CAST(:ids AS uuid[])) AND p.namespace_id = :namespace
  AND p.run_id > CAST(:after AS uuid) AND p.run_id <= CAST(:upto AS uuid)
ORDER BY p.run_id LIMIT :limit
""")
ADVANCE = text("""
UPDATE batch_job SET cursor = :cursor, matched = matched + :matched, done = done + :done, refused = refused + :refused,
       refusals = :refusals, state = :state, ended_at = CASE WHEN :state = 1 THEN NULL ELSE clock_timestamp() END
WHERE batch_id = :batch_id
""")


@dataclass(frozen=True, slots=True)
class Page:
    """The next runs of a job. `cursor`: where it stands behind them; None when there are no more."""

    matching: list[bytes]
    cursor: bytes | None


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A job that is at work, locked."""

    batch_id: bytes
    namespace: str
    cursor: bytes
    bound: bytes
    message: control_pb2.Batch


async def put_batch(
    connection: AsyncConnection,
    namespace: str,
    batch_id: bytes,
    group: int,
    request_id: str,
    action: control_pb2.BatchAction,
    filter_: control_pb2.BatchFilter,
) -> tuple[control_pb2.Batch, bool]:
    """Store a job; with a request id that was used before, the job that this one became. And whether it is the same."""
    content = action.SerializeToString(deterministic=True), filter_.SerializeToString(deterministic=True)
    await connection.execute(
        PUT,
        {
            "batch_id": UUID(bytes=batch_id),
            "namespace": namespace,
            "group": group,
            "request_id": request_id or None,
            "action": content[0],
            "filter": content[1],
            "bound": UUID(bytes=batch_id),
        },
    )
    if request_id:
        row = (await connection.execute(BY_REQUEST, {"namespace": namespace, "request_id": request_id})).one()
    else:
        row = (await connection.execute(BY_ID, {"namespace": namespace, "batch_id": UUID(bytes=batch_id)})).one()
    return _message(row), (bytes(row.action), bytes(row.filter)) == content


async def read_batches(
    connection: AsyncConnection, namespace: str, *, batch_id: bytes = b"", before: bytes = b"", limit: int = 1
) -> list[control_pb2.Batch]:
    """One job, or a page of them, newest first; lists are without refusals."""
    if batch_id:
        rows = await connection.execute(BY_ID, {"namespace": namespace, "batch_id": UUID(bytes=batch_id)})
        return [_message(row) for row in rows]
    highest = UUID(bytes=before) if before else UUID(int=2**128 - 1)
    rows = await connection.execute(LIST, {"namespace": namespace, "before": highest, "limit": limit})
    found = [_message(row) for row in rows]
    for message in found:
        message.ClearField("refusals")
    return found


async def end_batch(connection: AsyncConnection, namespace: str, batch_id: bytes) -> None:
    """End it early; without effect when it has ended."""
    await connection.execute(END, {"namespace": namespace, "batch_id": UUID(bytes=batch_id)})


async def lock_batch(connection: AsyncConnection, session: OwnerSession, batch_id: bytes) -> BatchRow | None:
    """The job, if it is still at work, held until the transaction ends. Raises `Fenced`."""
    if (await connection.execute(HOLD_FENCE, session.parameters())).one_or_none() is None:
        raise Fenced(session)
    row = (await connection.execute(LOCK, {"batch_id": UUID(bytes=batch_id)})).one_or_none()
    if row is None:
        return None
    return BatchRow(row.batch_id.bytes, row.namespace_id, row.cursor.bytes, row.bound.bytes, _message(row))


async def read_page(connection: AsyncConnection, batch: BatchRow, limit: int) -> Page:
    """The next runs that the job comes to; at most `limit` are looked at."""
    wanted = batch.message.filter
    lowest, below = id_range(
        RunFilter(
            created_after=_moment(wanted, "created_after"),
            created_before=_moment(wanted, "created_before"),
        )
    )
    after = max(UUID(bytes=batch.cursor).int, lowest - 1)
    upto = min(UUID(bytes=batch.bound).int, below - 1)
    if after >= upto:
        return Page([], None)
    parameters: dict[str, object] = {
        "namespace": batch.namespace,
        "workflow": wanted.workflow_id,
        "any_state": not wanted.states,
        "states": integers([int(state) for state in wanted.states]),
        "after": UUID(int=max(after, 0)),
        "upto": UUID(int=upto),
        "limit": limit,
    }
    if wanted.runs:
        ids = uuids([UUID(run).bytes for run in wanted.runs])
        rows = (await connection.execute(PAGE_OF_IDS, parameters | {"ids": ids})).all()
    else:
        rows = (await connection.execute(PAGE, parameters)).all()
    cursor = rows[-1].run_id.bytes if len(rows) == limit else None
    return Page([row.run_id.bytes for row in rows if row.matches], cursor)


async def advance(connection: AsyncConnection, batch: BatchRow, cursor: bytes | None, matched: int, done: int) -> None:
    """Note how far the job is; `batch.message` holds the refusals. Without a cursor it is complete."""
    refusals = control_pb2.Batch(refusals=batch.message.refusals)
    await connection.execute(
        ADVANCE,
        {
            "batch_id": UUID(bytes=batch.batch_id),
            "cursor": UUID(bytes=cursor or batch.bound),
            "matched": matched,
            "done": done,
            "refused": matched - done,
            "refusals": refusals.SerializeToString(),
            "state": _RUNNING if cursor is not None else _COMPLETED,
        },
    )


def _moment(message: control_pb2.BatchFilter, name: str) -> datetime | None:
    return from_timestamp(getattr(message, name)) if message.HasField(name) else None  # type: ignore[arg-type]


def _message(row: Row[tuple[object, ...]]) -> control_pb2.Batch:
    message = control_pb2.Batch(
        name=f"namespaces/{row.namespace_id}/batches/{row.batch_id}",
        state=row.state,
        action=control_pb2.BatchAction.FromString(bytes(row.action)),
        filter=control_pb2.BatchFilter.FromString(bytes(row.filter)),
        matched=row.matched,
        done=row.done,
        refused=row.refused,
        refusals=control_pb2.Batch.FromString(bytes(row.refusals)).refusals,
    )
    set_timestamp(message.create_time, row.created_at)
    set_timestamp(message.end_time, row.ended_at)
    return message
