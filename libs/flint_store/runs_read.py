"""Reading runs: by id, in lists.

Answers are bounded in bytes as well as in rows, because they leave in one message each: what does not fit is named as
left out and asked for again. Lists go by run id, which is the order of creation (UUIDs of version 7): pages stay right
while runs are added, and moments become bounds of ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import TextClause, text

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_store.engine import fetch
from flint_store.run_messages import LIST_ERROR_BYTES, RUN_COLUMNS, run_message

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["ReadRuns", "RunFilter", "id_range", "list_runs", "read_runs"]

ROW_BYTES = 512
"""What a run takes in a message besides its payloads, at most about."""

# Primary key of run, one probe per id (in index order, so the window needs no sort of its own); primary key of
# workflow_version. Payload sizes are known without fetching payloads; those that do not fit are never fetched.
READ_RUNS = text(f"""
WITH sized AS (
    SELECT run.*, sum({ROW_BYTES} + CASE WHEN :with_input THEN octet_length(input) ELSE 0 END
                      + coalesce(octet_length(output), 0) + coalesce(octet_length(error), 0))
                  OVER (ORDER BY run_id ROWS UNBOUNDED PRECEDING) AS total,
           row_number() OVER (ORDER BY run_id ROWS UNBOUNDED PRECEDING) AS place
    FROM run WHERE run_id = ANY(CAST(:run_ids AS uuid[])))
SELECT {
    RUN_COLUMNS.format(
        payloads="CASE WHEN :with_input AND fits THEN r.input END, CASE WHEN fits THEN r.output END,"
        " CASE WHEN fits THEN r.error END"
    )
}, fits
FROM (SELECT *, total <= :budget OR place = 1 AS fits FROM sized) r JOIN workflow_version d USING (definition_id)
""")

_IS_BRANCH = "COALESCE(starts_with(request_id, '~branch/'), false)"
_LIST_COLUMNS = RUN_COLUMNS.format(
    payloads=f"NULL, NULL, CASE WHEN octet_length(r.error) <= {LIST_ERROR_BYTES} THEN r.error END"
)
# Ranges are comparisons of rows, and the order names both columns: only an index that begins with the namespace (or the
# definition) gives that order. With "namespace_id = …" the planner may walk the primary key through everybody's runs,
# trusting statistics that are wrong for a rare namespace or workflow.
_OF_NAMESPACE = """
    (SELECT * FROM run
     WHERE (namespace_id, run_id) < (:namespace, :below) AND (namespace_id, run_id) >= (:namespace, :lowest)
           AND NOT {branches} {condition}
     ORDER BY namespace_id DESC, run_id DESC LIMIT :limit)""".replace("{branches}", _IS_BRANCH)
# The same of one state that has an index of its own: nothing is read but what is listed.
_OF_STATE = """
    (SELECT * FROM run
     WHERE (namespace_id, state, run_id) < (:namespace, {state}, :below)
           AND (namespace_id, state, run_id) >= (:namespace, {state}, :lowest)
           AND state = {state} AND NOT {branches} {condition}
     ORDER BY namespace_id DESC, state DESC, run_id DESC LIMIT :limit)""".replace("{branches}", _IS_BRANCH)
_OF_STATE_AND_WORKFLOW = """
    (SELECT one.* FROM workflow_version v CROSS JOIN LATERAL (
         SELECT * FROM run
         WHERE (definition_id, state, run_id) < (v.definition_id, {state}, :below)
               AND (definition_id, state, run_id) >= (v.definition_id, {state}, :lowest)
               AND state = {state} AND NOT {branches}
         ORDER BY definition_id DESC, state DESC, run_id DESC LIMIT :limit) one
     WHERE v.namespace_id = :namespace AND v.workflow_id = :workflow_id
     ORDER BY one.run_id DESC LIMIT :limit)""".replace("{branches}", _IS_BRANCH)
_AMONG_VERSIONS = """AND definition_id = ANY(ARRAY(
               SELECT definition_id FROM workflow_version
               WHERE namespace_id = :namespace AND workflow_id = :workflow_id))"""

# Backward range of run_namespace; where states narrow it to what has not ended or ended badly, one of run_unfinished or
# run_unsuccessful for each of them, merged (of a workflow, of run_unsuccessful_definition for each version; what of it
# has not ended is looked for among all of that state). Pages are cut before the join (primary key of workflow_version,
# or workflow_version_latest).
_LIST_NAMESPACE = f"""
SELECT {_LIST_COLUMNS}, r.error IS NOT NULL
FROM (SELECT * FROM ({{sources}}) source ORDER BY run_id DESC LIMIT :limit) r
JOIN workflow_version d USING (definition_id) {{among}}
ORDER BY r.run_id DESC
"""

# A backward range of run_definition for each of the workflow's versions, deleted ones too, found by
# workflow_version_latest; merged.
_LIST_WORKFLOW = f"""
SELECT {_LIST_COLUMNS}, r.error IS NOT NULL
FROM workflow_version d
CROSS JOIN LATERAL (
    SELECT * FROM run
    WHERE (definition_id, run_id) < (d.definition_id, :below) AND (definition_id, run_id) >= (d.definition_id, :lowest)
          AND NOT {_IS_BRANCH} {{condition}}
    ORDER BY definition_id DESC, run_id DESC LIMIT :limit) r
