"""The ready queue: runs that wait for a slot, by pool and region, most urgent level first, fairly within a level.

Nothing is decided before a slot is free, so a run of level 0 overtakes any number of others at once. A card stands in
one lane (pool and region) at one level, or is held until its moment comes:

    push ──▶ level 0..9 ──▶ pop         a plain run, and one whose window is open
    push ──▶ held ──▶ level             not before a moment, or strictly within a window
    push ──▶ held and spare ──▶ level   off-peak: at level SPARE meanwhile, which is served when slots are left over

Entries are never searched for: each push gives the card a fresh token, which makes what stood for it before stale
(fairness.py). `tick` brings what is held to its level, and each run that has waited for long a level further
(ageing), never to level 0. One whose phase has changed meanwhile (cancelled, group given away) is skipped.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable
from itertools import islice
from time import time

from flint_core.queueing import DEFAULT_POOL, LEVELS, URGENT, QueueHints
from flint_core.windows import Window
from flint_scheduler.cards import Phase, RunCard
from flint_scheduler.fairness import DEFAULT_WEIGHT, FairQueue, Others

__all__ = ["SPARE", "Lane", "ReadyQueue"]

SPARE = LEVELS
"""The level of off-peak runs outside their window: after all others, and only into slots that are left over."""

_PATIENCE_MS = 3_600_000
_COMPACT_S = 10.0
_SPAN_S = 10.0
_READY = Phase.READY


class Lane:
    """The runs for one pool and region."""

    __slots__ = (
        "_levels",
        "_mask",
        "_weights",
        "arrived",
        "held",
        "live",
        "only",
        "pool",
        "rate",
        "region",
        "turn",
        "waiting",
    )

    def __init__(self, pool: str, region: str, weights: dict[str, int]) -> None:
        self.pool = pool
        self.region = region
        self.live = [0] * (LEVELS + 1)  # cards by level
        self.held = 0  # cards that wait for their moment, those at SPARE apart
        self.turn = 0
        self.only: str | None = None  # the one namespace that is served; None: all
        self.arrived = 0
        self.rate = 0.0  # arrivals per second
        self.waiting: deque[tuple[float, int, RunCard]] = deque()  # (when it ages, token, card), in that order
        self._weights = weights
        self._levels: list[FairQueue | None] = [None] * (LEVELS + 1)
        self._mask = 0

    @property
    def ready(self) -> int:
        """Runs that could begin if there were room, those at SPARE apart."""
        return sum(self.live) - self.live[SPARE]

    @property
    def top(self) -> int:
        """The most urgent level of which there may be a run; above SPARE when there is none."""
        return (self._mask & -self._mask).bit_length() - 1 if self._mask else SPARE + 1

    def push(self, card: RunCard, level: int) -> None:
        """Queue the card under its present token."""
        queue = self._levels[level]
        if queue is None:
            queue = self._levels[level] = FairQueue(self._weights)
        hints = card.hints
        if hints is None:
            queue.push(card, card.created_ms, "")
        else:
            queue.push(card, _due(card, hints), hints.fairness_key)
        card.spot = level
        self.live[level] += 1
        self._mask |= 1 << level

    def pop(self, least: int, full: Container[str]) -> RunCard | None:
        """The next card of a level up to `least`, or None."""
        if self.only is not None:
            full = Others(self.only, full)
        while self._mask:
            level = (self._mask & -self._mask).bit_length() - 1
            if level > least:
                return None
            queue = self._levels[level]
            card = queue.pop(full) if queue is not None else None
            if queue is None or not queue.count:
                self._mask &= ~(1 << level)
            if card is not None:
                card.spot = -1
                self.live[level] -= 1
                return card
        return None

    def refund(self, card: RunCard) -> None:
        """The card was popped and could not begin."""
        queue = self._levels[card.queue_level]
        if queue is not None:
            queue.refund(card.namespace, card.hints.fairness_key if card.hints is not None else "")

    def leave(self, card: RunCard) -> None:
        """The card's entry is about to become stale."""
        if card.spot >= 0:
            self.live[card.spot] -= 1
            card.spot = -1

    def unpark(self, namespace: str) -> None:
        """The namespace may begin runs again."""
        for level, queue in enumerate(self._levels):
            if queue is not None:
                queue.unpark(namespace)
                if queue.count:
                    self._mask |= 1 << level

    def admit(self, only: str | None) -> None:
        """Serve one namespace alone, or (None) all."""
        if only != self.only:
            self.only = only
            for level, queue in enumerate(self._levels):
                if queue is not None:
                    queue.unpark_all()  # those that may not begin runs for another reason are parked again
                    if queue.count:
                        self._mask |= 1 << level

    def foreign(self, only: str) -> list[int]:
        """How many runs of other namespaces wait, by level."""
        return [queue.foreign(only) if queue is not None else 0 for queue in self._levels[:LEVELS]]

    def reweigh(self) -> None:
        """Weights have changed."""
        for queue in self._levels:
            if queue is not None:
                queue.reweigh()

    def compact(self) -> None:
        """Drop stale entries, and count anew."""
        for level, queue in enumerate(self._levels):
            self.live[level] = len(queue.compact()) if queue is not None else 0
        self.waiting = deque(e for e in self.waiting if _valid(e[2], e[1]))

    def oldest(self, only: str | None = None) -> float | None:
        """Since when the longest waiting ready run (of a namespace) waits (loop time); None when there is none."""
        while self.waiting and not _valid(self.waiting[0][2], self.waiting[0][1]):
            self.waiting.popleft()
        first = [c for _, token, c in islice(self.waiting, 64) if _valid(c, token)]
        return min((c.ready_since for c in first if only is None or c.namespace == only), default=None)


