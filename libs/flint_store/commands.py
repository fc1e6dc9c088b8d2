"""Commands for runs: rows in their inboxes, written for many runs in one transaction.

A pause and a resume undo one another: storing one takes away the other while nobody has served it, so the later one
counts. A level is also written to the run's row at once, where a later owner reads it. A reset has a key of its
generation: a second one while the first is under way is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from flint_store.arrays import byteas, texts, uuids

__all__ = [
    "CommandRow",
    "Outcome",
    "RunFacts",
    "Verb",
    "delete_commands",
    "lock_runs",
    "put_commands",
    "read_commands",
    "set_level",
]

_ENDED = (4, 5, 6)  # flint.runs.v1.Run.State
_PAUSED = 7


class Verb(StrEnum):
    """What is asked of a run; the kind of its inbox row."""

    CANCEL = "cancel"
    TERMINATE = "terminate"
    PAUSE = "pause"
    RESUME = "resume"
    LEVEL = "level"
    RESET = "reset"


class Outcome(StrEnum):
    """What became of a command."""

    STORED = "stored"
    NOT_FOUND = "not found"
    ENDED = "ended"
    NOT_PAUSED = "not paused"
    ENDING = "ending"
    UNDER_WAY = "under way"


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run as it stands, and what is asked of it already. It stays so until the transaction ends."""

    run_id: bytes
    group: int
    state: int
    cancel_requested: bool
    reset: int
    position: int
    asked: frozenset[str]  # kinds of its commands

    @property
    def ended(self) -> bool:
        """Whether it is in a terminal state."""
        return self.state in _ENDED


@dataclass(frozen=True, slots=True)
class CommandRow:
    """One command that nobody has carried out yet."""

    key: str
    kind: str
    payload: bytes


# Primary keys, in the order of the ids: two that lock the same runs do not wait for each other in a circle.
LOCK_RUNS = text("""
SELECT r.run_id, r.group_id, r.state, r.cancel_requested, COALESCE(r.reset, 0) AS reset, r.position,
       ARRAY(SELECT i.kind FROM inbox i WHERE i.run_id = r.run_id AND i.await_key IS NULL) AS asked
FROM run r
WHERE r.run_id = ANY(CAST(:run_ids AS uuid[])) AND r.namespace_id = :namespace
ORDER BY r.run_id FOR SHARE OF r
""")

PUT = text("""
INSERT INTO inbox (run_id, key, group_id, kind, payload, created_at)
SELECT u.run_id, u.key, r.group_id, :kind, u.payload, clock_timestamp()
FROM unnest(CAST(:run_ids AS uuid[]), CAST(:keys AS text[]), CAST(:payloads AS bytea[])) AS u(run_id, key, payload)
JOIN run r ON r.run_id = u.run_id
ON CONFLICT (run_id, key) DO UPDATE SET payload = EXCLUDED.payload WHERE inbox.kind = 'level'
""")

TAKE_AWAY = text("DELETE FROM inbox WHERE run_id = ANY(CAST(:run_ids AS uuid[])) AND key = :key")

SET_LEVEL = text("UPDATE run SET level = :level WHERE run_id = ANY(CAST(:run_ids AS uuid[])) AND level <> :level")

# What is asked of these runs, in order of arrival; messages for awaits are not among it.
READ = text("""
SELECT i.run_id, i.key, i.kind, i.payload FROM inbox i
WHERE i.run_id = ANY(CAST(:run_ids AS uuid[])) AND i.await_key IS NULL ORDER BY i.run_id, i.seq
""")

# A command that was replaced meanwhile stays.
DELETE = text("""
DELETE FROM inbox i
USING unnest(CAST(:run_ids AS uuid[]), CAST(:keys AS text[]), CAST(:payloads AS bytea[])) AS d(run_id, key, payload)
WHERE i.run_id = d.run_id AND i.key = d.key AND i.payload = d.payload
""")