WHERE d.namespace_id = :namespace AND d.workflow_id = :workflow_id
ORDER BY r.run_id DESC LIMIT :limit
"""

# All branch runs of the run, by run_answers, sorted.
_LIST_BRANCHES = f"""
SELECT {_LIST_COLUMNS}, r.error IS NOT NULL
FROM (SELECT * FROM run
      WHERE parent_run_id = :parent AND parent_key IS NOT NULL AND {_IS_BRANCH} AND namespace_id = :namespace
            AND run_id < :below AND run_id >= :lowest {{condition}}
      ORDER BY run_id DESC LIMIT :limit) r
JOIN workflow_version d USING (definition_id)
ORDER BY r.run_id DESC
"""

_UNFINISHED = frozenset(
    {
        runs_pb2.Run.STATE_QUEUED,
        runs_pb2.Run.STATE_RUNNING,
        runs_pb2.Run.STATE_WAITING,
        runs_pb2.Run.STATE_PAUSED,
    }
)
_UNSUCCESSFUL = frozenset({runs_pb2.Run.STATE_FAILED, runs_pb2.Run.STATE_CANCELLED})

_HIGHEST = UUID(int=2**128 - 1)
_LOWEST = UUID(int=0)


@dataclass(frozen=True, slots=True)
class ReadRuns:
    """What was found. `left_out`: runs that exist but did not fit; ask again for them."""

    runs: list[runs_pb2.Run]
    left_out: list[bytes]


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs a list holds. Moments are compared with the ids' milliseconds, which the accepting scheduler set."""

    workflow_id: str = ""
    states: frozenset[int] = frozenset()
    created_after: datetime | None = None
    created_before: datetime | None = None
    branches_of: bytes = b""  # only the branch runs of this run; else none of any


async def read_runs(
    engine: AsyncEngine, run_ids: Sequence[bytes], *, with_input: bool = True, budget_bytes: int
) -> ReadRuns:
    """Runs by id, in any order, missing ones left out. At least one is answered if any exists, whatever its size.

    Raises `StoreUnavailable`.
    """
    rows = await fetch(
        engine,
        READ_RUNS,
        {"run_ids": [UUID(bytes=run_id) for run_id in run_ids], "with_input": with_input, "budget": budget_bytes},
    )
    return ReadRuns(
        runs=[run_message(row[:-1]) for row in rows if row[-1]],
        left_out=[row[0].bytes for row in rows if not row[-1]],
    )


async def list_runs(
    engine: AsyncEngine, namespace: str, filters: RunFilter, *, before_id: bytes = b"", limit: int
) -> list[runs_pb2.Run]:
    """A page of runs, newest first, without input and output: those below `before_id` when it is given.

    An error above 4 KiB is replaced by a short one that says so. Raises `StoreUnavailable`.
    """
    below, lowest = _bounds(before_id, filters)
    if below <= lowest:
        return []
    parameters = {"namespace": namespace, "below": below, "lowest": lowest, "limit": limit}
    if filters.workflow_id:
        parameters["workflow_id"] = filters.workflow_id
    if filters.branches_of:
        parameters["parent"] = UUID(bytes=filters.branches_of)
    of_workflow, of_run = bool(filters.workflow_id), bool(filters.branches_of)
    rows = await fetch(engine, list_statement(of_workflow, filters.states, of_run), parameters)
    runs = []
    for row in rows:
        run = run_message(row[:-1])
        if row[-1] and not run.HasField("error"):
            run.error.title = "The error is too large for a list; read the run itself."
        runs.append(run)
    return runs


@lru_cache(maxsize=128)
def list_statement(of_workflow: bool, states: frozenset[int], of_run: bool = False) -> TextClause:
    """The list's statement. States stand in it as literals: only then can the planner use partial indexes on them."""
    if of_run:
        versions = _AMONG_VERSIONS if of_workflow else ""
        return text(_LIST_BRANCHES.format(condition=f"{_in(states)} {versions}"))
    if states and states <= _UNFINISHED | _UNSUCCESSFUL:
        versions = _AMONG_VERSIONS if of_workflow else ""
        sources = [
            _OF_STATE_AND_WORKFLOW.format(state=int(state))
            if of_workflow and state in _UNSUCCESSFUL
            else _OF_STATE.format(state=int(state), condition=versions)
            for state in sorted(states)
        ]
        among = "WHERE d.namespace_id = :namespace AND d.workflow_id = :workflow_id" if of_workflow else ""
        return text(_LIST_NAMESPACE.format(sources=" UNION ALL ".join(sources), among=among))
    if of_workflow:
        return text(_LIST_WORKFLOW.format(condition=_in(states)))
    return text(_LIST_NAMESPACE.format(sources=_OF_NAMESPACE.format(condition=_in(states)), among=""))


def _in(states: frozenset[int]) -> str:
    return f"AND state IN ({', '.join(str(int(state)) for state in sorted(states))})" if states else ""


def id_range(filters: RunFilter) -> tuple[int, int]:
    """Inclusive lower and exclusive upper bound of the ids of runs that were created within the filter's moments."""
    below, lowest = _bounds(b"", filters)
    return lowest.int, below.int


def _bounds(before_id: bytes, filters: RunFilter) -> tuple[UUID, UUID]:
    """Exclusive upper and inclusive lower bound of the ids."""
    below = UUID(bytes=before_id) if before_id else _HIGHEST
    if filters.created_before is not None:
        below = min(below, _first_id(filters.created_before))
    lowest = _first_id(filters.created_after) if filters.created_after is not None else _LOWEST
    return below, lowest


def _first_id(moment: datetime) -> UUID:
    """The lowest id of the first millisecond that does not lie before the moment."""
    milliseconds = -(int(-moment.timestamp() * 1_000_000) // 1000)
    return UUID(int=min(max(milliseconds, 0), 2**48 - 1) << 80)