class ReadyQueue:
    """Ordered queues of cards in phase READY, one per pool and region. Used from one event loop.

    `ageing_s`: after how long a run that waits gains a level; 0: never. `off_peak`: the cluster's window for runs that
    only say off-peak; None: they wait for spare slots alone. `now_ms`: the record's clock.
    """

    def __init__(
        self,
        *,
        ageing_s: float = 0.0,
        off_peak: Window | None = None,
        now_ms: Callable[[], int] = lambda: int(time() * 1000),
    ) -> None:
        self._ageing_s = ageing_s
        self._off_peak = off_peak
        self._now_ms = now_ms
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._weights: dict[str, int] = {}
        self._default = self._lane(DEFAULT_POOL, "")
        self._held: list[tuple[int, int, RunCard]] = []
        self._arrivals = 0
        self._tokens = 0
        self._turns = 0
        self._compacted_at = 0.0
        self._counted_at = 0.0
        self.full: set[str] = set()  # namespaces that have as many runs under way as they may
        self.on_ready: Callable[[], None] = lambda: None
        self.parked: Callable[[], int] = lambda: 0  # runs that wait for permits: they count, wherever they stand

    def __len__(self) -> int:
        return sum(sum(lane.live) + lane.held for lane in self._lanes.values()) + self.parked()

    @property
    def by_level(self) -> list[int]:
        """Runs that could begin if there were room, by level."""
        return [sum(lane.live[level] for lane in self._lanes.values()) for level in range(LEVELS)]

    @property
    def lanes(self) -> Iterable[Lane]:
        """All lanes that were ever used and are not empty for long."""
        return self._lanes.values()

    def most_urgent(self, pool: str) -> int:
        """The most urgent level of which a run waits for a slot of the pool; SPARE when none does."""
        if len(self._lanes) == 1:
            lanes: Iterable[Lane] = (self._default,) if pool == DEFAULT_POOL else ()
        else:
            lanes = [lane for lane in self._lanes.values() if lane.pool == pool]
        return min((level for lane in lanes for level in range(LEVELS) if lane.live[level]), default=SPARE)

    def waits_for(self, pool: str) -> bool:
        """Whether a run waits for a slot of the pool, those that only take what is left over apart."""
        if len(self._lanes) == 1:
            return pool == DEFAULT_POOL and self._default.ready > 0
        return any(lane.pool == pool and lane.ready > 0 for lane in self._lanes.values())

    def push(self, card: RunCard, now: float) -> None:
        """Queue a card. One that was queued before keeps its place in the order of arrival. `now`: loop time."""
        if card.arrival == 0:
            self._arrivals += 1
            card.arrival = self._arrivals
        card.phase = _READY
        card.ready_since = now
        self._tokens = card.token = self._tokens + 1
        if card.hints is None and card.placement is None:
            lane = self._default
        else:
            lane = self._lane(*card.place)
            if card.leg == 0 and card.hints is not None:
                spot, until_ms = self._held_until(card)
                if until_ms:
                    heapq.heappush(self._held, (until_ms, card.token, card))
                    if spot == SPARE:
                        lane.push(card, SPARE)
                    else:
                        card.spot = -2
                        lane.held += 1
                    return
        lane.arrived += 1
        lane.push(card, card.queue_level)
        lane.waiting.append((now + self._ageing_s, card.token, card))

    def pop(self, least: int = SPARE) -> RunCard | None:
        """The next card of any lane of a level up to `least`, or None."""
        for lane in self.order():
            card = lane.pop(least, self.full)
            if card is not None:
                return card
        return None

    def order(self) -> list[Lane]:
        """Lanes in which something may be ready, the most urgent first; those that are alike take turns."""
        if len(self._lanes) == 1:
            return [self._default] if self._default.top <= SPARE else []
        return sorted((x for x in self._lanes.values() if x.top <= SPARE), key=lambda x: (x.top, x.turn))

    def take(self, lane: Lane, least: int) -> RunCard | None:
        """The next card of the lane of a level up to `least`, or None."""
        self._turns = lane.turn = self._turns + 1
        return lane.pop(least, self.full)

    def refund(self, card: RunCard) -> None:
        """The card was taken and could not begin: its namespace was served nothing."""
        self._lane(*card.place).refund(card)

    def change_level(self, card: RunCard, level: int) -> None:
        """Give a run another level; where it waits, it waits there from now on, with its place by arrival."""
        card.level = level
        card.aged = 0
        if card.phase is not _READY or card.spot < 0 or card.spot == SPARE:
            return  # a held one comes to its level when its moment comes
        lane = self._lane(*card.place)
        lane.leave(card)
        self._tokens = card.token = self._tokens + 1
        lane.push(card, card.queue_level)
        lane.waiting.append((card.ready_since + self._ageing_s, card.token, card))
        self.on_ready()

    def clear(self) -> None:
        """Forget everything but weights and the namespaces that are full."""
        self._lanes.clear()
        self._default = self._lane(DEFAULT_POOL, "")
        self._held.clear()

    # -- namespaces ----------------------------------------------------------------------------------------------------

    def weigh(self, weights: dict[str, int]) -> None:
        """Weights of namespaces; one that is left out has the usual one."""
        self._weights.clear()
        self._weights.update({n: w for n, w in weights.items() if w != DEFAULT_WEIGHT})
        for lane in self._lanes.values():
            lane.reweigh()

    def unpark(self, namespace: str) -> None:
        """The namespace may begin runs again."""
        if namespace in self.full:
            self.full.discard(namespace)
            for lane in self._lanes.values():
                lane.unpark(namespace)
            self.on_ready()

    def admit_all(self) -> None:
        """Rules of pools have changed: which lanes serve one namespace alone is told anew."""
        for lane in self._lanes.values():
            lane.admit(None)
        self.on_ready()

    # -- time ----------------------------------------------------------------------------------------------------------

    @property
    def next_moment_ms(self) -> int | None:
        """When the next held run may come to its level (Unix epoch, ms); None when nothing is held."""
        while self._held and not _valid(self._held[0][2], self._held[0][1]):
            self._drop_held()
        return self._held[0][0] if self._held else None

    def tick(self, now: float) -> None:
        """Bring what is held to its level, and what has waited for long a level further. About every second."""
        moved = self._release(now)
        if self._ageing_s:
            for lane in self._lanes.values():
                moved = self._age(lane, now) or moved
        if now - self._counted_at >= 1.0:
            span = min(now - self._counted_at, _SPAN_S)
            for lane in self._lanes.values():
                lane.rate += (lane.arrived / span - lane.rate) * min(1.0, span / _SPAN_S)
                lane.arrived = 0
            self._counted_at = now
        if now - self._compacted_at >= _COMPACT_S:
            self._compacted_at = now
            self._held = [e for e in self._held if _valid(e[2], e[1])]
            heapq.heapify(self._held)
            held = Counter(card.place for _, _, card in self._held if card.spot == -2)
            for key, lane in list(self._lanes.items()):
                lane.compact()
                lane.held = held[key]
                if lane is not self._default and not sum(lane.live) and not lane.held and lane.rate < 0.01:
                    del self._lanes[key]
        if moved:
            self.on_ready()

    def _release(self, now: float) -> bool:
        moved = False
        now_ms = self._now_ms()
        while (moment := self.next_moment_ms) is not None and moment <= now_ms:
            card = self._drop_held()
            lane = self._lane(*card.place)
            lane.leave(card)
            self.push(card, now)  # to its level, or to the next moment for which it must wait
            moved = True
        return moved

    def _drop_held(self) -> RunCard:
        _, token, card = heapq.heappop(self._held)
        if card.spot == -2 and card.token == token:
            card.spot = -1
            lane = self._lanes.get(card.place)
            if lane is not None:
                lane.held -= 1
        return card

    def _age(self, lane: Lane, now: float) -> bool:
        moved = False
        waiting = lane.waiting
        while waiting and (waiting[0][0] <= now or not _valid(waiting[0][2], waiting[0][1])):
            _, token, card = waiting.popleft()
            if not _valid(card, token):
                continue
            if card.queue_level <= URGENT + 1:
                waiting.append((now + self._ageing_s, token, card))
                continue
            lane.leave(card)
            card.aged += 1
            self._tokens = card.token = self._tokens + 1
            lane.push(card, card.queue_level)
            waiting.append((now + self._ageing_s, card.token, card))
            moved = True
        return moved

    # -- inside --------------------------------------------------------------------------------------------------------

    def _lane(self, pool: str, region: str) -> Lane:
        lane = self._lanes.get((pool, region))
        if lane is None:
            lane = self._lanes[pool, region] = Lane(pool, region, self._weights)
        return lane

    def _held_until(self, card: RunCard) -> tuple[int, int]:
        """(SPARE when it may take a spare slot meanwhile, until when it is held); (_, 0): it is ready now."""
        hints = card.hints
        now_ms = self._now_ms()
        if hints is None:
            return 0, 0
        if hints.not_before_ms > now_ms:
            return 0, hints.not_before_ms
        window = hints.window or (self._off_peak if hints.off_peak else None)
        if window is None and not hints.off_peak:
            return 0, 0
        latest_ms = hints.latest_start_ms
        if latest_ms and latest_ms <= now_ms:
            return 0, 0
        opening = window.opening(now_ms) if window is not None else None
        if opening is not None and opening[0] <= now_ms:
            return 0, 0
        until_ms = min((m for m in (opening[0] if opening else 0, latest_ms) if m), default=now_ms + 3_600_000)
        return (SPARE if hints.off_peak else 0), until_ms


def _due(card: RunCard, hints: QueueHints) -> int:
    """The earlier one goes first. A run without a deadline counts as if it should end an hour after its start."""
    moments = [m for m in (hints.deadline_ms, 0 if card.leg else hints.latest_start_ms) if m]
    return min(moments) - _PATIENCE_MS if moments else card.created_ms


def _valid(card: RunCard, token: int) -> bool:
    return card.token == token and card.phase is _READY
