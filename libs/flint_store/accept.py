"""Accepting runs: one statement for all the starts of a moment (R0, R2).

A start is answered after this statement has committed. Starts that the owner of their shard accepts are fenced by its
session and may open their first leg in the same commit; starts accepted by any other replica carry the `adopt` flag and
are found by the owner's sweep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from flint_core.ids import created_ms
from flint_core.payloads import references_in_json
from flint_core.queueing import QueueHints
from flint_store import columns
from flint_store.arrays import bools, byteas, integers, texts, uuids
from flint_store.fence import FENCE, OwnerSession
from flint_store.hot import execute_hot

__all__ = ["Accepted", "NewRun", "Parent", "Quota", "accept_runs"]

_QUEUED, _RUNNING, _CANCELLED = 1, 2, 6  # flint.runs.v1.Run.State


@dataclass(frozen=True, slots=True)
class Parent:
    """The run for whose await another one is started. It starts only while the await is open."""

    run_id: bytes
    await_key: str
    waits: bool  # whether the child's end is its answer
    depth: int  # of the child: runs above it
    root: bytes  # the run at the top of the tree
    tree_runs: int  # it starts only while the tree has fewer runs than this


@dataclass(frozen=True, slots=True)
class Quota:
    """How many runs of a namespace may be queued, and begin per second with so many at once. None: any number."""

    queued: int | None
    rate: float | None
    burst: float


@dataclass(slots=True)
class NewRun:
    """One start, ready to be stored."""

    run_id: bytes
    namespace: str
    definition_id: int
    group: int
    level: int
    request_id: str
    request_hash: bytes
    trace_id: bytes
    input: bytes
    leg_nonce: bytes | None = None  # set when its first leg opens with the start
    claimant: str | None = None
    generation: int = 0
    parent: Parent | None = None
    hints: QueueHints | None = None
    counted: bool = False  # whether a quota of its namespace may refuse it


@dataclass(slots=True)
class Accepted:
    """What one start became. `same_request` is False when the request id was used for other content.

    A child that nobody waits for any more is not stored: not created, and cancelled. Nor is one for which there is no
    room in its tree (`tree_full`), nor a start that a quota of its namespace refused (`refused`: "queued" or "rate").
    """

    run_id: bytes
    created: bool
    same_request: bool
    created_at: datetime
    state: int
    tree_full: bool = False
    refused: str = ""


_HINT_ARRAY = ", CAST(:hints AS bytea[])"

_CHILD_ARRAYS = """,
        CAST(:parents AS uuid[]), CAST(:await_keys AS text[]), CAST(:waits AS boolean[]), CAST(:depths AS int[]),
        CAST(:roots AS uuid[]), CAST(:tree_runs AS bigint[])"""

_WAITING = """waiting AS MATERIALIZED (
    SELECT a.run_id, a.key FROM unnest(CAST(:parents AS uuid[]), CAST(:await_keys AS text[])) AS p(run_id, key)
    JOIN run_await a ON a.run_id = p.run_id AND a.key = p.key AND NOT a.closed FOR SHARE OF a),
trees AS MATERIALIZED (
    SELECT t.root, t.most, count_tree(t.root, t.most) AS below
    FROM (SELECT root, min(most) AS most
          FROM unnest(CAST(:roots AS uuid[]), CAST(:tree_runs AS bigint[])) AS u(root, most)
          WHERE root IS NOT NULL GROUP BY root ORDER BY root) t),"""

# `place`: which of the children of its tree it is in this statement.
_PLACED = "(SELECT v.*, row_number() OVER (PARTITION BY v.root ORDER BY v.n) FROM "


def _children(*, hints: bool) -> str:
    return f"""WITH ORDINALITY AS v(run_id, namespace_id, definition_id, group_id, level, request_id, request_hash,
           trace_id, input, leg_nonce, claimant, leg_generation, created_ms{", hints" if hints else ""}, parent_run_id,
           await_key, waits, depth, root, tree_runs, n))"""


_WAITED_FOR = """
    WHERE (u.parent_run_id IS NULL
       OR EXISTS (SELECT 1 FROM waiting w WHERE w.run_id = u.parent_run_id AND w.key = u.await_key)
           AND EXISTS (SELECT 1 FROM trees t WHERE t.root = u.root AND t.below + u.place < t.most))"""


# Large values that the inputs name are used by the runs from the first moment: nobody drops them in between.
_USED = """,
used AS (
    INSERT INTO payload_use (run_id, namespace_id, sha256)
    SELECT i.run_id, i.namespace_id, p.sha256
    FROM unnest(CAST(:naming AS uuid[]), CAST(:named AS bytea[])) AS p(run_id, sha256)
    JOIN inserted i ON i.run_id = p.run_id
    ON CONFLICT DO NOTHING)"""


# Which starts go beyond a quota. A repeated one is none: it was counted the first time. Namespaces are asked in order,
# so that no two statements wait for each other.
_QUOTAS = """counted AS MATERIALIZED (
    SELECT c.run_id, c.namespace_id, row_number() OVER (PARTITION BY c.namespace_id ORDER BY c.n) AS place
    FROM unnest(CAST(:counted AS uuid[]), CAST(:counted_in AS text[]), CAST(:counted_as AS text[]))
         WITH ORDINALITY AS c(run_id, namespace_id, request_id, n)
    WHERE c.request_id IS NULL OR NOT EXISTS (
        SELECT 1 FROM run r WHERE r.namespace_id = c.namespace_id AND r.request_id = c.request_id)),
