"""One state of a wide fork, small enough to be hashed in millions; and the rules that can be switched off."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

__all__ = ["ALL_ON", "FAULTS", "BranchRules", "Chunk", "Look", "State", "without"]

FAULTS = ("takeover", "drop", "cancel", "failure")


@dataclass(frozen=True)
class BranchRules:
    """What keeps the promises; each is off in one scenario."""

    request_id: bool = True
    """A chunk is stored under a name made of the await and its number: a second start is the first."""
    start_open: bool = True
    """A chunk is stored only while the await is open, and the await stays open until that commit."""
    lowest: bool = True
    """Chunks are started by number, the lowest that is not there first."""
    window: bool = True
    """Those that run are counted among the window."""
    all_ended: bool = True
    """A fork has succeeded when as many chunks as it has have succeeded, not as many as were started."""
    decided: bool = True
    """A failure decides the fork: nobody waits for the others."""
    message_key: bool = True
    """The answer has a key of its own: the inbox takes it once."""
    answer_open: bool = True
    """The inbox takes the answer only while the await is open."""
    unserved: bool = True
    """An await that is not decided stays unserved: the sweep tells of it again."""
    close_serves: bool = True
    """Closing the await calls for its closing to be served."""
    cancel_chunks: bool = True
    """Whoever serves the closing cancels the chunks that run."""


ALL_ON = BranchRules()


def without(*names: str) -> BranchRules:
    """All rules but these."""
    known = {f.name for f in fields(BranchRules)}
    if not known.issuperset(names):
        raise ValueError(f"no such rules: {set(names) - known}")
    return replace(ALL_ON, **dict.fromkeys(names, False))


class Chunk(NamedTuple):
    """The run of one chunk: none, running, ok, failed, cancelled. `starts`: runs that were stored for it."""

    state: str = "none"
    starts: int = 0
    cancel: bool = False  # a cancel is in its inbox


class Look(NamedTuple):
    """What an owner has read of the fork and is about to act upon: start chunks, answer, or nothing (empty)."""

    act: str = ""
    numbers: tuple[int, ...] = ()
    content: str = ""  # of the answer


class State(NamedTuple):
    """The fork's await is open, served (answered), closed (its closing is not served), or gone."""

    waiting: str
    chunks: tuple[Chunk, ...]
    hands: tuple[Look, Look]  # of the owner, and of the former one, whose last act may still be under way
    told: bool  # the owner is told of the fork: a nudge, or its own fold
    inbox: tuple[str, ...]  # answers, not taken up yet
    joined: tuple[str, ...]  # answers that the run took up
    cancel: bool  # a cancel of the run is asked for
    ended: bool  # the run
    budget: tuple[int, ...]
