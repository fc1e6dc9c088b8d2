"""Permits: runs with concurrency keys or rates ask for them when their turn comes, and are parked when there are none.

    ready ── its turn, a slot ──▶ asks (the commit that would open its leg) ──▶ granted: the leg is open
      ▲                             └─▶ refused ──▶ parked by the key that it lacks
      └── a permit of the key is free (told, or heard over NATS) · the next token is due · every `_RETRY_S` seconds ──┘

PostgreSQL decides; what is kept here is who asks next. Of a key with parked runs only those at the front ask, as many
as may be let in at once; the others wait in memory and cost nothing. Losing this memory costs a question of each.

Permits of runs that ended while their legs may still be executed stay in the record. The sweep finds them; their
workers are told to give the leg up and asked whether they did, and the permits are freed when they have, or when their
lease has surely ended. When the loop dies the service stops.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Final

from google.protobuf.message import DecodeError

from flint_bus import Bus, BusError, Message
from flint_bus.subjects import control_subject, permits_subject
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_core.queueing import QueueHints
from flint_ops.logging import get_logger
from flint_scheduler.cards import Phase, RunBook, RunCard
from flint_scheduler.fleet import FleetView
from flint_scheduler.holdings import Holdings
from flint_scheduler.metrics import PERMITS
from flint_scheduler.ready import ReadyQueue
from flint_scheduler.record import Record, RecordUnavailable
from flint_store.fence import Fenced, OwnerSession
from flint_store.legs import LegOpening
from flint_store.permit_changes import PermitChange
from flint_store.permits import (
    PLACE,
    TOKEN,
    AfterPermit,
    PermitAnswer,
    PermitDemand,
    PermitRequest,
    drop_idle_buckets,
    free_after,
    load_after,
    open_permitted,
)

__all__ = ["PATIENCE_MS", "Permits", "demands_of"]

log = get_logger(__name__)

Key = tuple[str, int, str]
"""Namespace, kind, key."""

PATIENCE_MS: Final = 6000
"""How long a refused run keeps its place before younger ones: above `_RETRY_S`, so that a live owner's never ends."""

_RETRY_S: Final = 2.0
_FRONT: Final = 32
"""Runs of one key that ask at the same time, at most."""
_KEYS_A_TURN: Final = 200
_BUCKETS: Final = 64
_ASK_TIMEOUT_S: Final = 3.0
_AFTER_LIMIT: Final = 1000
_DROP_EVERY_S: Final = 600.0
_SOONEST_S: Final = 0.005


def demands_of(hints: QueueHints) -> tuple[PermitDemand, ...]:
    """All that a run with these hints needs."""
    places = [PermitDemand(PLACE, k.key, k.limit, 0, 1, k.overflow, k.named) for k in hints.concurrency]
    tokens = [PermitDemand(TOKEN, r.key, r.count, r.period_ms, r.burst, "queue", r.named) for r in hints.rates]
    return (*places, *tokens)


def _keys_of(card: RunCard) -> list[Key]:
    hints = card.hints
    if hints is None:
        return []
    return [(card.namespace, d.kind, d.key) for d in demands_of(hints)]


class _Parked:
    """The runs of one key that wait, the most urgent and oldest first."""

    __slots__ = ("front", "heap", "out", "retried_at", "timer")

    def __init__(self) -> None:
        self.heap: list[tuple[int, int, bytes, int, RunCard]] = []
        self.out: dict[bytes, float] = {}  # released to the ready queue and not decided yet; since when
        self.front = 1  # how many ask at the same time
        self.retried_at = 0.0
        self.timer: asyncio.TimerHandle | None = None


