"""Attention: what others want from this owner, by nudge or by sweep (R0, R7).

A nudge is a hint over core NATS that may be lost; the sweep is a fenced query every few seconds that finds the same
things in PostgreSQL: runs that another replica accepted, rows in inboxes, waits that will be due, awaits that nobody
has served. It also tells an idle owner that it was fenced. When the loop dies the service stops.

A message in a run's inbox: no leg, the run becomes ready and its next leg takes the message · leg open, it is delivered
to the worker, again with every sweep until it is consumed · leg about to open, looked at again in a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

from google.protobuf.message import DecodeError

from flint_bus import Bus, BusError, Message, Subscription
from flint_bus.subjects import owner_subject
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_ops.logging import get_logger
from flint_scheduler.accept import ENDED
from flint_scheduler.announce import Announcer
from flint_scheduler.awaits import Agent
from flint_scheduler.cards import Phase, RunBook, RunCard, card_of_row
from flint_scheduler.clock import RecordClock
from flint_scheduler.control.wishes import COMMANDS, cancel_wish
from flint_scheduler.delivery import Delivery
from flint_scheduler.dispatch import Dispatcher
from flint_scheduler.drafts import Command, CommandKind
from flint_scheduler.fleet import FleetView
from flint_scheduler.fold import Folder
from flint_scheduler.holdings import Holdings
from flint_scheduler.lane import LaneClosed
from flint_scheduler.ready import ReadyQueue
from flint_scheduler.record import Record, RecordUnavailable
from flint_scheduler.shares import Shares
from flint_scheduler.timers import Timers
from flint_store.commands import Verb
from flint_store.fence import Fenced
from flint_store.legs import load_runs
from flint_store.ownership import save_watermarks
from flint_store.sweep import delete_inbox, read_inbox, sweep

__all__ = ["Attention"]


async def _ignored(run_ids: list[bytes]) -> None:
    """Before the composition root has wired it."""


log = get_logger(__name__)

_LIMIT = 1000  # rows read at a time
_SWEEP_LIMIT = 20_000  # ids found by one sweep, of each kind
_OPENING_S = 0.05  # about how long the opening of a leg takes
_SAVE_EVERY_S = 10.0


class Attention:
    """Nudges, the sweep, and the upkeep of watermarks, for one scheduler."""

    def __init__(
        self,
        record: Record,
        bus: Bus,
        holdings: Holdings,
        book: RunBook,
        queue: ReadyQueue,
        fleet: FleetView,
        dispatcher: Dispatcher,
        folder: Folder,
        timers: Timers,
        announcer: Announcer,
        clock: RecordClock,
        delivery: Delivery,
        agent: Agent,
        shares: Shares,
        interval_s: float,
    ) -> None:
        self._record = record
        self._bus = bus
        self._holdings = holdings
        self._book = book
        self._queue = queue
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._folder = folder
        self._timers = timers
        self._announcer = announcer
        self._clock = clock
        self._delivery = delivery
        self._agent = agent
        self._shares = shares
        self._interval_s = interval_s
        self._subscriptions: dict[int, Subscription] = {}
        self._wake = asyncio.Event()
        self._accepted: set[bytes] = set()
        self._inbox: set[bytes] = set()
        self._swept_at = 0.0
        self._saved_at = 0.0
        self.on_control: Callable[[], None] = lambda: None
        self.on_commands: Callable[[list[bytes]], Awaitable[None]] = _ignored
        self.on_schedules: Callable[[list[tuple[bytes, int]]], None] = lambda moments: None
        self.on_backfills: Callable[[list[bytes]], None] = lambda schedule_ids: None
        self.on_after: Callable[[], None] = lambda: None

    # -- nudges --------------------------------------------------------------------------------------------------------

    async def listen(self, group: int) -> None:
        """Hear the nudges of a group just taken."""
        self._subscriptions[group] = await self._bus.subscribe(owner_subject(group), self._nudged)

    async def unlisten(self, group: int) -> None:
        """Stop hearing the nudges of a group given away."""
        subscription = self._subscriptions.pop(group, None)
        if subscription is not None:
            await subscription.close()

    async def unlisten_all(self) -> None:
        """Own nothing: hear nothing."""
        for group in list(self._subscriptions):
            await self.unlisten(group)

    def _nudged(self, message: Message) -> None:
        nudge = dispatch_pb2.OwnerNudge()
        try:
            nudge.ParseFromString(message.data)
        except DecodeError:
            log.warning("nudge_undecodable", subject=message.subject)
            return
        for interest in nudge.interests:
            self._announcer.interested(interest)
        if nudge.schedules:
            self.on_schedules([(schedule_id, 0) for schedule_id in nudge.schedules])
        if nudge.workflows:
            self.sweep_soon()
        if nudge.control:
            self.on_control()
        if nudge.branches:
            self._agent.tell(nudge.branches)
        if nudge.accepted or nudge.inbox:
            if len(self._accepted) + len(self._inbox) < 100_000:  # else the sweep finds them
                self._accepted.update(nudge.accepted)
                self._inbox.update(nudge.inbox)
            self._wake.set()

    def look_at(self, run_ids: Iterable[bytes]) -> None:
        """These runs have something in their inbox."""
        self._inbox.update(run_ids)
        self._wake.set()

    def sweep_soon(self) -> None:
        """Groups were taken: look at once."""
        self._swept_at = 0.0
        self._wake.set()

    # -- the loop ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve nudges as they come and sweep every few seconds."""
        loop = asyncio.get_running_loop()
        while True:
            wait_s = max(0.0, self._swept_at + self._interval_s - loop.time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            nudged = self._wake.is_set()
            self._wake.clear()
            try:
                if nudged:
                    accepted, self._accepted = self._accepted, set()
                    inbox, self._inbox = self._inbox, set()
                    await self._take_in(accepted)
                    await self._serve_inbox(inbox)
                if loop.time() >= self._swept_at + self._interval_s or not self._swept_at:
                    self._swept_at = loop.time()
                    if await self._sweep():
                        self._swept_at = 0.0  # there is more than one sweep takes
                    self._announcer.tick()
                    await self._upkeep(loop.time())
            except RecordUnavailable as error:
                log.warning("sweep_failed", error=str(error))
                self._swept_at = loop.time()
            except Fenced as fenced:
                self._holdings.fenced(fenced.session)
            except BusError as error:
                log.info("upkeep_failed", error=str(error))

    async def _sweep(self) -> bool:
        groups = self._holdings.settled_groups()
        session = self._holdings.session
        if session is None or not groups:
            return False
        found = await self._record.lane(
            "sweep", lambda c: sweep(c, session, groups, 2 * self._interval_s, _SWEEP_LIMIT)
        )
        self._clock.heard(found.at)
        fresh = [r for r in found.accepted if self._book.get(r) is None]
        await self._take_in(fresh)
        await self._take_in([run_id for run_id, _ in found.due])
        await self._serve_inbox(found.inbox)
        self._agent.tell(found.awaits)
        if found.after:
            self.on_after()
        self.on_schedules(found.schedules)
        self.on_backfills(found.backfills)
        return len(fresh) == _SWEEP_LIMIT

    async def _take_in(self, run_ids: Sequence[bytes] | set[bytes]) -> list[RunCard]:
        """Make cards of runs that are in the record and not in memory."""
        missing = [r for r in run_ids if self._book.get(r) is None]
        taken: list[RunCard] = []
        now = asyncio.get_running_loop().time()
        for at in range(0, len(missing), _LIMIT):
            part = missing[at : at + _LIMIT]
            for row in await self._record.read(partial(load_runs, run_ids=part)):
                if row.state in ENDED or not self._holdings.owns(row.group) or self._book.get(row.run_id) is not None:
                    continue
                card = card_of_row(row, now)
                self._book.add(card)
                taken.append(card)
                if card.phase is Phase.READY:
                    self._queue.push(card, now)
                elif card.phase is Phase.WAITING:
                    self._timers.add(card)
                else:
                    self._hold(card)
        if taken:
            self._dispatcher.wake()
        return taken

    def _hold(self, card: RunCard) -> None:
        card.held = self._fleet.hold(card.claimant)
        if card.held:
            self._shares.occupy(card.namespace)

    async def _serve_inbox(self, run_ids: Sequence[bytes] | set[bytes]) -> None:
        if not run_ids:
            return
        rows = await self._record.read(lambda c: read_inbox(c, list(run_ids)))
        missing = [r for r in rows if self._book.get(r) is None]
        ended: list[bytes] = []
        if missing:
            now = asyncio.get_running_loop().time()
            found_rows = await self._record.read(lambda c: load_runs(c, missing))
            # An inbox that is no run's is a schedule's.
            self.on_schedules([(r, 0) for r in set(missing) - {row.run_id for row in found_rows}])
            for row in found_rows:
                if row.state in ENDED:
                    if not any(kind == Verb.RESET for kind, _ in rows[row.run_id]):
                        ended.append(row.run_id)
                elif self._holdings.owns(row.group) and self._book.get(row.run_id) is None:
                    card = card_of_row(row, now)
                    self._book.add(card)  # also a wait that is far off: it ends now
                    if card.phase is Phase.READY:
                        self._queue.push(card, now)
                        self._dispatcher.wake()
                    elif card.phase is Phase.OPEN:
                        self._hold(card)
        opened: list[RunCard] = []
        for run_id, items in rows.items():
            found = self._book.get(run_id)
            if found is None:
                continue
            reasons = [payload.decode(errors="replace") for kind, payload in items if kind == "cancel"]
            if reasons:
                reason, grace_ms = cancel_wish(reasons[0])
                with contextlib.suppress(LaneClosed):
                    self._folder.command(Command(found, CommandKind.CANCEL, reason=reason, grace_ms=grace_ms))
            if any(kind == "message" for kind, _ in items) and self._has_mail(found):
                opened.append(found)
        if opened:
            await self._delivery.deliver(opened)
        commanded = [r for r, items in rows.items() if any(kind in COMMANDS for kind, _ in items)]
        if commanded:
            await self.on_commands(commanded)
        for run_id, items in rows.items():
            found = self._book.get(run_id)
            if found is not None and found.phase is Phase.PAUSED and {kind for kind, _ in items} == {"message"}:
                self._book.drop(found)  # what came for it is kept in the record until it goes on
        if ended:
            await self._record.read(lambda c: delete_inbox(c, ended))

    def _has_mail(self, card: RunCard) -> bool:
        """See to a run with messages; True when they are to be delivered to its open leg."""
        loop = asyncio.get_running_loop()
        if card.phase is Phase.WAITING:
            self._queue.push(card, loop.time())
            self._dispatcher.wake()
        elif card.phase is Phase.OPENING:  # what it opens with may have been read before they came
            card.more_mail = True
            loop.call_later(_OPENING_S, self.look_at, (card.run_id,))
        elif card.phase is Phase.OPEN:
            card.more_mail = True  # until the delivery knows better: the leg may be ending
            return True
        return False

    # -- upkeep --------------------------------------------------------------------------------------------------------

    async def _upkeep(self, now: float) -> None:
        """Tell PostgreSQL how far the journal is folded: what the next owner need not read, and may be purged."""
        session = self._holdings.session
        if session is None:
            return
        holdings = [h for h in self._holdings.groups.values() if h.settled]
        if now - self._saved_at >= _SAVE_EVERY_S:
            behind = {h.group: h.folded for h in holdings if h.folded > h.saved}
            if behind:
                generation = self._holdings.generation
                await self._record.lane("sweep", lambda c: save_watermarks(c, session, behind, generation))
                if generation == self._holdings.generation:
                    for holding in holdings:
                        holding.saved = behind.get(holding.group, holding.saved)
            self._saved_at = now
