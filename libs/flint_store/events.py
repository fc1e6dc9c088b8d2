"""Events: stored before they are answered, matched with subscriptions after, kept for a while.

Nothing is missed, because both sides write first and look then: an event is committed, then the subscriptions are
read; a subscription is committed, then the events since its await was opened are read. At least one of them sees the
other; when both do, the message's key is the same. Events whose matching was cut short (`matched` is false) are found
by a sweep.

A run gets events in the order of their numbers (seq), as far as one was stored before the next was published:

- The matching of what arrives leaves an await that is not served yet to its catch-up, which locks the await, reads the
  events, inserts what it found in their order and marks the await served, all in one transaction (`begin_catch_up`,
  `flint_store.awaits.settle_opened`). The matching looks at such an await under a lock (`read_caught_up`). Either it
  comes second, waits for that transaction and reads the row anew: the await is served, and what is inserted now stands
  after what was caught up. Or it comes first and finds the await not served: the event was committed before, so that
  the statement by which the catch-up reads events, which begins after its lock, sees it.
- An event that is not matched yet may be in the hands of another scheduler. Whoever matches a later one matches it
  too, first (`read_earlier`); the one that comes second to an inbox waits for the first one's commit and inserts
  nothing.

The order of a namespace is (xact, seq). Followers read it only up to the oldest transaction that is still open, so that
they never pass an event whose commit is late.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from flint_store.arrays import byteas, integers, texts, uuids
from flint_store.awaits import OPEN_AWAITS, AwaitRow

__all__ = [
    "EventRow",
    "FollowedEvent",
    "Match",
    "NewEvent",
    "Shape",
    "Subscription",
    "begin_catch_up",
    "delete_old_events",
    "delete_unused_shapes",
    "find_matches",
    "known_namespaces",
    "last_place",
    "mark_matched",
    "parse_place",
    "put_events",
    "put_shapes",
    "put_subscriptions",
    "read_caught_up",
    "read_contents",
    "read_earlier",
    "read_events_since",
    "read_last_events",
    "read_place",
    "read_shapes",
    "read_unmatched",
    "remove_subscriptions",
    "still_unmatched",
]


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to store. `identity`: 16 bytes, a hash of its source and id; `content`: the CloudEvent, JSON."""

    namespace: str
    identity: bytes
    type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class EventRow:
    """A stored event."""

    seq: int
    namespace: str
    type: str
    content: bytes
    received_at: datetime


@dataclass(frozen=True, slots=True)
class FollowedEvent:
    """A stored event in the order of its namespace. `place`: where to go on after it."""

    content: bytes
    place: str


@dataclass(frozen=True, slots=True)
class Shape:
    """What many subscriptions compare. `type`: the exact type they ask for, or empty; `spec`: how, JSON."""

    namespace: str
    type: str
    shape: bytes
    spec: bytes


@dataclass(frozen=True, slots=True)
class Subscription:
    """One filter of an await. `match`: a hash of the values that the shape's parts are to have."""

    run_id: bytes
    await_key: str
    number: int
    shape: bytes
    match: bytes


@dataclass(frozen=True, slots=True)
class Match:
    """A subscription that an event may satisfy. `place`: the event's index in what was asked; `served`: the await has
    been caught up."""

    place: int
    run_id: bytes
    await_key: str
    served: bool


# A namespace that does not exist stores nothing. Repeats, also within the batch, are left out of the answer.
PUT_EVENTS = text("""
INSERT INTO event (namespace_id, identity, type, content)
SELECT e.namespace_id, e.identity, e.type, e.content
FROM unnest(CAST(:namespaces AS text[]), CAST(:identities AS bytea[]), CAST(:types AS text[]),
            CAST(:contents AS bytea[])) WITH ORDINALITY AS e(namespace_id, identity, type, content, place)
JOIN namespace n ON n.namespace_id = e.namespace_id
ORDER BY e.place
ON CONFLICT (namespace_id, identity) DO NOTHING
RETURNING seq, xact::text AS xact, namespace_id, identity, received_at
""")

KNOWN_NAMESPACES = text("SELECT namespace_id FROM namespace WHERE namespace_id = ANY(CAST(:namespaces AS text[]))")

READ_CONTENTS = text("""
SELECT e.identity, e.content FROM event e
WHERE e.namespace_id = :namespace AND e.identity = ANY(CAST(:identities AS bytea[]))
""")