quotas AS MATERIALIZED (
    SELECT q.namespace_id, a.admitted, a.by_queue FROM (
        SELECT x.*, (SELECT count(*) FROM counted c WHERE c.namespace_id = x.namespace_id) AS wanted
        FROM unnest(CAST(:quota_of AS text[]), CAST(:quota_queued AS bigint[]), CAST(:quota_rate AS float8[]),
                    CAST(:quota_burst AS float8[])) AS x(namespace_id, queued, rate, burst)
        ORDER BY x.namespace_id) q,
    LATERAL admit_starts(q.namespace_id, q.wanted, q.queued, q.rate, q.burst) a),
refused AS MATERIALIZED (
    SELECT c.run_id, c.place > q.by_queue AS queued FROM counted c JOIN quotas q USING (namespace_id)
    WHERE c.place > q.admitted),"""

_ADMITTED = "NOT EXISTS (SELECT 1 FROM refused f WHERE f.run_id = u.run_id)"


def _statement(
    *, owned: bool, children: bool, references: bool = False, hints: bool = False, quotas: bool = False
) -> TextClause:
    """An insert of starts.

    Owned: fenced by the owner's session, no row at all when it has ended; else the runs wait for their owner. With
    children: those whose await is closed are left out, and an await that is open stays so until the commit, so that
    whoever closes it finds the child; and those for which their tree has no room. Trees are counted one after another,
    so no two statements use the same room. With references: the large values that inputs name are noted as used. With
    hints: what some of the runs ask of the queue is stored with them. With quotas: starts beyond them are left out.
    """
    return text(f"""
WITH {f"fence AS MATERIALIZED ({FENCE})," if owned else ""} {_WAITING if children else ""}
{_QUOTAS if quotas else ""}
moment AS MATERIALIZED (SELECT clock_timestamp() AS at),
inserted AS (
    INSERT INTO run (run_id, namespace_id, definition_id, group_id, state, level, request_id, request_hash, trace_id,
                     input, change, position, snapshot_position, leg, leg_nonce, claimant, leg_generation, losses,
                     cancel_requested, adopt, created_at, started_at
                     {", hints" if hints else ""}
                     {", parent_run_id, parent_key, depth, root_run_id" if children else ""})
    SELECT u.run_id, u.namespace_id, u.definition_id, u.group_id,
           CASE WHEN u.leg_nonce IS NULL THEN 1 ELSE 2 END, u.level, u.request_id, u.request_hash, u.trace_id, u.input,
           1, 0, 0, CASE WHEN u.leg_nonce IS NULL THEN 0 ELSE 1 END, u.leg_nonce, u.claimant, u.leg_generation,
           0, false, {"false" if owned else "true"}, to_timestamp(u.created_ms / 1000.0),
           CASE WHEN u.leg_nonce IS NULL THEN NULL ELSE moment.at END
           {", u.hints" if hints else ""}
           {", u.parent_run_id, CASE WHEN u.waits THEN u.await_key END, u.depth, u.root" if children else ""}
    FROM {"fence," if owned else ""} moment, {_PLACED if children else ""} unnest(
        CAST(:run_ids AS uuid[]), CAST(:namespaces AS text[]), CAST(:definitions AS bigint[]), CAST(:groups AS int[]),
        CAST(:levels AS int[]), CAST(:request_ids AS text[]), CAST(:request_hashes AS bytea[]),
        CAST(:trace_ids AS bytea[]), CAST(:inputs AS bytea[]), CAST(:nonces AS uuid[]), CAST(:claimants AS text[]),
        CAST(:generations AS bigint[]), CAST(:created AS bigint[]){_HINT_ARRAY if hints else ""}
        {_CHILD_ARRAYS if children else ""}
    ) {_children(hints=hints) if children else ""} AS u(run_id, namespace_id, definition_id, group_id, level,
           request_id, request_hash, trace_id, input, leg_nonce, claimant, leg_generation, created_ms
           {", hints" if hints else ""}
           {", parent_run_id, await_key, waits, depth, root, tree_runs, n, place" if children else ""})
    {_WAITED_FOR if children else ""} {("AND " if children else "WHERE ") + _ADMITTED if quotas else ""}
    ON CONFLICT (namespace_id, request_id) WHERE request_id IS NOT NULL DO NOTHING
    RETURNING run_id, namespace_id){_USED if references else ""}
