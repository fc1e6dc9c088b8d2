"""The agent of awaits: sees to what runs wait for, by kind, after it was recorded.

    told of runs (fold, sweep) ── read rows not served ── closed ones ──▶ handler.closed ──▶ rows deleted
               ▲                                      └── open ones ────▶ handler.opened ──▶ rows served
               └── a handler asked to be called again: the rows stay, the next sweep tells of them

A handler that fails is called again with halves of its rows, until the one that it cannot serve is found: so a row
stands in nobody's way. One that fails several times, while it is open, is answered «refused»: its run goes on, with a
problem at that step.

One loop, one batch at a time; so for one await `opened` has ended before `closed` begins, on this scheduler. During a
takeover two schedulers may serve the same row at the same moment, in any order. So handlers are idempotent, and what
they write for an open await they write only while it is open (`flint_store.awaits.OPEN_AWAITS`).

A handler for a kind is given to `Agent.serve` before `run` begins. Rows of a kind that nobody serves stay as they are.
When the loop dies the service stops; the rows remain.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Final, Protocol

from flint_bus import Bus
from flint_core.effects import REFUSED_PREFIX
from flint_core.ids import run_id_text
from flint_core.problems import Problem, ProblemType
from flint_ops.logging import get_logger
from flint_scheduler.answers import child_refused
from flint_scheduler.holdings import Holdings
from flint_scheduler.metrics import AWAITS
from flint_scheduler.nudges import nudge_inboxes
from flint_scheduler.record import Record, RecordUnavailable
from flint_store.awaits import AwaitRow, NewMessage, put_messages, read_unserved, settle_closed, settle_opened

__all__ = ["Agent", "Handler"]

log = get_logger(__name__)

_RUNS: Final = 200  # runs whose rows are read at a time
_ROWS: Final = 200  # rows handed to handlers at a time: each may hold a payload
_MOST_TOLD: Final = 100_000  # beyond these the sweep tells
_PATIENCE_S: Final = 30.0  # one call of a handler
_TRIES: Final = 3  # of an await that a handler fails on, when it is given alone
_FAILURES: Final = 10_000  # awaits whose failures are counted


class Handler(Protocol):
    """Serves the awaits of one kind. Both methods are idempotent and commit in transactions of their own.

    Rows come in batches of 1 to 200, from any of this scheduler's groups, each row again until its call returned
    without an error. What a handler raises is logged, and the rows of the call are tried again at once in halves, and a
    single one some seconds later; so is a call that takes longer than 30 s (it is cancelled). Neither method may wait
    for a person, a run or a peer: it writes what makes others act. Messages for the run go through
    `flint_store.awaits.put_messages`, then `flint_scheduler.nudges.nudge_inboxes`.
    """

    async def opened(self, rows: Sequence[AwaitRow]) -> Iterable[AwaitRow]:
        """See to awaits that runs have opened. Answers those that are to be tried again later (mostly none)."""

    async def closed(self, rows: Sequence[AwaitRow]) -> Iterable[AwaitRow]:
        """Undo what is left of awaits whose runs wait no longer; `opened` may never have been called for them.

        Answers those that are to be tried again later (mostly none).
        """


class Agent:
    """Serves the awaits of the groups that one scheduler owns."""

    def __init__(self, record: Record, bus: Bus, holdings: Holdings) -> None:
        self._record = record
        self._bus = bus
        self._failures: OrderedDict[tuple[bytes, str], int] = OrderedDict()
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
        """One look at each row of these runs; what is left of them is for the next sweep."""
        after: AwaitRow | None = None
        while True:
            rows = await self._record.read(partial(read_unserved, run_ids=run_ids, limit=_ROWS, after=after))
            for closed in (True, False):
                kinds: dict[int, list[AwaitRow]] = {}
                for row in rows:
                    if row.closed is closed and row.kind in self._handlers and self._holdings.owns(row.group):
                        kinds.setdefault(row.kind, []).append(row)
                for kind, mine in kinds.items():
                    await self._hand_over(kind, mine, closed=closed)
            if len(rows) < _ROWS:
                return
            after = rows[-1]

    async def _hand_over(self, kind: int, rows: list[AwaitRow], *, closed: bool) -> None:
        """Call the handler and settle what it did, in smaller and smaller parts where it fails."""
        handler = self._handlers[kind]
        call: Callable[[Sequence[AwaitRow]], Awaitable[Iterable[AwaitRow]]]
        call, settle = (handler.closed, settle_closed) if closed else (handler.opened, settle_opened)
        what = "closed" if closed else "opened"
        parts = [rows]
        while parts:
            part = parts.pop()
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    later = {(r.run_id, r.key) for r in await call(part)}
            except RecordUnavailable:
                raise
            except Exception as error:
                if len(part) > 1:
                    log.warning("awaits_halved", kind=kind, what=what, rows=len(part), error=repr(error)[:500])
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
                    continue
                # A defect of one kind must not stop the others; a row that is left is there when it is mended.
                row = part[0]
                run = run_id_text(row.run_id)
                log.exception("await_not_served", kind=kind, what=what, run=run, key=row.key, error=repr(error)[:500])
                AWAITS.labels(what, "failed").inc()
                # Those of schedules have no step that could fail, and slowness may pass.
                if row.step and not closed and not isinstance(error, TimeoutError) and self._failed_for_good(row):
                    await self._refuse(row, error)
                continue
            done = [r for r in part if (r.run_id, r.key) not in later]
            if done:
                await self._record.read(partial(settle, rows=done))
                AWAITS.labels(what, "served").inc(len(done))
                for r in done:
                    self._failures.pop((r.run_id, r.key), None)
            if later:
                AWAITS.labels(what, "later").inc(len(later))

    def _failed_for_good(self, row: AwaitRow) -> bool:
        """Counts a failure; whether there were enough."""
        name = row.run_id, row.key
        count = self._failures[name] = self._failures.get(name, 0) + 1
        self._failures.move_to_end(name)
        while len(self._failures) > _FAILURES:
            self._failures.popitem(last=False)
        return count >= _TRIES

    async def _refuse(self, row: AwaitRow, error: Exception) -> None:
        """Tell the run that nothing will come. What the handler may have done is undone when the await is closed."""
        detail = f"what the step waits for could not be prepared ({type(error).__name__}); the scheduler's log says why"
        problem = Problem(ProblemType.RUNTIME, 500, "Await refused", detail, row.step)
        message = NewMessage(row.run_id, f"{REFUSED_PREFIX}{row.key}", row.key, child_refused(problem))
        targets = await self._record.read(lambda c: put_messages(c, [message]))
        await self._record.read(lambda c: settle_opened(c, [row]))
        self._failures.pop((row.run_id, row.key), None)
        AWAITS.labels("opened", "refused").inc()
        nudge_inboxes(self._bus, targets)
