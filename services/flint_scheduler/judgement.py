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


# A member of an enumeration costs ten times as much to find as a name of the module, and this is done for every entry.
_ACCEPT, _SEAL = Verdict.ACCEPT, Verdict.SEAL
_DUPLICATE, _GAP, _STALE = Verdict.DUPLICATE, Verdict.GAP, Verdict.STALE


def judge(
    entry: journal_pb2.JournalEntry,
    nonce: bytes | None,
    leg: int,
    claimant: str | None,
    position: int,
    session: bytes,
    sealing: bool,
) -> Verdict:
    """Judge one entry against the run's current leg as the owner knows it."""
    if nonce is None or entry.leg_nonce != nonce or entry.leg != leg:
        return _STALE
    if entry.seal:
        # Another session's SEAL is not this owner's permission to close the leg: its worker may still be at a step.
        return _SEAL if sealing and entry.seal_session == session else _STALE
    if entry.claimant != claimant:
        return _STALE
    index = entry.index
    if index <= position:
        return _DUPLICATE
    return _ACCEPT if index == position + 1 else _GAP
