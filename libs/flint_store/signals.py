"""Signals: events for one run, kept until a `listen` of the run takes one.

    stored ──▶ offered to one open await at a time (a message in the run's inbox) ──▶ taken: the fold says so
       ▲                                     └── that await closes without taking it
       └─────────────────────────────────────────┘

So each signal is taken at most once, and one that comes before its `listen` waits for it. Rows stay for as long as the
run does: the same id again is the same signal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from flint_core.effects import SIGNAL_PREFIX
from flint_store.arrays import integers, texts, uuids
from flint_store.awaits import AwaitRow, NewMessage, Target, put_messages
from flint_store.commands import RunFacts

__all__ = [
    "OpenAwait",
    "Signal",
    "is_known",
    "is_taken",
    "offer_signals",
    "put_signal",
    "return_signals",
    "runs_with_signals",
]

_MOST_WAITING = 1_000
_EVENTS = 1  # flint.journal.v1.AwaitOpened.KIND_EVENTS


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal that nobody has."""

    run_id: bytes
    number: int
    name: str
    event: bytes


@dataclass(frozen=True, slots=True)
class OpenAwait:
    """A `listen` that a run has open. `request`: JSON."""

    run_id: bytes
    key: str
    namespace: str
    request: bytes


PUT = text("""
INSERT INTO run_signal (run_id, signal_id, group_id, name, event)
SELECT CAST(:run_id AS uuid), :signal_id, :group, :name, :event
WHERE (SELECT count(*) FROM (SELECT 1 FROM run_signal s WHERE s.run_id = CAST(:run_id AS uuid)
                             AND s.taken_at IS NULL LIMIT :most) waiting) < :most
ON CONFLICT (run_id, signal_id) DO NOTHING RETURNING seq
""")
KNOWN = text("SELECT taken_at IS NOT NULL AS taken FROM run_signal WHERE run_id = :run_id AND signal_id = :signal_id")

# Two that offer the same run's signals take turns.
LOCK_FREE = text("""
SELECT run_id, seq, name, event FROM run_signal
WHERE run_id = ANY(CAST(:run_ids AS uuid[])) AND await_key IS NULL AND taken_at IS NULL
ORDER BY run_id, seq LIMIT :limit FOR UPDATE
""")
LOCK_AWAITS = text("""
SELECT run_id, key, namespace_id, request FROM run_await
WHERE run_id = ANY(CAST(:run_ids AS uuid[])) AND kind = :kind AND NOT closed
ORDER BY run_id, opened_at, key FOR SHARE
""")
NOTE = text("""
UPDATE run_signal s SET await_key = u.await_key, looked = true
FROM unnest(CAST(:run_ids AS uuid[]), CAST(:numbers AS bigint[]), CAST(:keys AS text[])) AS u(run_id, seq, await_key)
WHERE s.run_id = u.run_id AND s.seq = u.seq
""")
RETURN = text("""
UPDATE run_signal s SET await_key = NULL, looked = false
FROM unnest(CAST(:run_ids AS uuid[]), CAST(:keys AS text[])) AS u(run_id, await_key)
WHERE s.run_id = u.run_id AND s.await_key = u.await_key AND s.taken_at IS NULL
RETURNING s.run_id
""")
WITH_SIGNALS = text("""
SELECT DISTINCT run_id FROM run_signal
WHERE run_id = ANY(CAST(:run_ids AS uuid[])) AND await_key IS NULL AND taken_at IS NULL
""")


async def put_signal(
    connection: AsyncConnection, run: RunFacts, signal_id: str, name: str, event: bytes
) -> bool | None:
    """Store a signal; False when the run had one with this id, None when it has too many that it did not take."""
    identity = UUID(bytes=run.run_id)
    parameters = {"run_id": identity, "signal_id": signal_id, "group": run.group, "name": name, "event": event}
    if (await connection.execute(PUT, parameters | {"most": _MOST_WAITING})).one_or_none() is not None:
        return True
    known = await connection.execute(KNOWN, {"run_id": identity, "signal_id": signal_id})
    return False if known.one_or_none() is not None else None


async def is_known(connection: AsyncConnection, run_id: bytes, signal_id: str) -> bool:
    """Whether the run was sent a signal with this id."""
    found = await connection.execute(KNOWN, {"run_id": UUID(bytes=run_id), "signal_id": signal_id})
    return found.one_or_none() is not None


async def is_taken(connection: AsyncConnection, run_id: bytes, signal_id: str) -> bool:
    """Whether the run has recorded that it took the signal."""
    row = (await connection.execute(KNOWN, {"run_id": UUID(bytes=run_id), "signal_id": signal_id})).one_or_none()
    return row is not None and bool(row.taken)


async def runs_with_signals(connection: AsyncConnection, run_ids: Sequence[bytes]) -> list[bytes]:
    """Those of these runs that have signals to offer."""
    rows = await connection.execute(WITH_SIGNALS, {"run_ids": uuids(run_ids)})
    return [row.run_id.bytes for row in rows]


async def return_signals(connection: AsyncConnection, rows: Sequence[AwaitRow]) -> list[bytes]:
    """These awaits are closed: what they had and did not take is free again. Answers the runs."""
    found = await connection.execute(
        RETURN, {"run_ids": uuids([r.run_id for r in rows]), "keys": texts([r.key for r in rows])}
    )
    return list({row.run_id.bytes for row in found})


async def offer_signals(
    connection: AsyncConnection,
    run_ids: Sequence[bytes],
    choose: Callable[[Signal, Sequence[OpenAwait]], OpenAwait | None],
    limit: int,
) -> tuple[list[Target], bool]:
    """Give free signals of these runs to awaits that may take them, within one transaction.

    Answers whom to nudge, and whether there may be more. `choose`: which of the run's awaits gets a signal, if any.
    """
    rows = (await connection.execute(LOCK_FREE, {"run_ids": uuids(run_ids), "limit": limit})).all()
    signals = [Signal(r.run_id.bytes, r.seq, r.name, bytes(r.event)) for r in rows]
    if not signals:
        return [], False
    awaits: dict[bytes, list[OpenAwait]] = {}
    names = {"run_ids": uuids({s.run_id for s in signals}), "kind": _EVENTS}
    for row in await connection.execute(LOCK_AWAITS, names):
        found = OpenAwait(row.run_id.bytes, row.key, row.namespace_id, bytes(row.request))
        awaits.setdefault(found.run_id, []).append(found)
    given = [(signal, choose(signal, awaits.get(signal.run_id, ()))) for signal in signals]
    messages = [
        NewMessage(s.run_id, f"{SIGNAL_PREFIX}{s.number}/{a.key}", a.key, s.event) for s, a in given if a is not None
    ]
    targets = await put_messages(connection, messages) if messages else []
    await connection.execute(
        NOTE,
        {
            "run_ids": uuids([s.run_id for s, _ in given]),
            "numbers": integers([s.number for s, _ in given]),
            "keys": texts([a.key if a is not None else None for _, a in given]),
        },
    )
    return targets, len(signals) == limit and bool(messages)
