"""Questions that tests ask PostgreSQL about what Flint recorded. Reads only."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_ops.config import PostgresSettings
from flint_store.engine import create_engine, fetch

__all__ = ["BLOCKED", "YIELDED", "Record", "Recorded"]

BLOCKED, YIELDED = 4, 5
"""`run_entry.end_kind`."""


@dataclass(frozen=True)
class Recorded:
    """One recorded call."""

    run: str
    step: str
    recorded_at: float
    leg: int
    worker: str


class Record:
    """Use from one event loop; `close` at the end."""

    def __init__(self, settings: PostgresSettings) -> None:
        self._engine: AsyncEngine = create_engine(settings, "reading", pool_size=3)

    async def close(self) -> None:
        """Closes the connections."""
        await self._engine.dispose()

    async def rows(self, statement: str, **values: object) -> list[tuple[object, ...]]:
        return [tuple(row) for row in await fetch(self._engine, text(statement), values)]

    async def one(self, statement: str, **values: object) -> object:
        return (await self.rows(statement, **values))[0][0]

    async def number(self, statement: str, **values: object) -> int:
        return int(str(await self.one(statement, **values)))

    async def terms(self) -> dict[int, int]:
        return dict(await self.rows("SELECT group_id, term FROM shard_group"))  # type: ignore[misc]

    async def sessions(self) -> dict[int, str]:
        """The live session that holds each group; groups without one are missing."""
        found = await self.rows(
            "SELECT group_id, session_id::text FROM shard_group JOIN owner_session USING (session_id) "
            "WHERE ended_at IS NULL"
        )
        return {int(str(group)): str(session) for group, session in found}

    async def generation(self) -> int:
        """Of the journal."""
        return await self.number("SELECT journal_generation FROM cluster")

    async def owners(self) -> dict[int, str]:
        """The scheduler that owns each group now."""
        found = await self.rows(
            "SELECT g.group_id, s.scheduler_id FROM shard_group g JOIN owner_session s USING (session_id) "
            "WHERE s.ended_at IS NULL"
        )
        return {int(str(group)): str(scheduler) for group, scheduler in found}

    async def groups_of(self, scheduler: str) -> set[int]:
        found = await self.rows(
            "SELECT g.group_id FROM shard_group g JOIN owner_session s USING (session_id) "
            "WHERE s.scheduler_id = :s AND s.ended_at IS NULL",
            s=scheduler,
        )
        return {int(str(row[0])) for row in found}

    async def open_legs(self) -> dict[str, list[str]]:
        """Runs with an open leg, by claimant."""
        found: dict[str, list[str]] = defaultdict(list)
        for claimant, run in await self.rows("SELECT claimant, run_id::text FROM run WHERE leg_nonce IS NOT NULL"):
            found[str(claimant)].append(str(run))
        return found

    async def open_legs_of(self, groups: set[int]) -> set[str]:
        """Runs of these groups with an open leg."""
        found = await self.rows("SELECT group_id, run_id::text FROM run WHERE leg_nonce IS NOT NULL")
        return {str(run) for group, run in found if int(str(group)) in groups}

    async def legs(self) -> dict[str, int]:
        """Leg numbers by run."""
        return {str(r): int(str(n)) for r, n in await self.rows("SELECT run_id::text, leg FROM run")}

    async def legs_that_ended(self, end_kind: int) -> set[str]:
        """Runs that have an entry with this end."""
        found = await self.rows("SELECT run_id::text FROM run_entry WHERE end_kind = :k", k=end_kind)
        return {str(row[0]) for row in found}

    async def steps(self) -> list[Recorded]:
        """All recorded calls."""
        found = []
        for run, leg, claimant, steps, at in await self.rows(
            "SELECT run_id::text, leg, claimant, steps, extract(epoch FROM recorded_at)::float8 FROM run_entry"
        ):
            entry = journal_pb2.JournalEntry.FromString(bytes(steps))  # type: ignore[arg-type]
            found += [
                Recorded(str(run), s.step, float(str(at)), int(str(leg)), str(claimant))
                for s in entry.steps
                if s.kind == "call"
            ]
        return found
