"""What a state of the groups' model consists of: shard groups with a run each, schedulers, etcd, commits under way.

A session and the etcd lease that was granted with it have the same number. The leg's own protocol (claimants, SEALs,
the journal's sequences) is the first model's business: here a leg appends one entry, and that entry ends it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

__all__ = ["ALL_ON", "FAULTS", "Group", "GroupRules", "Memory", "Op", "Scheduler", "State", "without"]

FAULTS = ("crash", "lease", "unanswered", "key", "join", "leave")
"""The last two are duties that would go on for ever. `key`: somebody deletes a group's key by hand."""


@dataclass(frozen=True, slots=True)
class GroupRules:
    """True: the rule holds."""

    fence: bool = True  # a commit of a session that has ended writes nothing (R2)
    end_owner: bool = True  # a takeover ends the session of the former owner (R1)
    term: bool = True  # a takeover finds the group's term as it was read, or takes nothing
    term_first: bool = True  # and the term is read before the key is won, not after
    key_back: bool = True  # who may not take a group gives its key back
    change: bool = True  # a commit finds the row as it was read, or writes nothing
    settle: bool = True  # a giver waits for its own commits under way before it gives
    give_commit: bool = True  # the giver leaves the group in the record first, and gives its etcd key back after it
    create: bool = True  # an etcd key is made only where none stands
    only_lease: bool = True  # and deleted only under the lease that it was made with
    folded: bool = True  # the watermark that a giver leaves tells what was folded, not what was read
    reread: bool = True  # after an unanswered or refused commit the group is read again
    sweep: bool = True  # the owner looks for runs that it does not know of
    fenced_sweep: bool = True  # an idle owner finds out that it was fenced (R7)
    step_down: bool = True  # who finds that it was fenced, or that its lease is over, forgets everything


ALL_ON = GroupRules()
NAMES = tuple(f.name for f in fields(GroupRules))


def without(*names: str) -> GroupRules:
    """All rules except these. Raises TypeError for a name that is none."""
    return replace(ALL_ON, **dict.fromkeys(names, False))


class Group(NamedTuple):
    """A group in etcd, in the record and in the journal, with its one run."""

    key: int = 0  # etcd: the lease of who may own it; 0: nobody
    session: int = 0  # record: whose it is; 0: nobody's
    term: int = 0  # record: grows with every takeover
    accepted: bool = False  # record: the run is stored
    change: int = 0  # record: grows with every commit on the run's row
    leg: int = 0  # record: the last leg that was opened
    open: bool = False
    folded: int = 0  # record: entries that are folded
    watermark: int = 0  # record: below it nobody reads again
    entries: int = 0  # journal: entries that the legs' workers appended


class Memory(NamedTuple):
    """What a scheduler knows of one group. `stage`: looked (at its term), won (its key), taken, own, giving, given."""

    stage: str
    term: int = 0  # as it was read; of no interest once it is taken
    known: bool = False  # of the run
    change: int = 0
    leg: int = 0
    open: bool = False
    folded: int = 0
    received: int = 0
    doubt: bool = False  # to be read again


class Op(NamedTuple):
    """One commit under way: accept, open or fold, decided on a row with this `change`."""

    kind: str
    group: int
    session: int
    change: int = 0
    leg: int = 0
    upto: int = 0


class Scheduler(NamedTuple):
    """`state`: away (not there yet), in, gone."""

    state: str = "away"
    session: int = 0
    lease: bool = False  # it stands in etcd
    view: frozenset[int] = frozenset()  # the members, as this one last heard
    groups: tuple[Memory | None, ...] = ()
    op: Op | None = None


class State(NamedTuple):
    """Everything. `ended`: sessions that have ended in the record. `late`: commits whose answers will not come."""

    groups: tuple[Group, ...]
    schedulers: tuple[Scheduler, ...]
    ended: frozenset[int]
    late: frozenset[Op]
    sessions: int
    budget: tuple[int, ...]  # of each fault, then of all
