"""The fence of every owner commit (R1, R2).

A scheduler incarnation holds its shard groups under one row of `owner_session`. Each of its commits locks that row
`FOR SHARE`, matching id and nonce, in the same statement, and all of the statement's writes depend on the locked row. A
takeover ends the row first: it waits for commits under way, and later ones find no row. A plain read of the row would
not fence at READ COMMITTED, nor would `FOR KEY SHARE`.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

__all__ = ["FENCE", "Fenced", "OwnerSession"]

FENCE = (
    "SELECT 1 AS held FROM owner_session "
    "WHERE session_id = :session_id AND nonce = :session_nonce AND ended_at IS NULL FOR SHARE"
)
"""To be used as a MATERIALIZED CTE named `fence` that every write joins."""


class Fenced(Exception):
    """The owner's session has ended: another replica took over. Nothing was written."""

    def __init__(self, session: OwnerSession) -> None:
        super().__init__(f"session {session.session_id} has ended")
        self.session = session


@dataclass(frozen=True, slots=True)
class OwnerSession:
    """One scheduler incarnation's right to commit for the groups it holds."""

    session_id: UUID
    nonce: UUID

    def parameters(self) -> dict[str, object]:
        """Bind values of `FENCE`."""
        return {"session_id": self.session_id, "session_nonce": self.nonce}