async def lock_runs(connection: AsyncConnection, namespace: str, run_ids: Sequence[bytes]) -> dict[bytes, RunFacts]:
    """These runs of the namespace as they stand, held so until the transaction ends; missing ones are left out."""
    rows = await connection.execute(LOCK_RUNS, {"namespace": namespace, "run_ids": uuids(sorted(run_ids))})
    return {
        r.run_id.bytes: RunFacts(
            r.run_id.bytes, r.group_id, r.state, r.cancel_requested, r.reset, r.position, frozenset(r.asked)
        )
        for r in rows
    }


def judge(facts: RunFacts | None, verb: Verb) -> Outcome:
    """Whether the command can be stored for the run."""
    if facts is None:
        return Outcome.NOT_FOUND
    if facts.ended:
        return Outcome.STORED if verb is Verb.RESET else Outcome.ENDED
    ending = facts.cancel_requested or Verb.CANCEL in facts.asked or Verb.TERMINATE in facts.asked
    if ending and verb in (Verb.PAUSE, Verb.RESUME, Verb.RESET):
        return Outcome.ENDING
    if verb is Verb.RESUME and facts.state != _PAUSED and not facts.asked & {Verb.PAUSE, Verb.RESUME}:
        return Outcome.NOT_PAUSED
    return Outcome.STORED


async def put_commands(
    connection: AsyncConnection, known: dict[bytes, RunFacts], verb: Verb, payloads: dict[bytes, bytes]
) -> dict[bytes, Outcome]:
    """Store a command for each of these runs (`payloads`: what goes with it), as far as it can be.

    Within the transaction that locked them. The same command again changes nothing.
    """
    outcomes = {run_id: judge(known.get(run_id), verb) for run_id in payloads}
    if verb is Verb.RESET:
        for run_id in [r for r, outcome in outcomes.items() if outcome is Outcome.STORED]:
            if Verb.RESET in known[run_id].asked:
                outcomes[run_id] = await _same_reset(connection, run_id, payloads[run_id])
    stored = [r for r, outcome in outcomes.items() if outcome is Outcome.STORED]
    if not stored:
        return outcomes
    if verb in (Verb.PAUSE, Verb.RESUME):
        other = Verb.RESUME if verb is Verb.PAUSE else Verb.PAUSE
        await connection.execute(TAKE_AWAY, {"run_ids": uuids(stored), "key": other.value})
    if verb is Verb.LEVEL:
        for level in {payloads[r] for r in stored}:
            alike = [r for r in stored if payloads[r] == level]
            await set_level(connection, alike, int(level))
    await connection.execute(
        PUT,
        {
            "kind": verb.value,
            "run_ids": uuids(stored),
            "keys": texts([verb.value for _ in stored]),
            "payloads": byteas([payloads[r] for r in stored]),
        },
    )
    return outcomes


async def set_level(connection: AsyncConnection, run_ids: Sequence[bytes], level: int) -> None:
    """Write the level into the runs' rows: no other commit changes that column."""
    await connection.execute(SET_LEVEL, {"run_ids": uuids(run_ids), "level": level})


async def _same_reset(connection: AsyncConnection, run_id: bytes, payload: bytes) -> Outcome:
    found = (await read_commands(connection, [run_id])).get(run_id, [])
    wanted = orjson.loads(payload)["kept"]
    same = any(row.kind == Verb.RESET and orjson.loads(row.payload)["kept"] == wanted for row in found)
    return Outcome.STORED if same else Outcome.UNDER_WAY


async def read_commands(connection: AsyncConnection, run_ids: Sequence[bytes]) -> dict[bytes, list[CommandRow]]:
    """What is asked of these runs, in order of arrival."""
    found: dict[bytes, list[CommandRow]] = {}
    for row in await connection.execute(READ, {"run_ids": uuids(run_ids)}):
        found.setdefault(row.run_id.bytes, []).append(CommandRow(row.key, row.kind, bytes(row.payload)))
    return found


async def delete_commands(connection: AsyncConnection, rows: Sequence[tuple[bytes, CommandRow]]) -> None:
    """These commands were carried out, or have no effect any more."""
    await connection.execute(
        DELETE,
        {
            "run_ids": uuids([run_id for run_id, _ in rows]),
            "keys": texts([row.key for _, row in rows]),
            "payloads": byteas([row.payload for _, row in rows]),
        },
    )