# Partial index event_unmatched. Events whose publisher is still at it are left to it.
READ_UNMATCHED = text("""
SELECT e.seq, e.namespace_id, e.type, e.content, e.received_at FROM event e
WHERE NOT e.matched AND e.received_at < clock_timestamp() - make_interval(secs => :older_s)
ORDER BY e.seq LIMIT :limit
""")

# Partial index event_unmatched: what is under way now. Those of the asked ones that somebody has matched are left out.
READ_EARLIER = text("""
SELECT e.seq, e.namespace_id, e.type, e.content, e.received_at FROM event e
WHERE NOT e.matched AND e.seq <= :seq AND e.namespace_id = ANY(CAST(:namespaces AS text[]))
ORDER BY e.seq LIMIT :limit
""")

# By primary key.
STILL_UNMATCHED = text("SELECT e.seq FROM event e WHERE e.seq = ANY(CAST(:seqs AS bigint[])) AND NOT e.matched")

MARK_MATCHED = text("UPDATE event SET matched = true WHERE seq = ANY(CAST(:seqs AS bigint[])) AND NOT matched")

# Index event_received; seq orders what came at the same moment.
READ_SINCE = text("""
SELECT e.seq, e.namespace_id, e.type, e.content, e.received_at FROM event e
WHERE e.namespace_id = :namespace AND e.received_at >= CAST(:since AS timestamptz)
  AND (e.received_at, e.seq) > (CAST(:after_at AS timestamptz), :after_seq)
  AND (:any_type OR e.type = ANY(CAST(:types AS text[])))
ORDER BY e.received_at, e.seq LIMIT :limit
""")

# The newest entries of each run, by primary key.
READ_LAST_EVENTS = text("""
SELECT r.run_id, e.events FROM unnest(CAST(:run_ids AS uuid[])) AS r(run_id)
CROSS JOIN LATERAL (
    SELECT x.events FROM run_entry x WHERE x.run_id = r.run_id ORDER BY x.index DESC LIMIT :limit) AS e
""")

# Index event_order.
READ_PLACE = text("""
SELECT e.seq, e.xact::text AS xact, e.content FROM event e
WHERE e.namespace_id = :namespace AND (e.xact, e.seq) > (CAST(:xact AS xid8), :seq)
  AND e.xact < pg_snapshot_xmin(pg_current_snapshot())
ORDER BY e.xact, e.seq LIMIT :limit
""")

LAST_PLACE = text("""
SELECT e.seq, e.xact::text AS xact FROM event e
WHERE e.namespace_id = :namespace AND e.xact < pg_snapshot_xmin(pg_current_snapshot())
ORDER BY e.xact DESC, e.seq DESC LIMIT 1
""")

# By primary key, oldest first. Schedulers share the work: rows that another one deletes are passed over.
DELETE_OLD = text("""
WITH old AS MATERIALIZED (
    SELECT e.seq, e.received_at, e.matched FROM event e ORDER BY e.seq LIMIT :limit FOR UPDATE SKIP LOCKED)
DELETE FROM event e USING old WHERE e.seq = old.seq AND old.matched
    AND old.received_at < clock_timestamp() - make_interval(secs => :keep_s)
""")

READ_SHAPES = text("""
SELECT s.namespace_id, s.type, s.shape, s.spec
FROM unnest(CAST(:namespaces AS text[]), CAST(:types AS text[])) AS t(namespace_id, type)
JOIN event_shape s ON s.namespace_id = t.namespace_id AND s.type = t.type
""")

# A row that is there is locked, so that nobody deletes it before this commit; used_at is written now and then only.
PUT_SHAPES = text("""
INSERT INTO event_shape AS known (namespace_id, type, shape, spec)
SELECT DISTINCT ON (u.namespace_id, u.type, u.shape) u.namespace_id, u.type, u.shape, u.spec
FROM unnest(CAST(:namespaces AS text[]), CAST(:types AS text[]), CAST(:shapes AS bytea[]), CAST(:specs AS bytea[]))
     AS u(namespace_id, type, shape, spec)
ORDER BY u.namespace_id, u.type, u.shape
ON CONFLICT (namespace_id, type, shape) DO UPDATE SET used_at = clock_timestamp()
WHERE known.used_at < clock_timestamp() - interval '10 minutes'
""")

# An hour is far longer than a subscription can come after its shape.
DELETE_SHAPES = text("""
DELETE FROM event_shape s WHERE s.used_at < clock_timestamp() - interval '1 hour'
AND NOT EXISTS (SELECT FROM event_subscription u WHERE u.namespace_id = s.namespace_id AND u.shape = s.shape)
""")

