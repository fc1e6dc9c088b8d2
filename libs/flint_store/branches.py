"""Branch runs in the record: which belong to a fork, how far they are, how they ended.

A branch run is a child of the run that came to the fork, under a request id that names the fork's await and the
chunk: so each is stored once, and told from other runs without a column of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.branches import END, Chunk, Outcome
from flint_core.ids import run_id_text
from flint_core.problems import Problem
from flint_core.queueing import QueueHints
from flint_store.arrays import texts, uuids

__all__ = [
    "BRANCH_REQUEST_PREFIX",
    "BranchName",
    "BranchState",
    "Fork",
    "branch_name",
    "branch_range",
    "branch_request_id",
    "read_branches",
    "read_forks",
    "read_outcomes",
    "running_branches",
]

BRANCH_REQUEST_PREFIX: Final = "~branch/"
"""Request ids with it are of branch runs; clients cannot use them."""

_STATES: Final = {
    runs_pb2.Run.STATE_SUCCEEDED: "succeeded",
    runs_pb2.Run.STATE_FAILED: "failed",
    runs_pb2.Run.STATE_CANCELLED: "cancelled",
}


@dataclass(frozen=True, slots=True)
class BranchName:
    """What a branch run's request id says: the run, the fork's await there, the chunk."""

    run_id: bytes
    fork: str
    number: int
    first: int
    count: int


def branch_request_id(run_id: bytes, fork: str, chunk: Chunk) -> str:
    """The request id of a chunk's run."""
    return f"{BRANCH_REQUEST_PREFIX}{run_id_text(run_id)}/{fork}/{chunk.number}/{chunk.first}/{chunk.count}"


def branch_range(namespace: str, request_id: str) -> runs_pb2.BranchRange | None:
    """What is shown of a branch run's name; None for runs of other kinds."""
    name = branch_name(request_id)
    if name is None:
        return None
    run = f"namespaces/{namespace}/runs/{run_id_text(name.run_id)}"
    return runs_pb2.BranchRange(run=run, first=name.first, count=name.count, fork=name.fork)


def branch_name(request_id: str) -> BranchName | None:
    """The reverse; None for runs of other kinds."""
    if not request_id.startswith(BRANCH_REQUEST_PREFIX):
        return None
    run, fork, number, first, count = request_id.removeprefix(BRANCH_REQUEST_PREFIX).split("/")
    return BranchName(UUID(run).bytes, fork, int(number), int(first), int(count))


@dataclass(frozen=True, slots=True)
class Fork:
    """What branch runs take over from the run that came to the fork."""

    workflow_id: str
    version: str
    definition_id: int
    definition_hash: bytes
    level: int
    trace_id: bytes
    depth: int
    root: bytes
    hints: QueueHints | None


@dataclass(frozen=True, slots=True)
class BranchState:
    """One chunk's run. `final`: one of its branches ended the whole run."""

    number: int
    count: int
    state: int  # flint.runs.v1.Run.State
    final: bool

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.state in _STATES


# Primary keys.
READ_FORKS = text("""
SELECT r.run_id, d.workflow_id, d.version, r.definition_id, d.definition_hash, r.level, r.trace_id, r.depth,
       COALESCE(r.root_run_id, r.run_id) AS root, r.hints
FROM run r JOIN workflow_version d USING (definition_id) WHERE r.run_id = ANY(CAST(:run_ids AS uuid[]))
""")

_OF_FORKS = """
FROM unnest(CAST(:run_ids AS uuid[]), CAST(:keys AS text[])) AS f(run_id, key)
JOIN run r ON r.parent_run_id = f.run_id AND r.parent_key = f.key AND starts_with(r.request_id, '~branch/')
"""

# Partial index run_answers (parent_run_id, parent_key).
READ_BRANCHES = text(f"""
SELECT f.run_id, f.key, r.request_id, r.state,
       r.output IS NOT NULL AND substring(r.output FOR 7) = CAST(:final AS bytea) AS final {_OF_FORKS}
""")

READ_OUTCOMES = text(f"""
SELECT r.request_id, r.state, r.output, r.error, r.ended_at {_OF_FORKS} WHERE r.state IN (4, 5, 6)
""")

RUNNING = text(f"SELECT r.run_id, r.namespace_id {_OF_FORKS} WHERE r.state NOT IN (4, 5, 6)")

_FINAL: Final = orjson.dumps({END: 0})[:7]


async def read_forks(connection: AsyncConnection, run_ids: Sequence[bytes]) -> dict[bytes, Fork]:
    """What the branch runs of these runs take over."""
    rows = await connection.execute(READ_FORKS, {"run_ids": uuids(run_ids)})
    return {
        r.run_id.bytes: Fork(
            r.workflow_id,
            r.version,
            r.definition_id,
            bytes(r.definition_hash),
            r.level,
            bytes(r.trace_id or b""),
            r.depth,
            r.root.bytes,
            QueueHints.from_json(bytes(r.hints)) if r.hints is not None else None,
        )
        for r in rows
    }


def _names(forks: Sequence[tuple[bytes, str]]) -> dict[str, Any]:
    return {"run_ids": uuids([run_id for run_id, _ in forks]), "keys": texts([key for _, key in forks])}


async def read_branches(
    connection: AsyncConnection, forks: Sequence[tuple[bytes, str]]
) -> dict[tuple[bytes, str], list[BranchState]]:
    """The branch runs of these forks (run, key of its await), in any order; forks that have none are left out."""
    found: dict[tuple[bytes, str], list[BranchState]] = {}
    for r in await connection.execute(READ_BRANCHES, {**_names(forks), "final": _FINAL}):
        name = branch_name(r.request_id)
        if name is not None:
            state = BranchState(name.number, name.count, r.state, r.final)
            found.setdefault((r.run_id.bytes, r.key), []).append(state)
    return found


async def read_outcomes(connection: AsyncConnection, run_id: bytes, key: str) -> list[Outcome]:
    """How those branch runs of a fork ended that have ended."""
    outcomes: list[Outcome] = []
    for r in await connection.execute(READ_OUTCOMES, _names([(run_id, key)])):
        name = branch_name(r.request_id)
        if name is None:
            continue
        result: Any = None
        if r.state == runs_pb2.Run.STATE_SUCCEEDED:
            result = orjson.loads(bytes(r.output))
        elif r.error is not None:
            problem = runs_pb2.Problem.FromString(bytes(r.error))
            result = Problem(problem.type, problem.status, problem.title, problem.detail, problem.instance).to_json()
        outcomes.append(Outcome(name.number, _STATES[r.state], r.ended_at.timestamp(), result))
    return outcomes


async def running_branches(connection: AsyncConnection, forks: Sequence[tuple[bytes, str]]) -> dict[str, list[bytes]]:
    """Ids of the branch runs of these forks that have not ended, by namespace."""
    found: dict[str, list[bytes]] = {}
    for r in await connection.execute(RUNNING, _names(forks)):
        found.setdefault(r.namespace_id, []).append(r.run_id.bytes)
    return found
