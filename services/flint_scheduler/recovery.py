"""Recovery: legs whose worker is gone, and legs that nobody works on (R6, R7).

    leg open ── worker surely ended ─────────────────────────────┐
       │                                                         ▼
       ├─ waits at a full worker while another has room ── ask for it back ── released ── SEAL …
       └─ no progress for the deadline ── ask its worker ── released ── SEAL appended ── fold closes the leg ── ready
                                              │ running: leave it
                                              └ no answer: the lease decides

A leg is never closed while its worker may be at a step: either its lease has surely ended or it said that it let go.
When this loop dies the service stops; a successor asks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable

from flint_bus import Bus, BusError, StreamMissing
from flint_bus.subjects import control_subject
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_core.queueing import slots_beyond
from flint_ops.logging import get_logger
from flint_scheduler.cards import Phase, RunBook, RunCard
from flint_scheduler.crowds import Crowds, Relief
from flint_scheduler.fleet import FleetView
from flint_scheduler.holdings import Holdings
from flint_scheduler.metrics import LEGS, SEALS
from flint_scheduler.readers import Readers
from flint_scheduler.seal import append_seal

__all__ = ["Recovery"]

log = get_logger(__name__)

_TICK_S = 1.0
_ASK_TIMEOUT_S = 2.0
_SEAL_TIMEOUT_S = 5.0
_ASK_BATCH = 2000
_SEAL_PATIENCE_S = 15.0


class Recovery:
    """Closes legs that will not go on, for one scheduler."""

    def __init__(
        self, bus: Bus, holdings: Holdings, book: RunBook, fleet: FleetView, readers: Readers, begin_deadline_s: float
    ) -> None:
        self._bus = bus
        self._holdings = holdings
        self._book = book
        self._fleet = fleet
        self._readers = readers
        self._begin_deadline_s = begin_deadline_s
        self._crowds = Crowds(fleet, book)
        self.cancel_grace_ms = 0  # of cancels that name none
        self._ended: dict[str, bool] = {}  # incarnation → whether it left in order
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def worker_ended(self, incarnation: str, left: bool) -> None:
        """Its lease has surely ended: raise all of its legs. One that left in order counts against no run."""
        self._ended[incarnation] = left
        self._wake.set()

    def look_now(self) -> None:
        """Something changed for many legs (a takeover, a new generation): look at once."""
        self._wake.set()

    async def run(self) -> None:
        """Look every second, and whenever a worker ended."""
        while True:
            try:
                async with asyncio.timeout(_TICK_S):
                    await self._wake.wait()
            except TimeoutError:
                self._fleet.tick()
            self._wake.clear()
            await self._look()

    async def _look(self) -> None:
        ended, self._ended = self._ended, {}
        now = asyncio.get_running_loop().time()
        lost: list[RunCard] = []
        left: list[RunCard] = []
        generation = self._holdings.generation
        asked: dict[tuple[str, bool], list[RunCard]] = {}
        crowded = self._crowds.look(now)
        legs = 0
        for card in self._book:
            if card.phase is Phase.SEALING and now - card.progress_at > _SEAL_PATIENCE_S:
                card.phase = Phase.OPEN  # its SEAL was not read: another one
                card.seal_doubt = True
            if card.phase is not Phase.OPEN or card.claimant is None:
                continue
            if card.cancel_requested and now - card.cancel_sent_at > self._begin_deadline_s:
                self.cancel_leg(card)
            legs += 1
            if card.generation > generation > 0:
                self._readers.suspect()  # another owner opened a newer generation than this one knows
            outdated = 0 < card.generation < generation
            if ended.get(card.claimant, False):
                left.append(card)
            elif card.claimant in ended or self._fleet.has_ended(card.claimant):
                lost.append(card)
            elif (now - card.progress_at > self._begin_deadline_s or outdated) and self._fleet.get(card.claimant):
                asked.setdefault((card.claimant, outdated), []).append(card)
            elif crowded and card.claimant in crowded:
                self._crowds.note(card, now)
        LEGS.set(legs)
        if left:
            self._spawn(self._seal(left, "worker_left"))
        if lost:
            log.warning("legs_of_lost_workers", legs=len(lost))
            self._spawn(self._seal(lost, "worker_lost"))
        for (claimant, journal_lost), cards in asked.items():
            for at in range(0, len(cards), _ASK_BATCH):
                self._spawn(self._ask(claimant, cards[at : at + _ASK_BATCH], journal_lost=journal_lost))
        for relief in self._crowds.reliefs():
            self._spawn(self._relieve(relief))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("recovery_failed", error=repr(error))

    async def _ask(self, claimant: str, cards: list[RunCard], *, journal_lost: bool = False) -> None:
        """Ask a live worker which of these legs it has; those it released are sealed.

        With `journal_lost` it gives up legs whose generation is over as soon as nothing is in progress.
        """
        now = asyncio.get_running_loop().time()
        nonces = [c.nonce for c in cards]
        for card in cards:
            card.progress_at = now  # asked again only after another deadline
        released = await self._released(claimant, cards, dispatch_pb2.ReleaseLegs(journal_lost=journal_lost))
        await self._seal_released(claimant, cards, nonces, released, "released")

    async def _relieve(self, relief: Relief) -> None:
        """Ask full workers for legs that wait, until so many have come back as begin elsewhere; those are sealed."""
        try:
            while (ask := relief.next()) is not None:
                nonces = [c.nonce for c in ask.cards]
                waiting = dispatch_pb2.ReleaseLegs(waiting_at_most=ask.at_most)
                released = await self._released(ask.claimant, ask.cards, waiting)
                if released:
                    self._crowds.answered(relief, ask, nonces, released)
                    await self._seal_released(ask.claimant, ask.cards, nonces, released, "crowded")
        finally:
            self._crowds.finished(relief)

    async def _released(self, claimant: str, cards: list[RunCard], asked: dispatch_pb2.ReleaseLegs) -> list[bool]:
        """Which of the legs the worker let go; empty when it does not answer."""
        asked.legs.extend(dispatch_pb2.LegRef(run_id=c.run_id, leg_nonce=c.nonce or b"") for c in cards)
        request = dispatch_pb2.ControlRequest(release=asked)
        try:
            data = await self._bus.request(control_subject(claimant), request.SerializeToString(), _ASK_TIMEOUT_S)
        except BusError as error:
            log.info("worker_does_not_answer", worker=claimant, legs=len(cards), error=str(error))
            return []
        answer = dispatch_pb2.ControlResponse.FromString(data)
        if answer.incarnation != claimant or len(answer.released) != len(cards):
            log.warning("worker_answers_wrongly", worker=claimant, answered=answer.incarnation)
            return []
        return list(answer.released)

    async def _seal_released(
        self, claimant: str, cards: list[RunCard], nonces: list[bytes | None], released: list[bool], reason: str
    ) -> None:
        sealing = [
            card
            for card, nonce, free in zip(cards, nonces, released, strict=bool(released))
            if free and card.phase is Phase.OPEN and card.nonce == nonce
        ]
        if sealing:
            log.warning("legs_released", worker=claimant, legs=len(sealing), waited=reason == "crowded")
            await self._seal(sealing, reason)

    async def _seal(self, cards: Iterable[RunCard], reason: str) -> None:
        """Append the barrier behind each leg. The fold closes the leg when it reads it."""
        session = self._holdings.session
        if session is None:
            return
        generation = self._holdings.generation
        sealing = [c for c in cards if c.phase is Phase.OPEN]
        unbegun = self._unbegun(sealing) if reason == "worker_lost" else set()
        began = asyncio.get_running_loop().time()
        for card in sealing:
            card.phase = Phase.SEALING
            card.progress_at = began
            card.loss = reason == "worker_lost" and card.run_id not in unbegun
            card.releases += reason == "released"
        results = await asyncio.gather(
            *(append_seal(self._bus, c, generation, session, _SEAL_TIMEOUT_S) for c in sealing), return_exceptions=True
        )
        now = asyncio.get_running_loop().time()
        for card, result in zip(sealing, results, strict=True):
            if isinstance(result, int):
                SEALS.labels(reason).inc()
                card.progress_at = now
                continue
            if not isinstance(result, BusError):
                raise result
            if isinstance(result, StreamMissing):
                self._readers.suspect()
            if card.phase is Phase.SEALING:
                card.phase = Phase.OPEN  # looked at again with the next tick
                card.seal_doubt = True  # it may be stored all the same
                if reason in ("released", "crowded"):
                    card.progress_at = 0.0

    def _unbegun(self, cards: Iterable[RunCard]) -> set[bytes]:
        """Runs whose legs on a lost worker surely waited for a slot there: they did not harm it.

        A worker begins legs in the order of their jobs, the more urgent ones first when a slot comes free, and no more
        at a time than it has slots and urgent legs go beyond; what is beyond these, of this scheduler's own jobs alone,
        had not begun. Where the order cannot be told (a leg taken over from another owner) the leg counts as begun.
        """
        by_worker: dict[str, list[RunCard]] = {}
        for card in cards:
            by_worker.setdefault(card.claimant or "", []).append(card)
        found: set[bytes] = set()
        for claimant, held in by_worker.items():
            slots = self._fleet.slots_of(claimant)
            beyond = len(held) - slots - slots_beyond(slots)
            if beyond > 0 and slots > 0:
                waiting = [card for card in held if card.job_sequence]
                waiting.sort(key=lambda card: (card.level, card.job_sequence), reverse=True)
                found.update(card.run_id for card in waiting[:beyond])
        return found

    def reseal(self) -> None:
        """The journal's generation changed: SEALs in the old one will never be read, their sequences mean nothing."""
        for card in self._book:
            if card.phase is Phase.SEALING:
                card.phase = Phase.OPEN
                card.progress_at = 0.0
            elif card.expected_sequence:
                card.expected_sequence = None
        self._wake.set()

    def cancel_leg(self, card: RunCard) -> None:
        """Tell the worker that its leg's run is cancelled. When the message is lost, the leg's own end notices."""
        if card.claimant is not None and card.nonce is not None:
            card.cancel_sent_at = asyncio.get_running_loop().time()
            grace_ms = card.cancel_grace_ms if card.cancel_grace_ms >= 0 else self.cancel_grace_ms
            self.cancel_nonce(card.run_id, card.claimant, card.nonce, grace_ms)

    def cancel_nonce(self, run_id: bytes, claimant: str, nonce: bytes, grace_ms: int = 0) -> None:
        """The same for a leg that is closed here already."""
        request = dispatch_pb2.ControlRequest(
            cancel=dispatch_pb2.CancelLegs(
                legs=[dispatch_pb2.LegRef(run_id=run_id, leg_nonce=nonce)], grace_ms=grace_ms
            )
        )
        self._spawn(self._send_cancel(claimant, request))

    async def _send_cancel(self, claimant: str, request: dispatch_pb2.ControlRequest) -> None:
        for _ in range(5):
            try:
                await self._bus.request(control_subject(claimant), request.SerializeToString(), _ASK_TIMEOUT_S)
                return
            except BusError as error:
                log.info("cancel_unanswered", worker=claimant, error=str(error))
                if self._fleet.get(claimant) is None:
                    return
                await asyncio.sleep(_TICK_S)