# Only while the await is open: the closing waits for this commit, and its agent then finds the rows.
PUT_SUBSCRIPTIONS = text(f"""
WITH open AS MATERIALIZED ({OPEN_AWAITS}),
put AS (
    INSERT INTO event_subscription (run_id, await_key, number, namespace_id, shape, match)
    SELECT o.run_id, o.key, s.number, o.namespace_id, s.shape, s.match
    FROM open o JOIN unnest(CAST(:run_ids AS uuid[]), CAST(:keys AS text[]), CAST(:numbers AS int[]),
                            CAST(:shapes AS bytea[]), CAST(:matches AS bytea[]))
        AS s(run_id, key, number, shape, match) ON s.run_id = o.run_id AND s.key = o.key
    ON CONFLICT (run_id, await_key, number) DO NOTHING)
SELECT o.run_id, o.key, a.recorded_at FROM open o JOIN run_await a ON a.run_id = o.run_id AND a.key = o.key
""")

REMOVE_SUBSCRIPTIONS = text("""
DELETE FROM event_subscription s USING unnest(CAST(:run_ids AS uuid[]), CAST(:keys AS text[])) AS c(run_id, key)
WHERE s.run_id = c.run_id AND s.await_key = c.key
""")

# Index event_subscription_match: nested loops over the asked pairs.
FIND_MATCHES = text("""
SELECT DISTINCT p.place, s.run_id, s.await_key, a.served
FROM unnest(CAST(:places AS int[]), CAST(:namespaces AS text[]), CAST(:shapes AS bytea[]), CAST(:matches AS bytea[]))
     AS p(place, namespace_id, shape, match)
JOIN event_subscription s ON s.namespace_id = p.namespace_id AND s.shape = p.shape AND s.match = p.match
    AND (s.run_id, s.await_key) > (CAST(:after_run AS uuid), :after_key)
JOIN run_await a ON a.run_id = s.run_id AND a.key = s.await_key AND NOT a.closed
ORDER BY s.run_id, s.await_key, p.place LIMIT :limit
""")

# The lock makes it wait for a catch-up that is under way; `served` is then what that one committed. No condition on it
# here: rows that it excludes in the statement's snapshot would not be waited for.
READ_CAUGHT_UP = text("""
WITH locked AS MATERIALIZED (
    SELECT a.run_id, a.key, a.served FROM run_await a
    JOIN unnest(CAST(:run_ids AS uuid[]), CAST(:keys AS text[])) AS s(run_id, key)
        ON s.run_id = a.run_id AND s.key = a.key
    ORDER BY a.run_id, a.key FOR SHARE OF a)
SELECT l.run_id, l.key FROM locked l WHERE l.served
""")

# In one order, so that two schedulers wait for each other in turn. What one of them served is left out afterwards.
BEGIN_CATCH_UP = text("""
WITH locked AS MATERIALIZED (
    SELECT a.run_id, a.key, a.served, a.closed FROM run_await a
    JOIN unnest(CAST(:run_ids AS uuid[]), CAST(:keys AS text[])) AS s(run_id, key)
        ON s.run_id = a.run_id AND s.key = a.key
    ORDER BY a.run_id, a.key FOR NO KEY UPDATE OF a)
SELECT l.run_id, l.key FROM locked l WHERE NOT l.served AND NOT l.closed
""")

_ORIGIN = "0.0"


async def put_events(connection: AsyncConnection, events: Sequence[NewEvent]) -> tuple[dict[bytes, EventRow], str]:
    """Store events that are not there yet, in this order; one commit.

    Answers the new ones by namespace and identity (joined by a NUL), and the place of the last.
    """
    rows = await connection.execute(
        PUT_EVENTS,
        {
            "namespaces": texts([e.namespace for e in events]),
            "identities": byteas([e.identity for e in events]),
            "types": texts([e.type for e in events]),
            "contents": byteas([e.content for e in events]),
        },
    )
    sent: dict[bytes, NewEvent] = {}
    for event in events:
        sent.setdefault(event.namespace.encode() + b"\0" + event.identity, event)  # the first of a repeat is stored
    stored: dict[bytes, EventRow] = {}
    place = _ORIGIN
    for row in rows:
        key = row.namespace_id.encode() + b"\0" + bytes(row.identity)
        event = sent[key]
        stored[key] = EventRow(row.seq, event.namespace, event.type, event.content, row.received_at)
        place = f"{row.xact}.{row.seq}"
    return stored, place


