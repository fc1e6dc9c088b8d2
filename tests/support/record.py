"""Rows for tests of the record, written directly: what accepts and folds would have left behind."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_core.ids import SHARDS, make_run_id, shard_of_run
from flint_store.workflows import NewVersion, put_version

GROUPS = 16
EPOCH_MS = 1_750_000_000_000

QUEUED, RUNNING, WAITING, SUCCEEDED, FAILED, CANCELLED = range(1, 7)

INSERT_RUN = text("""
INSERT INTO run (run_id, namespace_id, definition_id, group_id, state, level, request_id, trace_id, input, output,
                 error, change, position, leg, claimant, created_at, started_at, ended_at, wake_at)
VALUES (:run_id, :namespace_id, :definition_id, :group_id, :state, :level, :request_id, :trace_id, :input, :output,
        :error, :change, :position, :leg, :claimant, :created_at, :started_at, :ended_at, :wake_at)
""")

INSERT_ENTRY = text("""
INSERT INTO run_entry (run_id, index, leg, claimant, steps, events, end_kind)
VALUES (:run_id, :index, :leg, :claimant, :steps, :events, :end_kind)
""")


def run_id_at(at_ms: int) -> bytes:
    return make_run_id(random.randrange(SHARDS), at_ms, os.urandom(9))


def moment(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)


async def add_version(
    engine: AsyncEngine,
    workflow_id: str = "orders",
    version: str = "1.0.0",
    *,
    namespace: str = "default",
    body: str = "",
) -> int:
    """Stores a version (content made of its name and `body`); answers its definition_id."""
    await put_version(engine, new_version(workflow_id, version, namespace=namespace, body=body))
    async with engine.connect() as connection:
        found = await connection.execute(
            text(
                "SELECT definition_id FROM workflow_version"
                " WHERE namespace_id = :n AND workflow_id = :w AND version = :v AND deleted_at IS NULL"
            ),
            {"n": namespace, "w": workflow_id, "v": version},
        )
        return int(found.scalar_one())


def new_version(
    workflow_id: str = "orders", version: str = "1.0.0", *, namespace: str = "default", body: str = ""
) -> NewVersion:
    program = f"{namespace}/{workflow_id}/{version}/{body}".encode()
    return NewVersion(
        namespace=namespace,
        workflow_id=workflow_id,
        version=version,
        title=f"Title of {workflow_id}",
        summary="",
        source=f"source {body}",
        program=program,
        definition_hash=sha256(program).digest(),
    )


async def add_namespace(engine: AsyncEngine, namespace: str) -> None:
    async with engine.connect() as connection:
        await connection.execute(text("INSERT INTO namespace (namespace_id) VALUES (:n)"), {"n": namespace})


async def add_runs(engine: AsyncEngine, rows: Sequence[dict[str, Any]]) -> list[bytes]:
    """Inserts runs; a row names what differs from a queued run without anything."""
    complete = []
    for number, row in enumerate(rows):
        at_ms = row.get("at_ms", EPOCH_MS + number)
        run_id = row.get("run_id") or run_id_at(at_ms)
        complete.append(
            {
                "namespace_id": "default",
                "state": QUEUED,
                "level": 5,
                "request_id": None,
                "trace_id": None,
                "input": b"{}",
                "output": None,
                "error": None,
                "change": 1,
                "position": 0,
                "leg": 0,
                "claimant": None,
                "created_at": moment(at_ms),
                "started_at": None,
                "ended_at": None,
                "wake_at": None,
            }
            | {key: value for key, value in row.items() if key != "at_ms"}
            | {"run_id": UUID(bytes=run_id), "group_id": shard_of_run(run_id) % GROUPS}
        )
    if complete:
        async with engine.connect() as connection:
            await connection.execute(INSERT_RUN, complete)
    return [row["run_id"].bytes for row in complete]


async def add_entries(engine: AsyncEngine, run_id: bytes, rows: Sequence[dict[str, Any]]) -> None:
    """Inserts entries 1, 2, … of a run."""
    complete = [
        {"leg": 1, "claimant": "w1", "steps": b"", "events": b"", "end_kind": 0}
        | row
        | {"run_id": UUID(bytes=run_id), "index": number}
        for number, row in enumerate(rows, start=1)
    ]
    if complete:
        async with engine.connect() as connection:
            await connection.execute(INSERT_ENTRY, complete)
