"""What a state consists of: one run, two schedulers, two workers, the stores and what is under way between them.

Identities (of legs, sessions, incarnations, versions of the row) are small numbers, 0 for none; a fresh one is one more
than any in the state. Sequences are positions in the run's subject, from 1; with lanes, in what the group's stream
holds of the run. Everything is immutable and hashable.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "BLOCKED",
    "DEAD",
    "EXECUTED",
    "FAULTS",
    "GONE",
    "YIELDED",
    "Append",
    "Card",
    "Control",
    "Entry",
    "Ids",
    "Item",
    "Job",
    "Leg",
    "Row",
    "Scheduler",
    "State",
    "Worker",
    "steps_of",
]

# What an entry records: a step's outcome (the last one is the run's end), or the end of its leg.
EXECUTED, BLOCKED, YIELDED = "x", "b", "y"

# What costs budget. The first eight are of processes and messages, then of the stores, then what is no fault at all but
# must be bounded: a drain of a worker, a wait of the run, a group given away, a purge of folded entries.
FAULTS = (
    "worker_crash",
    "lease_lapse",
    "scheduler_crash",
    "session_lapse",
    "suspicion",
    "duplicate",
    "drop",
    "unanswered",
    "tail_loss",
    "journal_loss",
    "etcd_loss",
    "failover",
    "drain",
    "block",
    "give",
    "purge",
)


class Item(NamedTuple):
    """One entry of a run's history: in which leg, by which incarnation, what."""

    leg: int
    incarnation: int
    kind: str


History = tuple[Item, ...]


def steps_of(history: History) -> int:
    """How many steps have an outcome in it."""
    return sum(item.kind == EXECUTED for item in history)


class Entry(NamedTuple):
    """A journal entry; its index is the length of the history it ends. A SEAL has no history and names its session."""

    leg: int
    writer: int
    history: History

    @property
    def seal(self) -> bool:
        """Whether it is an owner's barrier."""
        return not self.history


DEAD = Entry(0, 0, ())
"""Stands for an entry that no rule can take for anything any more."""


GONE = -2
"""Stands for an expected sequence that no subject has as its last any more."""


class Row(NamedTuple):
    """The run's row, its group's and the cluster's."""

    accepted: int = 0  # 0 nowhere, 1 in an acceptor's memory, 2 committed
    adopt: bool = False
    waiting: bool = False
    session: int = 0  # that holds the group
    change: int = 1
    number: int = 0  # of the last leg
    leg: int = 0  # nonce of the open leg
    claimant: int = 0
    history: History = ()
    leg_generation: int = 0
    generation: int = 1
    watermark: int = 0
    watermark_generation: int = 1


class Job(NamedTuple):
    """A leg on its way to its worker."""

    leg: int
    history: History
    expected: int
    generation: int
    worker: int
    incarnation: int


class Append(NamedTuple):
    """An entry on its way to the journal."""

    entry: Entry
    expected: int
    generation: int
    worker: int


class Leg(NamedTuple):
    """A leg in its worker. Phases: ready (at a boundary), calling (a step was begun), appending."""

    phase: str
    leg: int
    history: History
    expected: int
    generation: int


class Worker(NamedTuple):
    """A worker process."""

    incarnation: int
    valid: bool = True
    former: bool = False  # registered before a failover of PostgreSQL
    draining: bool = False
    taken: frozenset[int] = frozenset()
    revoked: frozenset[int] = frozenset()
    leg: Leg | None = None
    lane: tuple[int, int] = (0, 0)  # generation and last sequence of what the incarnation appended to its lane


class Card(NamedTuple):
    """The run in its owner's memory. Phases: ready, opening, open, sealing, waiting."""

    phase: str
    change: int
    leg: int = 0
    claimant: int = 0
    leg_generation: int = 0
    position: int = 0
    expected: int = -1  # the subject's last sequence, -1 when a SEAL must tell it first
    expected_generation: int = 0
    doubt: bool = False  # a SEAL of the open leg was not answered


class Scheduler(NamedTuple):
    """A scheduler process: down (or without a session), won (has etcd's permission), own."""

    phase: str = "down"
    session: int = 0
    card: Card | None = None
    folded: int = 0
    generation: int = 0
    job: Job | None = None  # committed, to be published
    unsure: bool = False  # a commit was not answered
    snapshot: Row | None = None  # read, not yet applied


class Control(NamedTuple):
    """An owner's question whether a leg is released, or the worker's yes."""

    answer: bool
    leg: int
    worker: int
    incarnation: int
    session: int
    journal_lost: bool


class Ids(NamedTuple):
    """The highest identities in use."""

    leg: int = 0
    session: int = 0
    incarnation: int = 2
    change: int = 1


class State(NamedTuple):
    """Everything."""

    row: Row
    former: Row | None  # the row before the last commit, where a failover may bring it back
    answered: bool
    permitted: int  # scheduler whose key stands in etcd, -1 none
    stream: int  # generation of the journal's stream, -1 when there is none
    journal: tuple[Entry | None, ...]  # None: purged
    damaged: bool  # the stream has lost its tail
    jobs: frozenset[Job]
    appends: frozenset[Append]
    workers: tuple[Worker, Worker]
    schedulers: tuple[Scheduler, Scheduler]
    controls: frozenset[Control]
    nudge: bool
    late: tuple[int, int] | None  # an accepting commit without an answer, still under way: session, worker or -1
    budget: tuple[int, ...]  # per fault, then in total
    ids: Ids
