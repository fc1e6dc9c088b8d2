"""What a state of the permits' model consists of: some runs of one key, two owners, what their workers really do.

The leg's protocol (nonces, claimants, SEALs, the fence) is the other model's business: here a run has at most one leg,
and what its worker appended is folded by whoever owns it. What an owner holds in memory is lost with it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

__all__ = ["ALL_ON", "FAULTS", "NAMES", "PermitRules", "Run", "State", "without"]

FAULTS = ("worker_lost", "takeover", "drop", "abandon", "suspicion", "stall")


@dataclass(frozen=True, slots=True)
class PermitRules:
    """True: the rule holds."""

    lock: bool = True  # who takes a permit counts the holders under the key's lock, with a view taken after it
    same_commit: bool = True  # the permit is taken by the commit that opens the leg
    reuse: bool = True  # a run that holds its permit needs no other for its next leg
    in_fold: bool = True  # the fold that records the end frees the permit
    linger: bool = True  # an end that the leg's worker does not know of leaves the permit with that worker
    sure: bool = True  # such a permit is freed when the worker has surely ended or said so, not on suspicion
    sweep_after: bool = True  # such permits are found in the record, not in memory alone
    sweep: bool = True  # parked runs are tried again without a message
    order: bool = True  # a run waits behind older ones that were refused, whoever owns them
    patience: bool = True  # but not behind one whose owner did not ask again for long


ALL_ON = PermitRules()
NAMES = tuple(f.name for f in fields(PermitRules))


def without(*names: str) -> PermitRules:
    """All rules except these. Raises TypeError for a name that is none."""
    return replace(ALL_ON, **dict.fromkeys(names, False))


class Run(NamedTuple):
    """One run of the key; the number in the state's tuple is its age."""

    owner: int
    state: str = "queued"  # in the record: queued, open, ended
    permit: str = ""  # in the record: "", held, after (its end is recorded, its worker may go on)
    waits: str = ""  # in the record: "", asked (it was refused lately), old
    work: str = ""  # the leg's worker: "", busy (outsiders see a holder), told (its end is in the journal), lost
    card: str = "ready"  # in its owner's memory: ready, saw (room, without the lock), parked, opened, open, freeing, ""
    stalled: bool = False  # something else keeps it from asking


class State(NamedTuple):
    """Everything. `heard`: owners who are about to hear that a permit became free."""

    runs: tuple[Run, ...]
    heard: frozenset[int]
    budget: tuple[int, ...]  # of each fault, then of all
