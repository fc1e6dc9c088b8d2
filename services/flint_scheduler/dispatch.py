"""Dispatch: legs are opened against free slots of chosen workers, then their jobs are published (R3).

    ready card + free slot ──▶ SEAL (later legs only; gives the first expected sequence) ──▶ commit ──▶ job

A leg that was opened while its job got lost is found by recovery: its worker says that it never began it. When the loop
dies the service stops; ready runs are in PostgreSQL.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence

from sqlalchemy.exc import DBAPIError

from flint_bus import Bus, BusError, MessageTooLarge, StreamMissing
from flint_bus.subjects import JOBS_STREAM, job_subject
from flint_core.queueing import URGENT, needs_permits
from flint_ops.logging import get_logger
from flint_scheduler.announce import Announcer
from flint_scheduler.cards import NO_MAIL, Phase, RunBook, RunCard
from flint_scheduler.clock import RecordClock
from flint_scheduler.control.holds import Holds
from flint_scheduler.fleet import FleetView, WorkerView
from flint_scheduler.holdings import Holdings
from flint_scheduler.jobs import JobWriter, Parcel
from flint_scheduler.metrics import COMMIT_ROWS, LEGS_OPENED, QUEUE_WAIT
from flint_scheduler.permits import Permits
from flint_scheduler.ready import SPARE, ReadyQueue
from flint_scheduler.record import Record, RecordUnavailable
from flint_scheduler.seal import append_seal
from flint_scheduler.shares import Shares
from flint_store.fence import Fenced, OwnerSession
from flint_store.legs import LegOpening, LegStart, load_leg_starts, open_legs
from flint_store.permits import MOST_REQUESTS

__all__ = ["Dispatcher"]

log = get_logger(__name__)

_BATCH = 200
_APPEND_TIMEOUT_S = 5.0
_RETRY_S = 0.5
_OPENING, _OPEN = Phase.OPENING, Phase.OPEN


_WAITS = [QUEUE_WAIT.labels("default", str(level)) for level in range(10)]


class Dispatcher:
    """Opens legs and publishes jobs, for one scheduler."""

    def __init__(
        self,
        record: Record,
        holdings: Holdings,
        book: RunBook,
        queue: ReadyQueue,
        fleet: FleetView,
        bus: Bus,
        clock: RecordClock,
        announcer: Announcer,
        shares: Shares,
        permits: Permits,
    ) -> None:
        self._record = record
        self._holdings = holdings
        self._book = book
        self._queue = queue
        self._fleet = fleet
        self._bus = bus
        self._clock = clock
        self._announcer = announcer
        self._shares = shares
        self._permits = permits
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._publishing: set[asyncio.Task[None]] = set()
        self._writer = JobWriter()
        self.holds: Holds | None = None
        self.on_stream_missing: Callable[[], None] = lambda: None
        self.on_undeliverable: Callable[[RunCard, str], None] = lambda card, why: None

    def wake(self) -> None:
        """A run became ready, or a slot free."""
        self._wake.set()

    def can_open(self) -> bool:
        """Whether a leg opened now could be delivered and journaled."""
        return self._bus.connected.is_set() and self._holdings.generation > 0

    async def barrier(self) -> None:
        """Return when the opening under way has ended."""
        async with self._turn:
            return

    async def run(self) -> None:
        """Open legs whenever there is a ready run and a free slot."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._fleet.has_room() and self.can_open() and not self._holdings.lost.is_set():
                async with self._turn:
                    if not await self._open_some():
                        break

    async def _open_some(self) -> bool:
        batch: list[RunCard] = []
        session = self._holdings.session
        generation = self._holdings.generation
        if session is None:
            return False
        least = SPARE
        while len(batch) < _BATCH and (taken := self._next(least)) is not None:
            card, worker = taken
            if card.queue_level == URGENT:
                least = URGENT  # in a commit of their own: a large one takes long
            card.phase = _OPENING
            card.claimant = worker.card.incarnation
            card.held = True
            self._shares.occupy(card.namespace)
            batch.append(card)
        if not batch:
            return False
        try:
            sealed = await self._seal(batch, session, generation)
            starts = await self._starts(sealed) if sealed else {}
            if session is not self._holdings.session or generation != self._holdings.generation:
                self._put_back(sealed)  # what was prepared belongs to a session or a journal that is over
                return False
            if not sealed:
                self._retry_later()
                return False
            await self._commit(sealed, starts, session, generation)
        except RecordUnavailable as error:
            log.warning("legs_not_opened", error=str(error), runs=len(batch))
            self._put_back([c for c in batch if c.phase is _OPENING])
            self._holdings.reread({c.group for c in batch})
            self._retry_later()
            return False
        except Fenced:
            self._holdings.fenced(session)
            return False
        except DBAPIError as error:
            # A row was not as remembered: the statement did nothing at all. Read the groups again.
            log.warning("legs_refused_by_record", error=str(error.orig), runs=len(batch))
            self._put_back([c for c in batch if c.phase is _OPENING])
            self._holdings.reread({c.group for c in batch})
            return False
        return True

    def _next(self, level: int) -> tuple[RunCard, WorkerView] | None:
        """The run whose turn it is, of those up to the level for which there is room, with a slot for it."""
        for lane in self._queue.order():
            if self._fleet.ruled:
                lane.admit(self._fleet.only(lane.pool, lane.region))
            least = min(level, self._fleet.least(lane.pool, lane.region))
            while least >= lane.top and (card := self._queue.take(lane, least)) is not None:
                if self._book.get(card.run_id) is not card or not self._holdings.owns(card.group):
                    continue
                if self.holds is not None and self.holds.any and self.holds.park(card):
                    continue
                hints = card.hints
                if hints is not None and not self._permits.may_ask(card):
                    continue
                sticky = (card.namespace, hints.sticky) if hints is not None and hints.sticky else None
                worker = self._fleet.reserve(lane.pool, lane.region, level=card.queue_level, sticky=sticky)
                if worker is None:  # cannot be: there was room for its level
                    self._queue.push(card, card.ready_since)
                    break
                return card, worker
        return None

    async def _seal(self, batch: list[RunCard], session: OwnerSession, generation: int) -> list[RunCard]:
        """Give every leg after the first the sequence that its run's subject has now; cards that got none go back."""
        needing = [c for c in batch if c.expected_sequence is None]
        if not needing:
            return batch
        results = await asyncio.gather(
            *(append_seal(self._bus, c, generation, session, _APPEND_TIMEOUT_S) for c in needing),
            return_exceptions=True,
        )
        failed = []
        for card, result in zip(needing, results, strict=True):
            if isinstance(result, int):
                card.expected_sequence = result
            elif isinstance(result, BusError):
                failed.append(card)
                if isinstance(result, StreamMissing):
                    self.on_stream_missing()
            else:
                raise result
        if failed:
            log.warning("seal_failed", runs=len(failed))
            self._put_back(failed)
        return [c for c in batch if c.expected_sequence is not None]

    async def _starts(self, cards: Sequence[RunCard]) -> dict[bytes, LegStart]:
        stored = [c for c in cards if c.start is None]
        if not stored:
            return {}
        starts = await self._record.read(lambda c: load_leg_starts(c, [card.run_id for card in stored]))
        for card in stored:
            mail = starts[card.run_id].mail
            card.mail = frozenset(letter.key for letter in mail.letters) if mail.letters else NO_MAIL
            card.more_mail = mail.more
        return starts

    async def _commit(
        self, cards: list[RunCard], starts: dict[bytes, LegStart], session: OwnerSession, generation: int
    ) -> None:
        limited = [c for c in cards if needs_permits(c.hints)]
        if limited:
            cards = [c for c in cards if not needs_permits(c.hints)]
        if cards:
            openings = _openings(cards, generation)
            await self._commit_plain(cards, openings, starts, session)
        if limited:
            openings = _openings(limited, generation)
            await self._commit_limited(limited, openings, starts, session)

    async def _commit_plain(
        self,
        cards: list[RunCard],
        openings: list[LegOpening],
        starts: dict[bytes, LegStart],
        session: OwnerSession,
    ) -> None:
        at = await self._record.lane("open", lambda c: open_legs(c, session, openings))
        self._clock.heard(at)
        COMMIT_ROWS.labels("open").observe(len(cards))
        self._opened(cards, openings, starts, int(at.timestamp() * 1000))

    async def _commit_limited(
        self,
        cards: list[RunCard],
        openings: list[LegOpening],
        starts: dict[bytes, LegStart],
        session: OwnerSession,
    ) -> None:
        """Open the legs of those runs that get their permits; the others give their slots back and wait elsewhere."""
        for at in range(0, len(cards), MOST_REQUESTS):
            part, of_part = cards[at : at + MOST_REQUESTS], openings[at : at + MOST_REQUESTS]
            answers = await self._permits.ask(session, part, of_part)
            granted = [place for place, answer in enumerate(answers) if answer.granted]
            for place, card in enumerate(part):
                if not answers[place].granted and self._book.get(card.run_id) is card:
                    self._vacate(card)
            self._permits.decided(part, answers)
            if granted:
                COMMIT_ROWS.labels("open").observe(len(granted))
                at_ms = max(answers[place].at_ms for place in granted)
                self._opened([part[p] for p in granted], [of_part[p] for p in granted], starts, at_ms)

    def _opened(
        self, cards: list[RunCard], openings: list[LegOpening], starts: dict[bytes, LegStart], at_ms: int
    ) -> None:
        """Legs were opened by a commit."""
        now = asyncio.get_running_loop().time()
        opened: list[RunCard] = []
        for card, opening in zip(cards, openings, strict=True):
            if self._book.get(card.run_id) is not card:
                continue  # stepped down meanwhile; whoever owns the run asks the worker
            opened.append(card)
            card.change += 1
            card.leg += 1
            card.nonce = opening.nonce
            card.generation = opening.generation
            card.phase = _OPEN
            card.progress_at = now
            card.wake_at_ms = 0
            card.started_ms = card.started_ms or at_ms
            card.aged = 0
            card.start = card.start or starts[card.run_id]
            _WAITS[card.level].observe(now - card.ready_since)
            self._announcer.opened(card)
        self.publish(opened)
        self._announcer.flush()

    def announce_started(self, cards: list[RunCard]) -> None:
        """Legs were opened by the commit that stored their runs."""
        for card in cards:
            self._announcer.opened(card, with_start=True)
        self._announcer.flush()

    def publish(self, cards: list[RunCard]) -> None:
        """Publish the jobs of legs that were just opened; does not wait for what becomes of them.

        When it returns they are on their way: whatever the caller does then delays no worker.
        """
        try:
            appends = self._send(cards)
            self._bus.write_now()
        except Exception:
            log.exception("job_publishing_failed", runs=len(cards))  # recovery asks the workers for these legs
            return
        task = asyncio.ensure_future(self._confirm(appends))
        self._publishing.add(task)
        task.add_done_callback(self._published)

    def _published(self, task: asyncio.Task[None]) -> None:
        self._publishing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("job_publishing_failed", error=repr(error))

    def _send(self, cards: list[RunCard]) -> list[tuple[Parcel, asyncio.Future[int]]]:
        by_worker: dict[str, list[RunCard]] = {}
        for card in cards:
            if card.claimant is not None:
                by_worker.setdefault(card.claimant, []).append(card)
        session = self._holdings.session
        session_id = session.session_id.bytes if session is not None else b""
        now_ms = self._clock.now_ms()
        appends: list[tuple[Parcel, asyncio.Future[int]]] = []
        for incarnation, mine in by_worker.items():
            worker = self._fleet.get(incarnation)
            if worker is not None:
                subject = job_subject(worker.card.region, worker.card.pool, incarnation)
                LEGS_OPENED.labels(worker.card.pool).inc(len(mine))
            else:
                # It ended between commit and publication; recovery closes the leg. Nobody reads this address.
                subject = job_subject("gone", "gone", incarnation)
            for parcel in self._writer.pack(mine, worker, session_id, now_ms, self._bus.max_append):
                self._append(subject, parcel, appends)
        return appends

    async def _confirm(self, appends: list[tuple[Parcel, asyncio.Future[int]]]) -> None:
        for parcel, append in appends:
            try:
                await append
            except BusError as error:
                # Delivered or not: recovery asks the worker at once instead of after the deadline.
                log.warning(
                    "jobs_unconfirmed",
                    runs=len(parcel.cards),
                    first=parcel.cards[0].run_id.hex(),
                    leg=parcel.cards[0].leg,
                    error=str(error),
                )
                for card in parcel.cards:
                    card.progress_at = 0.0
                if isinstance(error, StreamMissing):
                    self.on_stream_missing()

    def _append(self, subject: str, parcel: Parcel, appends: list[tuple[Parcel, asyncio.Future[int]]]) -> None:
        try:
            append = self._bus.append_now(
                subject,
                parcel.data,
                msg_id=parcel.message_id,
                stream=JOBS_STREAM,
                timeout_s=_APPEND_TIMEOUT_S,
            )
        except MessageTooLarge as error:
            if len(parcel.cards) == 1:
                self.on_undeliverable(parcel.cards[0], str(error))
                return
            for part in parcel.singly():  # the server takes less than it did
                self._append(subject, part, appends)
            return
        appends.append((parcel, append))

    def _put_back(self, cards: Sequence[RunCard]) -> None:
        now = asyncio.get_running_loop().time()
        for card in cards:
            self._vacate(card)
            if self._book.get(card.run_id) is card:
                self._queue.push(card, now)

    def _vacate(self, card: RunCard) -> None:
        """Its leg was not opened: the slot is free again."""
        if card.held:
            self._fleet.release(card.claimant)
            card.held = False
            self._shares.vacate(card.namespace)
        card.claimant = None

    def _retry_later(self) -> None:
        asyncio.get_running_loop().call_later(_RETRY_S, self._wake.set)

    async def drain(self) -> None:
        """Wait for publications under way."""
        if self._publishing:
            await asyncio.wait(self._publishing, timeout=_APPEND_TIMEOUT_S)


def _openings(cards: Sequence[RunCard], generation: int) -> list[LegOpening]:
    nonces = os.urandom(16 * len(cards))
    return [
        LegOpening(c.run_id, c.change + 1, c.leg + 1, nonces[at : at + 16], c.claimant or "", generation)
        for at, c in zip(range(0, len(nonces), 16), cards, strict=True)
    ]
