"""What this scheduler owns at the moment: its session, its shard groups with their terms, the journal's generation.

Written by the steward alone; read by every lane. Reading it needs no lock: everything runs on one event loop, and the
truth is the fence in PostgreSQL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from flint_ops.logging import get_logger
from flint_scheduler.metrics import COMMITS_REFUSED
from flint_store.fence import OwnerSession

__all__ = ["GroupHolding", "Holdings"]

log = get_logger(__name__)


@dataclass(slots=True)
class GroupHolding:
    """One owned group."""

    group: int
    term: int
    folded: int  # every entry up to this stream sequence is folded
    saved: int  # `folded` as PostgreSQL knows it
    settled: bool = False  # its runs are in memory
    received: int = 0  # last stream sequence that was read


class Holdings:
    """What is owned now."""

    def __init__(self, group_count: int) -> None:
        self.group_count = group_count
        self.session: OwnerSession | None = None
        self.groups: dict[int, GroupHolding] = {}
        self.generation = 0
        self.lost = asyncio.Event()  # set when a commit found the session ended; the steward steps down
        self.unread: set[int] = set()  # groups whose runs must be read again
        self.unread_signal = asyncio.Event()

    def settled_groups(self) -> list[int]:
        """Groups for which runs may be accepted and opened."""
        if self.session is None or self.lost.is_set():
            return []
        return [h.group for h in self.groups.values() if h.settled]

    def owns(self, group: int) -> bool:
        """Whether the group is mine and its runs are in memory."""
        holding = self.groups.get(group)
        return holding is not None and holding.settled and not self.lost.is_set()

    def fenced(self, session: OwnerSession | None) -> None:
        """A commit under this session found it ended: another replica took over."""
        COMMITS_REFUSED.inc()
        log.warning("commit_refused", session=str(session.session_id) if session else "")
        if session is self.session:
            self.lost.set()

    def reread(self, groups: Iterable[int]) -> None:
        """The record may differ from memory in these groups (an unanswered commit): read them again."""
        self.unread.update(g for g in groups if g in self.groups)
        if self.unread:
            self.unread_signal.set()
