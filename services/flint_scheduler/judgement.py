"""Which journal entries are recorded (R5): pure.

An entry counts only if leg nonce and claimant equal the run's and its index is exactly position + 1. Lower is a
duplicate; higher is a gap, and refused; any other leg's entry is stale.
"""

from __future__ import annotations

from enum import Enum

from flint_contracts.gen.flint.journal.v1 import journal_pb2

__all__ = ["Verdict", "judge"]


class Verdict(Enum):
    """What becomes of an entry."""

    ACCEPT = "accepted"
    SEAL = "seal"
    DUPLICATE = "duplicate"
    GAP = "gap"
    STALE = "stale"


def judge(
    entry: journal_pb2.JournalEntry,
    *,
    nonce: bytes | None,
    leg: int,
    claimant: str | None,
    position: int,
    session: bytes,
    sealing: bool,
) -> Verdict:
    """Judge one entry against the run's current leg as the owner knows it."""
    if nonce is None or entry.leg_nonce != nonce or entry.leg != leg:
        return Verdict.STALE
    if entry.seal:
        # Another session's SEAL is not this owner's permission to close the leg: its worker may still be at a step.
        return Verdict.SEAL if sealing and entry.seal_session == session else Verdict.STALE
    if entry.claimant != claimant:
        return Verdict.STALE
    if entry.index <= position:
        return Verdict.DUPLICATE
    return Verdict.ACCEPT if entry.index == position + 1 else Verdict.GAP
