"""What a state of the lending model consists of: runs that want slots, two workers, two schedulers that share them.

The leg's protocol (nonces, SEALs, folds) is the first model's business: here a leg is open, waits at its worker or is
at work there, and a leg that was let go or given back is a run that is queued again.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

__all__ = ["ALL_ON", "FAULTS", "LendingRules", "Run", "State", "View", "without"]

FAULTS = ("takeover", "join", "drain")


@dataclass(frozen=True, slots=True)
class LendingRules:
    """True: the rule holds."""

    share: bool = True  # without borrowing, a scheduler opens legs on its part of a worker's slots
    left: bool = True  # it borrows no more than the others left free at the last heartbeat, and what is not their share
    returned: bool = True  # what is not needed is not kept
    queue: bool = True  # a worker begins no more legs than it has slots
    ask: bool = True  # legs that wait at a worker are asked back while another one has free slots
    waiting_only: bool = True  # a worker lets go only of what waits
    granted: bool = True  # what is asked back for has room at once: it is lent where the share is used up
    kept: bool = True  # and is not given back before the leg has come
    directed: bool = True  # legs that came back go to the slots that were seen free
    leaving: bool = True  # nothing is borrowed of a worker that is sent no legs


ALL_ON = LendingRules()
NAMES = tuple(f.name for f in fields(LendingRules))


def without(*names: str) -> LendingRules:
    """All rules except these. Raises TypeError for a name that is none."""
    return replace(ALL_ON, **dict.fromkeys(names, False))


class Run(NamedTuple):
    """`state`: queued, sent, waits, runs, done. An endless one never ends, nor comes to a boundary."""

    owner: int
    endless: bool
    state: str = "queued"
    worker: int = -1
    twice: bool = False  # its former leg goes on at another worker


class View(NamedTuple):
    """What a scheduler knows of a worker."""

    borrowed: int = 0
    held: int = 0  # legs at the worker, by the last heartbeat that this scheduler heard and what it did since
    kept: int = 0  # free slots there for legs that it asked back


class State(NamedTuple):
    """Everything. `views`: by scheduler and worker."""

    runs: tuple[Run, ...]
    views: tuple[tuple[View, ...], ...]
    members: int
    drains: frozenset[int]
    budget: tuple[int, ...]