class Permits:
    """Parking and asking, for one scheduler. Used from one event loop."""

    def __init__(
        self, record: Record, holdings: Holdings, book: RunBook, queue: ReadyQueue, fleet: FleetView, bus: Bus
    ) -> None:
        self._record = record
        self._holdings = holdings
        self._book = book
        self._queue = queue
        self._fleet = fleet
        self._bus = bus
        self._parked: dict[Key, _Parked] = {}
        self._freed: dict[Key, bool] = {}  # keys that are asked for now, and whether they were freed meanwhile
        self._listening: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._after = asyncio.Event()
        self._dropped_at = 0.0
        self.waiting = 0  # runs that are parked: they count against the queue's limit
        self.on_ready: Callable[[], None] = lambda: None
        self.on_refused: Callable[[RunCard, str], None] = lambda card, key: None
        self.on_replaced: Callable[[bytes, int], None] = lambda run_id, group: None

    # -- asking --------------------------------------------------------------------------------------------------------

    def may_ask(self, card: RunCard) -> bool:
        """Whether the run may ask now; one that may not, because others of its key ask before it, is parked.

        A run that has begun holds what it needs: behind others it would wait for those that wait for it.
        """
        hints = card.hints
        if hints is None or card.leg > 0 or not (hints.concurrency or hints.rates):
            return True
        if not self._parked or any(k.overflow != "queue" for k in hints.concurrency):
            return True
        keys = [(key, self._parked[key]) for key in _keys_of(card) if key in self._parked]
        if any(card.run_id in parked.out for _, parked in keys):
            return True  # its turn by one key: behind another one's queue it would keep the next of this one waiting
        for key, parked in keys:
            if parked.heap:
                self._park(key, card)
                self._queue.refund(card)
                return False
        return True

    async def ask(
        self, session: OwnerSession, cards: Sequence[RunCard], openings: Sequence[LegOpening]
    ) -> list[PermitAnswer]:
        """Open the legs of those runs that get their permits, in one commit; `decided` is to be told of the answers.

        Raises what a commit of the lane raises; nothing was opened then, and the runs may be queued again.
        """
        requests = [
            PermitRequest(o, c.namespace, c.group, c.level, c.created_ms, demands_of(c.hints))
            for c, o in zip(cards, openings, strict=True)
            if c.hints is not None
        ]
        self._freed = {key: False for card in cards for key in _keys_of(card)}
        return await self._record.lane("open", lambda c: open_permitted(c, session, requests, PATIENCE_MS))

    def decided(self, cards: Sequence[RunCard], answers: Sequence[PermitAnswer]) -> None:
        """Park the runs that got none; they hold no slot any more. Some end at once."""
        freed = [key for key, again in self._freed.items() if again]
        self._freed = {}
        for card, answer in zip(cards, answers, strict=True):
            self._decided(card, answer)
        for key in freed:  # while the question was under way
            self._wake(key)

    def _decided(self, card: RunCard, answer: PermitAnswer) -> None:
        for key in _keys_of(card):
            parked = self._parked.get(key)
            if parked is None:
                continue
            parked.out.pop(card.run_id, None)
            if answer.granted or key[1:] != (answer.kind, answer.key):
                self._release(key, parked)  # there may be room for the next one too, or still
        if answer.granted:
            PERMITS.labels("granted").inc()
            return
        if self._book.get(card.run_id) is not card:
            return
        card.phase = Phase.READY
        if answer.overflow == "refuse":
            PERMITS.labels("refused").inc()
            self.on_refused(card, answer.key)
            return
        PERMITS.labels("parked").inc()
        self._queue.refund(card)
        if answer.replaced is not None:
            self.on_replaced(answer.replaced.run_id, answer.replaced.group)
        key = (card.namespace, answer.kind, answer.key)
        parked = self._park(key, card)
        if answer.due_in_ms is not None:
            self._wake_in(key, parked, answer.due_in_ms / 1000)

    # -- parking -------------------------------------------------------------------------------------------------------

    def _park(self, key: Key, card: RunCard) -> _Parked:
        parked = self._parked.get(key)
        if parked is None:
            parked = self._parked[key] = _Parked()
            parked.retried_at = asyncio.get_running_loop().time()
            self._listen(_bucket(key[0], key[2]))
        parked.front = max(1, min(_FRONT, self._most(card, key)))
        parked.out.pop(card.run_id, None)
        card.token = 0  # it stands in the ready queue no more
        heapq.heappush(parked.heap, _place(card))
        self.waiting += 1
        return parked

    @staticmethod
    def _most(card: RunCard, key: Key) -> int:
        """How many runs could be let in at once; what an operator's limit says is not known here."""
        for demand in demands_of(card.hints) if card.hints is not None else ():
            if (demand.kind, demand.key) == key[1:]:
                if demand.named:
                    return 8
                return demand.limit if demand.kind == PLACE else demand.burst
        return 1

    def _release(self, key: Key, parked: _Parked) -> None:
        """Let the front of a key ask, as many as may ask at a time.

        One that finds no slot for long (its pool has no worker) keeps its turn and does not keep others from theirs.
        """
        now = asyncio.get_running_loop().time()
        asking = sum(1 for since in parked.out.values() if now - since < 2 * _RETRY_S)
        released = False
        while parked.heap and asking < parked.front:
            card = heapq.heappop(parked.heap)[-1]
            self.waiting -= 1
            if self._waits(card):
                parked.out[card.run_id] = now
                self._queue.push(card, card.ready_since or now)
                released = True
                asking += 1
        if not parked.heap and not parked.out:
            if parked.timer is not None:
                parked.timer.cancel()
            self._parked.pop(key, None)
        if released:
            self.on_ready()

    def _wake(self, key: Key) -> None:
        parked = self._parked.get(key)
        if parked is not None:
            parked.retried_at = asyncio.get_running_loop().time()
            self._release(key, parked)

    def _wake_in(self, key: Key, parked: _Parked, wait_s: float) -> None:
        loop = asyncio.get_running_loop()
        when = loop.time() + max(_SOONEST_S, wait_s)
        if parked.timer is not None and not parked.timer.cancelled() and loop.time() < parked.timer.when() <= when:
            return
        if parked.timer is not None:
            parked.timer.cancel()
        parked.timer = loop.call_at(when, self._wake, key)

    # -- freed permits -------------------------------------------------------------------------------------------------

    def ended(self, changes: Iterable[tuple[RunCard, PermitChange]]) -> None:
        """Runs have ended: whoever waits for what they held is told; or it waits until their legs are over."""
        free: set[Key] = set()
        for card, change in changes:
            if change.claimant is None:
                free.update(_keys_of(card))
            else:
                self.look_after()
        self._tell(free)

    def _tell(self, keys: set[Key]) -> None:
        buckets: dict[int, dispatch_pb2.PermitsFreed] = {}
        for key in keys:
            namespace, kind, name = key
            if kind == TOKEN:
                continue  # tokens come with time alone
            freed = buckets.setdefault(_bucket(namespace, name), dispatch_pb2.PermitsFreed())
            freed.keys.add(namespace=namespace, kind=kind, key=name)
            self._hear(key)
        for bucket, message in buckets.items():
            # Fire and forget: when it is lost, the others ask again by themselves.
            self._bus.publish_now(permits_subject(bucket), message.SerializeToString())

    def _hear(self, key: Key) -> None:
        if key in self._freed:
            self._freed[key] = True
        self._wake(key)

    def _heard(self, message: Message) -> None:
        freed = dispatch_pb2.PermitsFreed()
        try:
            freed.ParseFromString(message.data)
        except DecodeError:
            log.warning("permits_freed_undecodable", subject=message.subject)
            return
        for key in freed.keys:
            self._hear((key.namespace, key.kind, key.key))

    def _listen(self, bucket: int) -> None:
        if bucket in self._listening:
            return
        self._listening.add(bucket)
        task = asyncio.create_task(self._subscribe(bucket))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _subscribe(self, bucket: int) -> None:
        try:
            await self._bus.subscribe(permits_subject(bucket), self._heard)
        except BusError as error:
            self._listening.discard(bucket)
            log.info("permits_not_heard", bucket=bucket, error=str(error))  # asked again every `_RETRY_S` seconds

    # -- the loop ------------------------------------------------------------------------------------------------------

    def look_after(self) -> None:
        """Some permits outlive their runs: see whether their legs are over."""
        self._after.set()

    async def run(self) -> None:
        """Ask again for keys of which nothing was heard, and free what outlived its run."""
        while True:
            try:
                async with asyncio.timeout(_RETRY_S / 2):
                    await self._after.wait()
            except TimeoutError:
                self._retry()
            try:
                if self._after.is_set():
                    self._after.clear()
                    await self._free_after()
                await self._upkeep()
            except RecordUnavailable as error:
                log.warning("permits_wait_for_postgresql", error=str(error))
            except Fenced as fenced:
                self._holdings.fenced(fenced.session)

    def _retry(self) -> None:
        now = asyncio.get_running_loop().time()
        due = [key for key, parked in self._parked.items() if now - parked.retried_at >= _RETRY_S]
        for key in due[:_KEYS_A_TURN]:
            parked = self._parked[key]
            waiting = [_place(card) for *_, card in parked.heap if self._waits(card)]
            self.waiting -= len(parked.heap) - len(waiting)
            heapq.heapify(waiting)  # levels may have changed
            parked.heap = waiting
            for run_id in [r for r in parked.out if self._decided_elsewhere(r)]:
                del parked.out[run_id]
            self._wake(key)

    def _waits(self, card: RunCard) -> bool:
        """Whether the card still stands for a run that waits: it was not ended, paused or given away."""
        return self._book.get(card.run_id) is card and card.phase is Phase.READY

    def _decided_elsewhere(self, run_id: bytes) -> bool:
        card = self._book.get(run_id)
        return card is None or card.phase not in (Phase.READY, Phase.OPENING)

    async def _upkeep(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._dropped_at >= _DROP_EVERY_S and self._holdings.session is not None:
            self._dropped_at = now
            await self._record.read(drop_idle_buckets)

    async def _free_after(self) -> None:
        session = self._holdings.session
        groups = self._holdings.settled_groups()
        if session is None or not groups:
            return
        left = await self._record.read(lambda c: load_after(c, groups, _AFTER_LIMIT))
        over = [p for p in left if self._fleet.has_ended(p.claimant)]
        asked: dict[str, list[AfterPermit]] = {}
        for permit in left:
            if self._fleet.get(permit.claimant) is not None:
                asked.setdefault(permit.claimant, []).append(permit)
        for part in await asyncio.gather(*(self._give_up(claimant, of_it) for claimant, of_it in asked.items())):
            over += part
        if over:
            await self._record.lane("sweep", lambda c: free_after(c, session, over))
            log.info("permits_freed_after_their_runs", runs=len(over))
            self._tell({key for permit in over for key in permit.keys})

    async def _give_up(self, claimant: str, permits: list[AfterPermit]) -> list[AfterPermit]:
        """Tell a live worker to give these legs up; answers those of which nothing is in progress any more."""
        legs = [dispatch_pb2.LegRef(run_id=p.run_id, leg_nonce=p.leg_nonce) for p in permits]
        cancel = dispatch_pb2.ControlRequest(cancel=dispatch_pb2.CancelLegs(legs=legs))
        release = dispatch_pb2.ControlRequest(release=dispatch_pb2.ReleaseLegs(legs=legs, journal_lost=True))
        try:
            await self._bus.request(control_subject(claimant), cancel.SerializeToString(), _ASK_TIMEOUT_S)
            data = await self._bus.request(control_subject(claimant), release.SerializeToString(), _ASK_TIMEOUT_S)
        except BusError as error:
            log.info("worker_does_not_answer", worker=claimant, legs=len(legs), error=str(error))
            return []
        answer = dispatch_pb2.ControlResponse.FromString(data)
        if answer.incarnation != claimant or len(answer.released) != len(permits):
            log.warning("worker_answers_wrongly", worker=claimant, answered=answer.incarnation)
            return []
        return [p for p, released in zip(permits, answer.released, strict=True) if released]


def _place(card: RunCard) -> tuple[int, int, bytes, int, RunCard]:
    return card.level, card.created_ms, card.run_id, id(card), card


def _bucket(namespace: str, key: str) -> int:
    return blake2b(f"{namespace}\x1f{key}".encode(), digest_size=1).digest()[0] % _BUCKETS
