"""What the fold that ends a run changes of its permits: one more form of the fold's statement, for such runs alone.

An end that the leg told itself, or that a SEAL stands for, frees the run's permits in the same commit. Any other end
leaves them with the leg's claimant until that is surely over (`permits.free_after`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flint_store.arrays import texts, uuids

__all__ = ["PERMIT_PARTS", "PermitChange", "permit_parameters"]


@dataclass(frozen=True, slots=True)
class PermitChange:
    """The run has ended. With a claimant: its leg may go on there, so its permits stay."""

    run_id: bytes
    claimant: str | None = None
    leg_nonce: bytes | None = None


# Index permit_run, permit_wait_run.
PERMIT_PARTS = """,
freed AS (
    DELETE FROM permit p USING fence, unnest(CAST(:freed_runs AS uuid[])) AS f(run_id)
    WHERE p.run_id = f.run_id RETURNING 1),
kept AS (
    UPDATE permit p SET claimant = k.claimant, leg_nonce = k.leg_nonce
    FROM fence, unnest(CAST(:kept_runs AS uuid[]), CAST(:kept_claimants AS text[]), CAST(:kept_nonces AS uuid[]))
         AS k(run_id, claimant, leg_nonce)
    WHERE p.run_id = k.run_id RETURNING 1),
unqueued AS (
    DELETE FROM permit_wait w
    USING fence, unnest(CAST(:freed_runs AS uuid[]) || CAST(:kept_runs AS uuid[])) AS f(run_id)
    WHERE w.run_id = f.run_id RETURNING 1)"""
"""More members of the fold's WITH list; each depends on `fence`."""


def permit_parameters(changes: Sequence[PermitChange]) -> dict[str, object]:
    """The bind values of `PERMIT_PARTS`."""
    kept = [c for c in changes if c.claimant is not None]
    return {
        "freed_runs": uuids([c.run_id for c in changes if c.claimant is None]),
        "kept_runs": uuids([c.run_id for c in kept]),
        "kept_claimants": texts([c.claimant for c in kept]),
        "kept_nonces": uuids([c.leg_nonce for c in kept]),
    }