async def known_namespaces(connection: AsyncConnection, namespaces: Iterable[str]) -> set[str]:
    """Those of the namespaces that exist."""
    rows = await connection.execute(KNOWN_NAMESPACES, {"namespaces": texts(namespaces)})
    return {row.namespace_id for row in rows}


async def read_contents(connection: AsyncConnection, namespace: str, identities: Iterable[bytes]) -> dict[bytes, bytes]:
    """The stored events with these identities."""
    rows = await connection.execute(READ_CONTENTS, {"namespace": namespace, "identities": byteas(identities)})
    return {bytes(r.identity): bytes(r.content) for r in rows}


async def read_unmatched(connection: AsyncConnection, older_s: float, limit: int) -> list[EventRow]:
    """Events whose matching was cut short."""
    rows = await connection.execute(READ_UNMATCHED, {"older_s": older_s, "limit": limit})
    return [EventRow(r.seq, r.namespace_id, r.type, bytes(r.content), r.received_at) for r in rows]


async def mark_matched(connection: AsyncConnection, seqs: Iterable[int]) -> None:
    """Every run that listens for these events has them."""
    await connection.execute(MARK_MATCHED, {"seqs": integers(seqs)})


async def read_events_since(
    connection: AsyncConnection,
    namespace: str,
    since: datetime,
    types: Iterable[str] | None,
    after: EventRow | None,
    limit: int,
) -> list[EventRow]:
    """Events received at or after a moment, of these types (None: of all), after a row of the page before."""
    rows = await connection.execute(
        READ_SINCE,
        {
            "namespace": namespace,
            "since": since,
            "after_at": after.received_at if after is not None else since,
            "after_seq": after.seq if after is not None else -1,
            "any_type": types is None,
            "types": texts(types or ()),
            "limit": limit,
        },
    )
    return [EventRow(r.seq, r.namespace_id, r.type, bytes(r.content), r.received_at) for r in rows]


async def read_last_events(
    connection: AsyncConnection, run_ids: Iterable[bytes], limit: int
) -> list[tuple[bytes, bytes]]:
    """What the newest entries of these runs recorded, in the core's encoding: at most `limit` entries of each run."""
    rows = await connection.execute(READ_LAST_EVENTS, {"run_ids": uuids(run_ids), "limit": limit})
    return [(r.run_id.bytes, bytes(r.events)) for r in rows]


def parse_place(place: str) -> tuple[str, int] | None:
    """The transaction and number in a place; None when the text is none."""
    found = re.fullmatch(r"(\d{1,19})\.(\d{1,18})", place)
    return (found[1], int(found[2])) if found else None


async def read_place(connection: AsyncConnection, namespace: str, place: str, limit: int) -> list[FollowedEvent]:
    """Events after a place, in the namespace's order. Raises ValueError for a text that is no place."""
    parsed = parse_place(place)
    if parsed is None:
        raise ValueError(f"not a place: {place[:40]}")
    rows = await connection.execute(
        READ_PLACE, {"namespace": namespace, "xact": parsed[0], "seq": parsed[1], "limit": limit}
    )
    return [FollowedEvent(bytes(r.content), f"{r.xact}.{r.seq}") for r in rows]


async def last_place(connection: AsyncConnection, namespace: str) -> str:
    """The place of the newest event that followers see."""
    row = (await connection.execute(LAST_PLACE, {"namespace": namespace})).one_or_none()
    return f"{row.xact}.{row.seq}" if row is not None else _ORIGIN


async def delete_old_events(connection: AsyncConnection, keep_s: float, limit: int) -> int:
    """Delete some of the matched events that were kept long enough; answers how many."""
    return (await connection.execute(DELETE_OLD, {"keep_s": keep_s, "limit": limit})).rowcount


async def read_shapes(connection: AsyncConnection, kinds: Iterable[tuple[str, str]]) -> list[Shape]:
    """Shapes of these (namespace, type) pairs."""
    pairs = list(kinds)
    rows = await connection.execute(
        READ_SHAPES, {"namespaces": texts([n for n, _ in pairs]), "types": texts([t for _, t in pairs])}
    )
    return [Shape(r.namespace_id, r.type, bytes(r.shape), bytes(r.spec)) for r in rows]


