"""The rules of the protocol, each of which can be switched off.

With all of them on, the model is the protocol as it must be. A scenario that switches one off must make the checker
find a violation: that shows that the rule is needed, and that the model is able to fail.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

__all__ = ["ALL_ON", "Rules", "without"]


@dataclass(frozen=True, slots=True)
class Rules:
    """True: the rule holds. In brackets the rule of the architecture that it belongs to."""

    # -- starts (R0) --
    answer_after_commit: bool = True
    sweep: bool = True  # the owner finds runs that another replica accepted without a nudge
    accept_found: bool = (
        True  # a start whose commit was not answered is looked for until it is found or surely not there
    )
    # -- the fence (R1, R2) --
    fence: bool = True  # an owner's commit locks its session's row
    change: bool = True  # a commit finds the run's row as the owner remembers it, or does nothing
    reread: bool = True  # after a commit without an answer the row is read before anything is judged again
    reload_exclusive: bool = True  # no other lane commits between that read and its use
    give_judged: bool = True  # the watermark of a group that is given covers judged entries only
    # -- legs (R3, R4, R5) --
    nonce: bool = True  # a leg's identity was never used before, not even by a commit that was lost
    leg_check: bool = True  # entries of another leg are refused
    claimant: bool = True  # entries of another incarnation than the leg's are refused
    gap_check: bool = True  # an entry that leaves one out is refused
    incarnation: bool = True  # a worker refuses jobs that are addressed to another incarnation
    lapse: bool = True  # a lapsed lease ends the incarnation
    taken: bool = True  # a worker takes a job once
    # -- leases and release (R6, R7) --
    lease: bool = True  # nothing is begun or appended without a valid lease
    permission: bool = True  # a leg is closed only when its worker has ended or released it
    release: bool = True  # the owner of a leg without progress asks its worker
    release_ended: bool = True  # a worker also releases a leg that it had begun and has given up
    release_idle: bool = True  # a worker does not release a leg that runs
    revoked: bool = True  # a worker refuses the job of a leg that it has released
    journal_lost: bool = True  # legs of an older journal generation are asked to be given up
    failover: bool = True  # after a failover of PostgreSQL no leg is opened before every incarnation is a new one
    # -- the journal (R8, R9, R10, R11) --
    cas: bool = True  # appends carry the subject's expected last sequence
    retry: bool = True  # an append without an answer is sent again until it is known what became of it
    empty_subject: bool = True  # a subject whose entries were all purged is not taken for another writer's
    barrier: bool = True  # what was acknowledged is folded before the leg is closed
    seal_write: bool = True  # the barrier is a write, not a read of the last sequence
    seal_own: bool = True  # only a SEAL of the owner's session, for a leg that it is sealing, closes the leg
    seal_doubt: bool = True  # after a SEAL without an answer the next leg gets a fresh one
    seal_again: bool = True  # a SEAL that is not read (its stream lost its tail) is appended again
    lane: bool = True  # in a lane, a leg goes on behind what the lane's other legs have appended
    lane_first: bool = True  # the first entry of a leg is not held for lost when the lane lost others' entries
    generation: bool = True  # stream names carry a generation
    sequence_generation: bool = True  # an expected sequence is used in the generation that it comes from only


ALL_ON = Rules()


def without(*names: str) -> Rules:
    """All rules except these. Raises TypeError for a name that is none."""
    return replace(ALL_ON, **dict.fromkeys(names, False))


NAMES = tuple(f.name for f in fields(Rules))
