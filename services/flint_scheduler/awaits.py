"""The agent of awaits: sees to what runs wait for, by kind, after it was recorded.

    told of runs (fold, sweep) ── read rows not served ── closed ones ──▶ handler.closed ──▶ rows deleted
               ▲                                      └── open ones ────▶ handler.opened ──▶ rows served
               └── a handler failed, or asked to be called again: the rows stay, the next sweep tells of them

One loop, one batch at a time; so for one await `opened` has ended before `closed` begins, on this scheduler. During a
takeover two schedulers may serve the same row at the same moment, in any order. So handlers are idempotent, and what
they write for an open await they write only while it is open (`flint_store.awaits.OPEN_AWAITS`).

A handler for a kind is given to `Agent.serve` before `run` begins. Rows of a kind that nobody serves stay as they are.
When the loop dies the service stops; the rows remain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Protocol

from flint_ops.logging import get_logger
from flint_scheduler.holdings import Holdings
from flint_scheduler.metrics import AWAITS
from flint_scheduler.record import Record, RecordUnavailable
from flint_store.awaits import AwaitRow, read_unserved, settle_closed, settle_opened

__all__ = ["Agent", "Handler"]

log = get_logger(__name__)

_RUNS: Final = 200  # runs whose rows are read at a time
_ROWS: Final = 200  # rows handed to handlers at a time: each may hold a payload
_MOST_TOLD: Final = 100_000  # beyond these the sweep tells
_PATIENCE_S: Final = 30.0  # one call of a handler


class Handler(Protocol):
    """Serves the awaits of one kind. Both methods are idempotent and commit in transactions of their own.

    Rows come in batches of 1 to 200, from any of this scheduler's groups, each row again until its call returned
    without an error. What a handler raises is logged, and the rows of the call are tried again some seconds later; so
    is a call that takes longer than 30 s (it is cancelled). Neither method may wait for a person, a run or a peer: it
    writes what makes others act. Messages for the run go through `flint_store.awaits.put_messages`, then
    `flint_scheduler.nudges.nudge_inboxes`.
    """

    async def opened(self, rows: Sequence[AwaitRow]) -> Iterable[AwaitRow]:
        """See to awaits that runs have opened. Answers those that are to be tried again later (mostly none)."""

    async def closed(self, rows: Sequence[AwaitRow]) -> Iterable[AwaitRow]:
        """Undo what is left of awaits whose runs wait no longer; `opened` may never have been called for them.

        Answers those that are to be tried again later (mostly none).
        """


class Agent:
    """Serves the awaits of the groups that one scheduler owns."""

    def __init__(self, record: Record, holdings: Holdings) -> None:
        self._record = record
        self._holdings = holdings
        self._handlers: dict[int, Handler] = {}
        self._told: dict[bytes, None] = {}
        self._wake = asyncio.Event()

    def serve(self, kind: int, handler: Handler) -> None:
        """Let a handler serve a kind (flint.journal.v1.AwaitOpened.Kind)."""
        self._handlers[kind] = handler

    def tell(self, run_ids: Iterable[bytes]) -> None:
        """These runs have awaits that are not served yet. Cheap; what does not fit is left to the sweep."""
        for run_id in run_ids:
            if len(self._told) >= _MOST_TOLD:
                break
            self._told[run_id] = None
        if self._told:
            self._wake.set()

    async def run(self) -> None:
        """Serve what is told, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._told:
                batch = list(self._told)[:_RUNS]
                for run_id in batch:
                    del self._told[run_id]
                try:
                    await self._serve(batch)
                except RecordUnavailable as error:
                    log.warning("awaits_wait_for_postgresql", error=str(error))
                    self._told.clear()  # the sweep tells again when it answers

    async def _serve(self, run_ids: list[bytes]) -> None:
        rows = await self._record.read(lambda c: read_unserved(c, run_ids, _ROWS))
        if len(rows) == _ROWS:
            self.tell(run_ids)  # there may be more of theirs
        left = 0
        for closed in (True, False):
            kinds: dict[int, list[AwaitRow]] = {}
            for row in rows:
                if row.closed is closed and row.kind in self._handlers and self._holdings.owns(row.group):
                    kinds.setdefault(row.kind, []).append(row)
                elif row.closed is closed:
                    left += 1
            for kind, mine in kinds.items():
                left += await self._hand_over(kind, mine, closed=closed)
        if rows and left == len(rows):
            for run_id in run_ids:
                self._told.pop(run_id, None)  # nothing moved: not again before the sweep

    async def _hand_over(self, kind: int, rows: list[AwaitRow], *, closed: bool) -> int:
        """Call the handler and settle what it did; how many rows are left for later."""
        handler = self._handlers[kind]
        call: Callable[[Sequence[AwaitRow]], Awaitable[Iterable[AwaitRow]]]
        call, settle = (handler.closed, settle_closed) if closed else (handler.opened, settle_opened)
        what = "closed" if closed else "opened"
        try:
            async with asyncio.timeout(_PATIENCE_S):
                later = {(r.run_id, r.key) for r in await call(rows)}
        except RecordUnavailable:
            raise
        except Exception as error:
            # A defect of one kind must not stop the others; the rows are there when it is mended.
            log.exception("awaits_not_served", kind=kind, what=what, rows=len(rows), error=repr(error))
            AWAITS.labels(what, "failed").inc(len(rows))
            return len(rows)
        done = [r for r in rows if (r.run_id, r.key) not in later]
        if done:
            await self._record.read(lambda c: settle(c, done))
            AWAITS.labels(what, "served").inc(len(done))
        if later:
            AWAITS.labels(what, "later").inc(len(later))
        return len(later)
