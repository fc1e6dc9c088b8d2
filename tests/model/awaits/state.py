"""What a state of the awaits' model consists of: a parent, the await of its child, and what is under way about them.

The leg's protocol (nonces, claimants, SEALs) is the other model's business: here a run has at most one leg, whatever it
appended is folded before another one opens, and what is sent to a leg that is over reaches nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

__all__ = [
    "ALL_ON",
    "BEGUN",
    "CANCELLED",
    "DONE",
    "FAULTS",
    "WAITS",
    "AwaitRules",
    "Card",
    "Entry",
    "Leg",
    "Row",
    "State",
    "without",
]

# How far the parent is: nothing, its step is recorded and the await open, the await is over (answered or timed out),
# a cancel is taken up and its step is to be undone.
BEGUN, WAITS, DONE, CANCELLED = 0, 1, 2, 3

# Faults, then what is none but must be bounded: a cancel by somebody.
FAULTS = ("worker_lost", "takeover", "drop", "drain", "cancel")


@dataclass(frozen=True, slots=True)
class AwaitRules:
    """True: the rule holds."""

    compare: bool = True  # a leg tells of awaits that it has and the record has not, and the other way round
    batch: bool = True  # what was opened and closed before the same commit is left out of it
    sweep: bool = True  # rows not served, inboxes and waits are found without a nudge
    request_id: bool = True  # a child's start is idempotent by its await
    start_open: bool = True  # a child starts only while its await is open, and holds it open until the commit
    settle_open: bool = True  # an await that was closed meanwhile is not settled as served
    close_serves: bool = True  # a closing asks to be served again, whatever was served before
    end_closes: bool = True  # the run's end closes its awaits
    cancel_child: bool = True  # a closed await's child is cancelled
    answer_in_fold: bool = True  # the child's end and the answer are one commit
    mail_ready: bool = True  # a run that blocks with a message unconsumed is ready again, and so is one that gets one
    consume_in_fold: bool = True  # a message is deleted by the fold of the entry that names it, not by its delivery
    letters_once: bool = True  # a leg takes a message of one key once
    too_late: bool = True  # a message for an await that is over is no answer
    undo_leg: bool = True  # a cancelled run that has something to undo gets a leg for that
    undo_told: bool = True  # each entry tells whether there is something to undo, not a leg's end alone


ALL_ON = AwaitRules()


def without(*names: str) -> AwaitRules:
    """All rules except these. Raises TypeError for a name that is none."""
    return replace(ALL_ON, **dict.fromkeys(names, False))


NAMES = tuple(f.name for f in fields(AwaitRules))


class Entry(NamedTuple):
    """A journal entry of the open leg: where the run stands after it, and what it tells beside."""

    position: int
    undone: bool
    opens: bool = False
    closes: bool = False
    consumes: bool = False
    answers: int = 0  # how often an answer was taken up by the machine since the entry before
    compensates: bool = False
    end: str = ""  # blocked, yielded, ended


class Row(NamedTuple):
    """The parent's row."""

    state: str = "queued"  # queued, running, waiting, ended
    position: int = BEGUN
    undone: bool = False
    answered: int = 0  # answers in its history
    cancel: bool = False
    compensates: bool = False


class Leg(NamedTuple):
    """The parent's leg in its worker."""

    position: int
    undone: bool
    told: bool  # the record, with what this leg appended, has the await as open
    inbox: int = 0  # messages that came and were not fed
    taken: bool = False  # its key was seen
    consumed: bool = False  # to be told
    answers: int = 0  # to be told
    fresh: bool = False  # the machine moved since the last entry
    cancel: bool = False
    untold: bool = False  # its await is to be told of in an entry of its own


class Card(NamedTuple):
    """The parent in its owner's memory."""

    phase: str  # ready, opening, open, waiting
    mail: bool = False  # a message was handed to the leg, or is read for the next one
    more: bool = False  # the inbox may hold something


class State(NamedTuple):
    """Everything. Hands are agents of awaits, the owner's and a former owner's: what they read, how far they are."""

    row: Row
    waiting: str  # the await's row: none, open, served, closed; forgotten: closed, and nobody will serve it
    mail: bool  # the answer stands in the inbox
    cancels: bool  # so does a cancel
    child: str  # none, live, ended, told (its end without the answer, where that is a commit of its own)
    child_cancels: bool  # a cancel in the child's inbox
    starts: int  # of children
    journal: tuple[Entry, ...]
    leg: Leg | None
    card: Card | None
    delivery: bool  # a message on its way to the open leg
    hands: tuple[str, str]  # "", open, acted, closed, cancelled
    nudges: frozenset[str]  # mail: the inbox was written · awaits: rows were · child: the child's inbox was
    budget: tuple[int, ...]  # of each fault, then of all