SELECT {"(SELECT count(*) FROM fence)" if owned else "1"} AS held, (SELECT count(*) FROM inserted) AS inserted,
       (SELECT at FROM moment) AS at
       {", (SELECT jsonb_object_agg(root, below) FROM trees) AS trees" if children else ""}
       {", (SELECT jsonb_object_agg(run_id, queued) FROM refused) AS refused" if quotas else ""}
""")


_STATEMENTS = {
    key: _statement(owned=key[0], children=key[1], references=key[2], hints=key[3], quotas=key[4])
    for key in product((False, True), repeat=5)
}

# What earlier starts with the same request ids became; unique index (namespace_id, request_id).
FIND_REQUESTS = text("""
SELECT r.namespace_id, r.request_id, r.run_id, r.request_hash, r.created_at, r.state
FROM unnest(CAST(:namespaces AS text[]), CAST(:request_ids AS text[])) AS u(namespace_id, request_id)
JOIN run r ON r.namespace_id = u.namespace_id AND r.request_id = u.request_id
""")


def _parameters(runs: Sequence[NewRun]) -> dict[str, object]:
    return {
        "run_ids": columns.uuids([r.run_id for r in runs]),
        "namespaces": columns.texts([r.namespace for r in runs]),
        "definitions": columns.bigints([r.definition_id for r in runs]),
        "groups": columns.integers([r.group for r in runs]),
        "levels": columns.integers([r.level for r in runs]),
        "request_ids": columns.texts([r.request_id or None for r in runs]),
        "request_hashes": columns.byteas([r.request_hash for r in runs]),
        "trace_ids": columns.byteas([r.trace_id for r in runs]),
        "inputs": columns.byteas([r.input for r in runs]),
        "nonces": columns.uuids([r.leg_nonce for r in runs]),
        "claimants": columns.texts([r.claimant for r in runs]),
        "generations": columns.bigints([r.generation for r in runs]),
        "created": columns.bigints([created_ms(r.run_id) for r in runs]),
    }


def _parents(runs: Sequence[NewRun]) -> dict[str, object]:
    parents = [r.parent for r in runs]
    return {
        "parents": uuids([p.run_id if p else None for p in parents]),
        "await_keys": texts([p.await_key if p else None for p in parents]),
        "waits": bools([p is not None and p.waits for p in parents]),
        "depths": integers([p.depth if p else 0 for p in parents]),
        "roots": uuids([p.root if p else None for p in parents]),
        "tree_runs": integers([p.tree_runs if p else 0 for p in parents]),
    }


def _hints(runs: Sequence[NewRun]) -> dict[str, object]:
    """Empty when no run asks anything of the queue."""
    if all(r.hints is None for r in runs):
        return {}
    return {"hints": byteas([r.hints.to_json() if r.hints is not None else None for r in runs])}


def _quotas(runs: Sequence[NewRun], quotas: Mapping[str, Quota]) -> dict[str, object]:
    """Empty when no run can be refused."""
    counted = [r for r in runs if r.counted and r.namespace in quotas]
    if not counted:
        return {}
    named = sorted({r.namespace for r in counted})
    asked = [quotas[name] for name in named]
    return {
        "counted": uuids([r.run_id for r in counted]),
        "counted_in": texts([r.namespace for r in counted]),
        "counted_as": texts([r.request_id or None for r in counted]),
        "quota_of": texts(named),
        "quota_queued": texts([None if q.queued is None else str(q.queued) for q in asked]),
        "quota_rate": texts([None if q.rate is None else repr(q.rate) for q in asked]),
        "quota_burst": texts([repr(q.burst) for q in asked]),
    }


def _references(runs: Sequence[NewRun]) -> dict[str, object]:
    """Empty when no input holds a reference."""
    pairs = [
        (run.run_id, bytes.fromhex(reference.sha256)) for run in runs for reference in references_in_json(run.input)
    ]
    if not pairs:
        return {}
    return {"naming": uuids([run_id for run_id, _ in pairs]), "named": byteas([sha256 for _, sha256 in pairs])}


async def accept_runs(
    connection: AsyncConnection,
    runs: Sequence[NewRun],
    session: OwnerSession | None,
    quotas: Mapping[str, Quota] | None = None,
) -> list[Accepted] | None:
    """Store the runs in one commit and tell what each became, in order.

    With a session the insert is fenced; None is answered when the session has ended (nothing was stored then). Without
    one, the runs are stored for adoption and must not open legs. A run whose request id is in use is not stored again:
    the earlier one is answered. Safe to repeat with the same runs after a lost answer.
    """
    parameters = _parameters(runs)
    parented = any(r.parent is not None for r in runs)
    if parented:
        parameters |= _parents(runs)
    references = _references(runs)
    hints = _hints(runs)
    asked = _quotas(runs, quotas) if quotas else {}
    parameters |= references | hints | asked
    statement = _STATEMENTS[session is not None, parented, bool(references), bool(hints), bool(asked)]
    if session is not None:
        row = await execute_hot(connection, statement, parameters | session.parameters())
        if row.held == 0:
            return None
    else:
        row = await execute_hot(connection, statement, parameters)
    times: dict[int, datetime] = {}  # mostly one: ids of a batch are drawn at the same moment
    fresh = []
    for run in runs:
        made_ms = created_ms(run.run_id)
        made_at = times.get(made_ms)
        if made_at is None:
            made_at = times[made_ms] = datetime.fromtimestamp(made_ms / 1000, UTC)
        fresh.append(Accepted(run.run_id, True, True, made_at, _QUEUED if run.leg_nonce is None else _RUNNING))
    if row.inserted == len(runs):
        return fresh
    # Some request ids were in use: find out which, and what became of the starts that used them first.
    found = await connection.execute(
        FIND_REQUESTS,
        {
            "namespaces": texts([r.namespace for r in runs if r.request_id]),
            "request_ids": texts([r.request_id for r in runs if r.request_id]),
        },
    )
    stored = {(f.namespace_id, f.request_id): f for f in found}
    full = _without_room(runs, row.trees or {}) if parented else set()
    refused: dict[str, bool] = (row.refused or {}) if asked else {}
    answers = []
    for run, mine in zip(runs, fresh, strict=True):
        first = stored.get((run.namespace, run.request_id)) if run.request_id else None
        if first is None and run.parent is not None:
            answers.append(Accepted(run.run_id, False, True, mine.created_at, _CANCELLED, run.run_id in full))
        elif first is None and (queued := refused.get(str(UUID(bytes=run.run_id)))) is not None:
            why = "queued" if queued else "rate"
            answers.append(Accepted(run.run_id, False, True, mine.created_at, _CANCELLED, refused=why))
        elif first is None or first.run_id.bytes == run.run_id:
            answers.append(mine)
        else:
            same = bytes(first.request_hash) == run.request_hash
            answers.append(Accepted(first.run_id.bytes, False, same, first.created_at, first.state))
    return answers


def _without_room(runs: Sequence[NewRun], below: dict[str, int]) -> set[bytes]:
    """The children that the statement left out because their trees are full, if they were not there already."""
    places: dict[bytes, int] = {}
    full: set[bytes] = set()
    for run in runs:
        if run.parent is not None:
            root = run.parent.root
            place = places[root] = places.get(root, 0) + 1
            if below.get(str(UUID(bytes=root)), 0) + place >= run.parent.tree_runs:
                full.add(run.run_id)
    return full