async def put_shapes(connection: AsyncConnection, shapes: Sequence[Shape]) -> None:
    """Make sure that these shapes are there, and stay for the next hour."""
    await connection.execute(
        PUT_SHAPES,
        {
            "namespaces": texts([s.namespace for s in shapes]),
            "types": texts([s.type for s in shapes]),
            "shapes": byteas([s.shape for s in shapes]),
            "specs": byteas([s.spec for s in shapes]),
        },
    )


async def delete_unused_shapes(connection: AsyncConnection) -> int:
    """Delete shapes that no subscription has; answers how many."""
    return (await connection.execute(DELETE_SHAPES)).rowcount


async def put_subscriptions(
    connection: AsyncConnection, awaits: Sequence[AwaitRow], subscriptions: Sequence[Subscription]
) -> dict[tuple[bytes, str], datetime]:
    """Subscribe awaits that are still open; answers when each (run, key) was recorded. Their shapes must be there."""
    rows = await connection.execute(
        PUT_SUBSCRIPTIONS,
        {
            "await_run_ids": uuids([a.run_id for a in awaits]),
            "await_keys": texts([a.key for a in awaits]),
            "run_ids": uuids([s.run_id for s in subscriptions]),
            "keys": texts([s.await_key for s in subscriptions]),
            "numbers": integers([s.number for s in subscriptions]),
            "shapes": byteas([s.shape for s in subscriptions]),
            "matches": byteas([s.match for s in subscriptions]),
        },
    )
    return {(r.run_id.bytes, r.key): r.recorded_at for r in rows}


async def remove_subscriptions(connection: AsyncConnection, awaits: Sequence[AwaitRow]) -> None:
    """Unsubscribe awaits."""
    await connection.execute(
        REMOVE_SUBSCRIPTIONS,
        {"run_ids": uuids([a.run_id for a in awaits]), "keys": texts([a.key for a in awaits])},
    )


async def find_matches(
    connection: AsyncConnection,
    asked: Sequence[tuple[int, str, bytes, bytes]],
    limit: int,
    after: tuple[bytes, str] = (bytes(16), ""),
) -> list[Match]:
    """Subscriptions that have the asked (place, namespace, shape, match), by run and await after `after`."""
    rows = await connection.execute(
        FIND_MATCHES,
        {
            "places": integers([a[0] for a in asked]),
            "namespaces": texts([a[1] for a in asked]),
            "shapes": byteas([a[2] for a in asked]),
            "matches": byteas([a[3] for a in asked]),
            "after_run": after[0].hex(),
            "after_key": after[1],
            "limit": limit,
        },
    )
    return [Match(r.place, r.run_id.bytes, r.await_key, r.served) for r in rows]


async def read_earlier(connection: AsyncConnection, namespaces: Iterable[str], seq: int, limit: int) -> list[EventRow]:
    """The first events up to a number, in these namespaces, that nobody has matched yet."""
    rows = await connection.execute(READ_EARLIER, {"namespaces": texts(namespaces), "seq": seq, "limit": limit})
    return [EventRow(r.seq, r.namespace_id, r.type, bytes(r.content), r.received_at) for r in rows]


async def still_unmatched(connection: AsyncConnection, seqs: Iterable[int]) -> set[int]:
    """Those of the events that nobody has matched meanwhile. Who has them may have used them up already."""
    rows = await connection.execute(STILL_UNMATCHED, {"seqs": integers(seqs)})
    return {r.seq for r in rows}


async def read_caught_up(connection: AsyncConnection, awaits: Iterable[tuple[bytes, str]]) -> set[tuple[bytes, str]]:
    """Those of these (run, key) that are caught up; waits for catch-ups that are under way."""
    rows = await connection.execute(READ_CAUGHT_UP, _pairs(awaits))
    return {(r.run_id.bytes, r.key) for r in rows}


async def begin_catch_up(connection: AsyncConnection, awaits: Iterable[tuple[bytes, str]]) -> set[tuple[bytes, str]]:
    """Lock awaits until the transaction ends; answers those (run, key) that are open and nobody caught up yet."""
    rows = await connection.execute(BEGIN_CATCH_UP, _pairs(awaits))
    return {(r.run_id.bytes, r.key) for r in rows}


def _pairs(awaits: Iterable[tuple[bytes, str]]) -> dict[str, object]:
    pairs = list(awaits)
    return {"run_ids": uuids([run_id for run_id, _ in pairs]), "keys": texts([key for _, key in pairs])}
